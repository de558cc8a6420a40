"""One table of all methods: what each gives and what it costs.

Question: test error, time, staleness, wasted work and bytes of every method at
one number of workers?

  python -m experiments.survey \\
    --flagfile=experiments/presets/digits_methods.flags

Both protocols of `experiments.compare` (the single worker's best rate for all,
and each method's own), on each of --clocks, paired. Finished runs are kept
under --workdir and skipped when the command is run again. Written: table.md and
results.json.
"""

import os
import shlex
import sys
from typing import Any

import numpy as np
from absl import flags

from experiments import tasks
from experiments.catalogue import methods
from experiments.records import cells as cells_lib
from experiments.records import folders
from experiments.reporting import tables
from experiments.running import environment
from experiments.screens import progress
from experiments.script import launch, name_flags, shared_flags
from experiments.settings import table as settings_lib
from experiments.studies import protocols

shared_flags.define_run_flags(without=('clock',))
_METHODS = name_flags.several('methods', list(methods.METHODS), 'default: all')
_CLOCKS = flags.DEFINE_list(
  'clocks', ['homogeneous', 'heterogeneous'], ','.join(settings_lib.CLOCKS)
)
_WORKERS = flags.DEFINE_integer('workers', 16, 'simulated workers')
_SEEDS = flags.DEFINE_integer('seeds', 5, 'runs per cell: seeds 0, 1, ...')
_LEARNING_RATES = flags.DEFINE_list(
  'learning_rates', ['0.01', '0.03', '0.1'], 'increasing, to begin with'
)
_BASELINE = name_flags.one(
  'baseline', 'asgd', 'method whose single worker sets the unchanged rate'
)
_WORKDIR = flags.DEFINE_string('workdir', 'runs/survey', 'folder to write to')

SYNCHRONOUS = 'ssgd'  # what speed-ups are measured against
HEAD = [
  'method',
  'error %, unchanged',
  'error %, best',
  'rate',
  'time',
  '× one',
  '× SSGD',
  'staleness',
  'max',
  'wasted %',
  'MB up',
  'MB down',
]
EXPLAINED = """# Every method with {workers} workers

{model} on {data}, {epochs:g} epochs in all, batch {batch}; a message takes
{latency:g} + bytes / {bandwidth:g} mean batch times.

Test error in %, mean ± standard deviation over {seeds} seeds, paired: at the
single worker's best learning rate for every method (*unchanged*; {baseline})
and at each method's own (*best*, with that rate), both chosen on {holdout}
held-out examples. Where a run diverged it is said. The other columns are of the
*best* runs, means over seeds: simulated time in mean batch times; how many
times faster than one average worker without messages, and than SSGD, the same
batches were done; staleness (mean and largest) in updates; part of the workers'
time that was for nothing; megabytes submitted and sent out. *(edge)*: the
grid's extensions ended before the best rate had a neighbour on each side.
"""


def prepare() -> tuple[dict[str, protocols.Plan], str]:
  """Checks every flag and cell; reads the data."""
  rates = shared_flags.number_list(
    'learning_rates', _LEARNING_RATES.value, float
  )
  shared_flags.check_names('methods', _METHODS.value, methods.METHODS)
  shared_flags.check_names('clocks', _CLOCKS.value, settings_lib.CLOCKS)
  shared_flags.check_names('baseline', [_BASELINE.value], methods.METHODS)
  shared_flags.check_rates(rates)
  if not rates:
    raise settings_lib.SettingError(
      'learning_rates', '', 'must name at least one'
    )
  if _SEEDS.value < 1:
    raise settings_lib.SettingError('seeds', _SEEDS.value, 'must be at least 1')

  def one(method, workers, clock):
    return shared_flags.run_settings(
      method, workers=workers, clock=clock, learning_rate=rates[0]
    )

  n = _WORKERS.value
  names = list(dict.fromkeys([*_METHODS.value, SYNCHRONOUS]))
  plans = {
    clock: protocols.Plan(
      {(name, n): one(name, n, clock) for name in names},
      (n,),
      rates,
      dict.fromkeys(names, one(_BASELINE.value, 1, clock)),
      tuple(range(_SEEDS.value)),
    )
    for clock in _CLOCKS.value
  }
  tasks.source_of(next(iter(plans.values())).example())
  return plans, folders.of_grid('workdir', _WORKDIR.value)


def main(prepared):
  plans, workdir = prepared
  found = {}
  with progress.GridProgress(None, quiet=launch.quiet()) as shown:
    path = os.path.join(workdir, 'metrics.jsonl')
    cells = cells_lib.Cells(path, shown, running=shown.running)
    for clock, plan in plans.items():
      found[clock] = protocols.sweep(plan, cells)
  results = {
    clock: {outcome.name: outcome.results for outcome in outcomes}
    for clock, outcomes in found.items()
  }
  tables.write(workdir, results, page(plans, found))


def page(plans, found) -> str:
  """The tables of all clocks."""
  plan = next(iter(plans.values()))
  s = plan.example()
  lines = [
    EXPLAINED.format(
      workers=_WORKERS.value,
      model=s.model,
      data=s.data_name(),
      epochs=s.epochs,
      batch=s.batch_size,
      latency=s.latency,
      bandwidth=s.bandwidth,
      seeds=len(plan.seeds),
      baseline=_BASELINE.value,
      holdout=s.holdout,
    )
  ]
  for clock, (unchanged, best) in found.items():
    rate = next(iter(unchanged.results.values()))[_WORKERS.value][0]
    lines += [
      f'## {clock.capitalize()} clock',
      '',
      f'The unchanged learning rate is {rate["learning_rate"]:g}.',
      '',
      tables.markdown(HEAD, rows(unchanged, best, _WORKERS.value)),
      '',
    ]
  totals = [
    tables.totals(outcome.results)
    for outcomes in found.values()
    for outcome in outcomes
  ]
  updates, seconds = map(sum, zip(*totals, strict=True))
  command = ' '.join(shlex.quote(a) for a in sys.argv[1:])
  lines += [
    f'{updates:,} updates in {seconds:.0f} s in the runs shown, on '
    f'{environment.versions()["device"]}; command: '
    f'python -m experiments.survey {command}',
    '',
  ]
  return '\n'.join(lines)


def rows(unchanged, best, workers: int) -> list[list[str]]:
  """A row per method."""
  slow = best.results[SYNCHRONOUS][workers]
  return [
    row(
      name,
      unchanged.results[name][workers],
      line[workers],
      slow,
      (name, workers) in best.unbracketed,
    )
    for name, line in best.results.items()
  ]


def row(name, unchanged, best, slow, edge: bool) -> list[str]:
  """What stands in a method's row."""
  speedup = np.mean(
    [
      (s['simulated_time'] / s['batches'])
      / (b['simulated_time'] / b['batches'])
      for s, b in zip(slow, best, strict=True)
    ]
  )
  rate = f'{best[0]["learning_rate"]:g}' + (' (edge)' if edge else '')
  return [
    f'`{name}`',
    tables.cell_text(unchanged),
    tables.cell_text(best),
    rate,
    f'{_mean(best, "simulated_time"):.0f}',
    f'{_mean(best, "simulated_speedup"):.1f}',
    f'{speedup:.2f}',
    f'{_mean(best, "mean_staleness"):.1f}',
    f'{max(s["max_staleness"] for s in best)}',
    f'{100 * _mean(best, "wasted_work"):.0f}',
    f'{_mean(best, "bytes_pushed") / 1e6:.1f}',
    f'{_mean(best, "bytes_pulled") / 1e6:.1f}',
  ]


def _mean(summaries: list[dict[str, Any]], name: str) -> float:
  return float(np.mean([s[name] for s in summaries]))


if __name__ == '__main__':
  launch.launch(main, prepare, goes_on=True)
