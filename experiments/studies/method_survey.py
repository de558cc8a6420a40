"""All methods at one number of workers: the grid, and the page of it."""

from collections.abc import Callable, Iterable

import numpy as np

from experiments.reporting import statistics, tables
from experiments.running import environment
from experiments.settings import table as settings_lib
from experiments.studies import rate_search

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


def plans(
  names: Iterable[str],
  clocks: Iterable[str],
  workers: int,
  rates: tuple[float, ...],
  seeds: tuple[int, ...],
  baseline: str,
  make: Callable[..., settings_lib.Settings],
) -> dict[str, rate_search.Plan]:
  """The grid on every clock.

  Args:
    names: of the methods; the one that speed-ups are measured against is added.
    clocks: names.
    workers: N.
    rates: learning rates to begin with.
    seeds: of every cell.
    baseline: method whose single worker sets the unchanged rate.
    make: `make(method=..., workers=..., clock=..., learning_rate=...)` gives
      the settings of a cell.

  Returns:
    {clock: plan}; raises a SettingError where a cell has no meaning.
  """
  names = list(dict.fromkeys([*names, statistics.SYNCHRONOUS]))

  def one(method, workers, clock):
    return make(
      method=method, workers=workers, clock=clock, learning_rate=rates[0]
    )

  return {
    clock: rate_search.Plan(
      {(name, workers): one(name, workers, clock) for name in names},
      (workers,),
      rates,
      dict.fromkeys(names, one(baseline, 1, clock)),
      seeds,
    )
    for clock in clocks
  }


def page(
  plans: dict[str, rate_search.Plan],
  found: dict[str, list[rate_search.Outcome]],
  command: str,
) -> str:
  """The tables of all clocks.

  Args:
    plans: {clock: plan}.
    found: {clock: (unchanged, best)}.
    command: that made them.

  Returns:
    Markdown.
  """
  plan = next(iter(plans.values()))
  s, (workers,) = plan.example(), plan.columns
  lines = [
    EXPLAINED.format(
      workers=workers,
      model=s.model,
      data=s.data_name(),
      epochs=s.epochs,
      batch=s.batch_size,
      latency=s.latency,
      bandwidth=s.bandwidth,
      seeds=len(plan.seeds),
      baseline=next(iter(plan.baselines.values())).method,
      holdout=s.holdout,
    )
  ]
  for clock, (unchanged, best) in found.items():
    rate = next(iter(unchanged.results.values()))[workers][0]
    lines += [
      f'## {clock.capitalize()} clock',
      '',
      f'The unchanged learning rate is {rate["learning_rate"]:g}.',
      '',
      tables.markdown(HEAD, _rows(unchanged, best, workers)),
      '',
    ]
  updates, seconds = statistics.totals(
    [
      run
      for both in found.values()
      for outcome in both
      for run in outcome.runs()
    ]
  )
  lines += [
    f'{updates:,} updates in {seconds:.0f} s in the runs shown, on '
    f'{environment.versions()["device"]}; command: {command}',
    '',
  ]
  return '\n'.join(lines)


def _rows(unchanged, best, workers: int) -> list[list[str]]:
  """A row per method."""
  slow = best.results[statistics.SYNCHRONOUS][workers]
  return [
    [
      f'`{name}`',
      tables.cell_text(unchanged.results[name][workers]),
      tables.cell_text(line[workers]),
      best.rate_text(name, workers),
      *_costs(line[workers], slow),
    ]
    for name, line in best.results.items()
  ]


def _costs(runs, slow) -> list[str]:
  """Time, staleness, waste and bytes of a method."""
  speedup = np.mean(
    [
      statistics.pace(s) / statistics.pace(b)
      for s, b in zip(slow, runs, strict=True)
    ]
  )

  def mean(name):
    return statistics.mean(runs, name)

  return [
    f'{mean("simulated_time"):.0f}',
    f'{mean("simulated_speedup"):.1f}',
    f'{speedup:.2f}',
    f'{mean("mean_staleness"):.1f}',
    f'{max(s["max_staleness"] for s in runs)}',
    f'{100 * mean("wasted_work"):.0f}',
    f'{mean("bytes_pushed") / 1e6:.1f}',
    f'{mean("bytes_pulled") / 1e6:.1f}',
  ]
