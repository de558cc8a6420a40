"""Compares methods over numbers of workers, paired.

Question: how does the test error of each method grow with the workers?

  python -m experiments.compare --methods=asgd,sa,ga --workers=1,8,32 --seeds=3

All methods of one (workers, seed) see the same initial parameters, batches and
clock. Finished runs are kept under --workdir and skipped when the command is
run again. Written: table.md, results.json and a picture per protocol.

With --learning_rates (and --momenta) both protocols are run, on a validation
split (--holdout): *unchanged* takes the single worker's best learning rate for
every method and N, *best* each method's own at each N; grids are extended where
the optimum is at an edge.
"""

import os

from absl import flags

from experiments import tasks
from experiments.catalogue import methods
from experiments.records import cells as cells_lib
from experiments.records import folders, record
from experiments.screens import progress
from experiments.script import launch, name_flags, shared_flags
from experiments.settings import path_flags
from experiments.settings import table as settings_lib
from experiments.studies import compare_page, rate_search

shared_flags.define_run_flags(without=shared_flags.OF_ONE_RUN, live=False)
shared_flags.define_mapped()
_METHODS = name_flags.several(
  'methods', ['asgd', 'sa', 'ga'], ','.join(methods.METHODS)
)
_WORKERS = flags.DEFINE_list(
  'workers', ['1', '4', '8', '16'], 'numbers of workers'
)
_SEEDS = flags.DEFINE_integer('seeds', 3, 'runs per cell: seeds 0, 1, ...')
_LEARNING_RATE = shared_flags.define(
  'learning_rate', 'for every method and N, where nothing is swept'
)
_MOMENTUM = shared_flags.define('momentum')
_LEARNING_RATES = flags.DEFINE_list(
  'learning_rates', [], 'sweep: increasing rates to begin with'
)
_MOMENTA = flags.DEFINE_list('momenta', [], 'sweep: momenta, each on its own')
_BASELINE = name_flags.one(
  'baseline', 'asgd', 'method whose single worker sets the unchanged rate'
)
_WORKDIR = path_flags.one('workdir', 'runs/compare', 'folder to write to')
_NOTE = flags.DEFINE_string('note', '', 'a line to stand under the table')


def prepare() -> tuple[rate_search.Plan, str]:
  """Checks every flag and every cell of the grid; reads the data."""
  workers = shared_flags.number_list('workers', _WORKERS.value, int)
  rates = shared_flags.number_list(
    'learning_rates', _LEARNING_RATES.value, float
  )
  momenta = shared_flags.number_list('momenta', _MOMENTA.value, float)
  _check_lists(workers)
  _check_sweeps(rates, momenta)

  def one(method, n, momentum):
    params = {} if momentum is None else {'momentum': momentum}
    return shared_flags.run_settings(
      method=method,
      workers=n,
      learning_rate=rates[0] if rates else _LEARNING_RATE.value,
      parameters=params,
    )

  momenta = momenta or (_MOMENTUM.value,)
  lines = {
    name if len(momenta) == 1 else f'{name}, momentum {m:g}': (name, m)
    for m in momenta
    for name in _METHODS.value
  }
  settings = {
    (line, n): one(name, n, m)
    for line, (name, m) in lines.items()
    for n in workers
  }
  baselines = {
    line: one(_BASELINE.value, 1, m) for line, (_, m) in lines.items() if rates
  }
  tasks.source_of(next(iter(settings.values())))
  plan = rate_search.Plan(
    settings, workers, rates, baselines, tuple(range(_SEEDS.value))
  )
  return plan, folders.of_grid('workdir', _WORKDIR.value)


def _check_lists(workers):
  shared_flags.check_names('workers', [str(n) for n in workers], _WORKERS.value)
  shared_flags.check_names('methods', _METHODS.value, methods.METHODS)
  shared_flags.check_names('baseline', [_BASELINE.value], methods.METHODS)
  shared_flags.check_seeds(_SEEDS.value)


def _check_sweeps(rates, momenta):
  shared_flags.check_rates(rates)
  if len(set(momenta)) < len(momenta) or not all(0 <= m < 1 for m in momenta):
    raise settings_lib.SettingError(
      'momenta', momenta, 'must be different numbers from 0 to below 1'
    )
  for one, sweep, values in (
    ('momentum', 'momenta', momenta),
    ('learning_rate', 'learning_rates', rates),
  ):
    if values and flags.FLAGS[one].present:
      raise settings_lib.SettingError(
        one, flags.FLAGS[one].value, f'cannot stand beside --{sweep}'
      )


def main(prepared):
  plan, workdir = prepared
  total = None if plan.rates else len(plan.settings) * len(plan.seeds)
  with progress.GridProgress(total, quiet=shared_flags.quiet()) as shown:
    path = os.path.join(workdir, record.METRICS)
    cells = cells_lib.Cells(
      path, shown, running=shown.running, mapper=shared_flags.mapper()
    )
    outcomes = rate_search.outcomes(plan, cells)
  compare_page.write(
    plan,
    outcomes,
    workdir,
    baseline=_BASELINE.value,
    note=_NOTE.value,
    command=launch.command(),
  )


if __name__ == '__main__':
  launch.launch(main, prepare, goes_on=True)
