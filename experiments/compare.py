"""Compares methods over numbers of workers, paired.

Question: how does the test error of each method grow with the workers?

  python -m experiments.compare --methods=asgd,sa,ga --workers=1,8,32 --seeds=3

All methods of one (workers, seed) see the same initial parameters, batches and
clock. Finished runs are kept under --workdir and skipped when the command is
run again. Written: table.md, error.png, results.json.

With --learning_rates (and --momenta) both protocols are run, on a validation
split (--holdout): *unchanged* takes the single worker's best learning rate for
every method and N, *best* each method's own at each N; grids are extended where
the optimum is at an edge.
"""

import os
import shlex
import sys
from typing import Any, NamedTuple

from absl import flags

from experiments import cli, grid, methods, progress, run, tables
from experiments import settings as settings_lib
from ga_jax import metrics, plots

cli.define_run_flags()
_METHODS = flags.DEFINE_list(
  'methods', ['asgd', 'sa', 'ga'], ','.join(methods.METHODS)
)
_WORKERS = flags.DEFINE_list(
  'workers', ['1', '4', '8', '16'], 'numbers of workers'
)
_SEEDS = flags.DEFINE_integer('seeds', 3, 'runs per cell: seeds 0, 1, ...')
_LEARNING_RATE = flags.DEFINE_float(
  'learning_rate', 0.1, 'for every method and N, where nothing is swept'
)
_MOMENTUM = flags.DEFINE_float('momentum', None, 'momentum (default 0.9)')
_LEARNING_RATES = flags.DEFINE_list(
  'learning_rates', [], 'sweep: increasing rates to begin with'
)
_MOMENTA = flags.DEFINE_list('momenta', [], 'sweep: momenta, each on its own')
_BASELINE = flags.DEFINE_string(
  'baseline', 'asgd', 'method whose single worker sets the unchanged rate'
)
_WORKDIR = flags.DEFINE_string('workdir', 'runs/compare', 'what to write to')
_NOTE = flags.DEFINE_string('note', '', 'a line to stand under the table')


class Plan(NamedTuple):
  """A checked grid.

  Attributes:
    settings: {(method, workers, momentum): settings}, momentum None for the
      rule's own.
    workers: numbers of workers.
    names: methods.
    momenta: momenta, (None,) where none is swept.
    rates: learning rates to sweep, () for none.
    baselines: {momentum: settings of the single worker that sets the rate}.
    seeds: the seeds.
    workdir: where to write.
  """

  settings: dict[tuple[str, int, float | None], settings_lib.Settings]
  workers: tuple[int, ...]
  names: tuple[str, ...]
  momenta: tuple[float | None, ...]
  rates: tuple[float, ...]
  baselines: dict[float | None, settings_lib.Settings]
  seeds: tuple[int, ...]
  workdir: str


def prepare() -> Plan:
  """Checks every flag and every cell of the grid; reads the data."""
  workers = cli.number_list('workers', _WORKERS.value, int)
  rates = cli.number_list('learning_rates', _LEARNING_RATES.value, float)
  momenta = cli.number_list('momenta', _MOMENTA.value, float)
  _check_lists(workers, rates, momenta)

  def one(method, n, momentum):
    params = {} if momentum is None else {'momentum': momentum}
    return cli.run_settings(
      method,
      workers=n,
      learning_rate=rates[0] if rates else _LEARNING_RATE.value,
      rule_params=params,
    )

  momenta = momenta or (_MOMENTUM.value,)
  settings = {
    (name, n, m): one(name, n, m)
    for m in momenta
    for name in _METHODS.value
    for n in workers
  }
  baselines = {m: one(_BASELINE.value, 1, m) for m in momenta} if rates else {}
  run.task.source_of(next(iter(settings.values())))
  return Plan(
    settings,
    workers,
    tuple(_METHODS.value),
    momenta,
    rates,
    baselines,
    tuple(range(_SEEDS.value)),
    cli.writable_folder('workdir', _WORKDIR.value),
  )


def _check_lists(workers, rates, momenta):
  for flag, values in (
    ('workers', workers),
    ('methods', _METHODS.value),
  ):
    if not values:
      raise settings_lib.SettingError(flag, '', 'must name at least one')
    if len(set(values)) < len(values):
      text = ','.join(str(v) for v in values)
      raise settings_lib.SettingError(flag, text, 'names something twice')
  if _SEEDS.value < 1:
    raise settings_lib.SettingError('seeds', _SEEDS.value, 'must be at least 1')
  if any(b <= a for a, b in zip((0.0, *rates), rates, strict=False)):
    text = ','.join(str(v) for v in rates)
    raise settings_lib.SettingError(
      'learning_rates', text, 'must be positive and increasing'
    )
  if rates and not flags.FLAGS.holdout:
    raise settings_lib.SettingError(
      'holdout', 0, '--learning_rates needs a validation split: at least 1'
    )
  if momenta and _MOMENTUM.value is not None:
    raise settings_lib.SettingError(
      'momentum', _MOMENTUM.value, 'cannot stand beside --momenta'
    )


def main(plan: Plan):
  if plan.rates:
    protocols = _sweep(plan)
  else:
    protocols = {'': _fixed(plan)}
  _write(plan, protocols)


def _fixed(plan: Plan):
  """{method: {workers: summaries}} at one learning rate."""
  results = {}
  with progress.grid_progress(len(plan.settings) * len(plan.seeds)) as advance:
    cells = grid.Cells(os.path.join(plan.workdir, 'cells'), advance)
    for (name, n, momentum), settings in plan.settings.items():
      line = results.setdefault(_label(name, momentum, plan), {})
      line[n] = grid.over_seeds(cells, settings, plan.seeds)
  return results


def _sweep(plan: Plan):
  """The results under both protocols: {protocol: results}."""
  unchanged, best = {}, {}
  with progress.grid_progress(None) as advance:
    cells = grid.Cells(os.path.join(plan.workdir, 'cells'), advance)
    rate_of = {
      m: grid.best_rate(cells, settings, plan.rates, plan.seeds)[0]
      for m, settings in plan.baselines.items()
    }
    for (name, n, momentum), settings in plan.settings.items():
      label = _label(name, momentum, plan)
      rate = rate_of[momentum].learning_rate
      same = grid.with_values(settings, rate, momentum)
      unchanged.setdefault(label, {})[n] = grid.over_seeds(
        cells, same, plan.seeds
      )
      own, _ = grid.best_rate(cells, settings, plan.rates, plan.seeds)
      best.setdefault(label, {})[n] = grid.over_seeds(cells, own, plan.seeds)
  return {'unchanged': unchanged, 'best': best}


def _label(name, momentum, plan) -> str:
  if len(plan.momenta) == 1:
    return name
  return f'{name}, momentum {momentum:g}'


def _write(plan: Plan, protocols: dict[str, Any]):
  workdir = plan.workdir
  text = []
  for protocol, results in protocols.items():
    picture = os.path.join(workdir, f'error{protocol and "-" + protocol}.png')
    text += _section(plan, protocol, results)
    plots.error_over_workers(
      picture,
      {
        name: {
          n: [
            None if s['diverged'] else 100 * s['test_error'] for s in summaries
          ]
          for n, summaries in line.items()
        }
        for name, line in results.items()
      },
      title=_title(plan, protocol),
      label='test error, %',
    )
    text += [f'Picture: {picture}', '']
  table = '\n'.join(text)
  metrics.write_json(os.path.join(workdir, 'results.json'), protocols)
  metrics.write_json(os.path.join(workdir, 'versions.json'), run.versions())
  with open(os.path.join(workdir, 'table.md'), 'w') as file:
    file.write(table)
  print(table)
  print(f'Written to {os.path.join(workdir, "table.md")}')


def _title(plan, protocol) -> str:
  s = next(iter(plan.settings.values()))
  what = {'': f'learning rate {s.learning_rate:g}'}.get(
    protocol, f'learning rate: {protocol}'
  )
  return f'{s.model} on {s.dataset}, {s.clock} clock, {what}'


def _section(plan: Plan, protocol: str, results) -> list[str]:
  s = next(iter(plan.settings.values()))
  updates, seconds = tables.totals(results)
  how = {
    '': f'Learning rate {s.learning_rate:g} for every method and every N.',
    'unchanged': (
      'Protocol *unchanged*: the learning rate of the single worker '
      f'({_BASELINE.value}) that is best on the validation split, for every '
      'method and every N.'
    ),
    'best': (
      'Protocol *best*: each method at each N at the learning rate that is '
      'best on the validation split.'
    ),
  }[protocol]
  lines = [
    f'Test error in %, mean ± standard deviation over {len(plan.seeds)} '
    f'seed{"s" if len(plan.seeds) > 1 else ""}: {s.model} on {s.dataset}, '
    f'{s.epochs:g} epochs in all, batch {s.batch_size}, {s.clock} clock.',
    '',
    tables.error_table(results, list(plan.workers)),
    '',
    how,
  ]
  if _NOTE.value:
    lines += [_NOTE.value]
  if protocol:
    lines += ['', *_rates(results, plan)]
  lines += [
    '',
    f'{updates:,} updates in {seconds:.0f} s on {run.versions()["device"]}; '
    f'command: python -m experiments.compare '
    f'{" ".join(shlex.quote(a) for a in sys.argv[1:])}',
  ]
  return lines


def _rates(results, plan) -> list[str]:
  head = ['learning rate', *(str(n) for n in plan.workers)]
  rows = [
    [name, *(f'{line[n][0]["learning_rate"]:g}' for n in plan.workers)]
    for name, line in results.items()
  ]
  return [tables.markdown(head, rows)]


if __name__ == '__main__':
  cli.launch(main, prepare)
