"""How every method comes to its error on digits: over epochs and over time.

Question: which method is where after so many epochs, and after so much time?

  python -m experiments.documents.digits_curves

Every named method with 16 workers, on both clocks, at its own best learning
rate as results/digits_methods found it on a validation split (a method that is
newer than that table has its own search here); 3 seeds, paired. Everything else
stands in experiments/presets/digits_methods.flags. Each finished run is a line
of results/digits_curves/metrics.jsonl, with its metrics at the end of every
epoch, and is never done again: 258 runs of 660 gradients. The pages of
docs/methods show them.
"""

import json
import os
import sys
from typing import Any

import numpy as np
from absl import flags

from experiments import tasks
from experiments.catalogue import methods
from experiments.records import cells as cells_lib
from experiments.records import folders, record
from experiments.reporting import statistics, tables
from experiments.screens import progress
from experiments.script import launch, shared_flags, survey_flags
from experiments.studies import method_survey, rate_search

survey_flags.define()

FOLDER = os.path.join('results', 'digits_curves')
RATES = os.path.join('results', 'digits_methods', 'results.json')
PRESET = os.path.join('experiments', 'presets', 'digits_methods.flags')
SEEDS = 3
REFERENCES = ('asgd', 'ssgd')  # shown beside every family
CLOCKS = ('homogeneous', 'heterogeneous')
TARGET = 0.05  # the error that times are taken to
# What is kept of a run, and of each of its epochs.
SUMMARY = ('method', 'clock', 'workers', 'seed', 'learning_rate', 'diverged')
SUMMARY += ('test_error', 'validation_error', 'simulated_time')
SUMMARY += ('device', 'jax', 'settings', 'inputs')
ROW = ('epoch', 'time', 'test_error', 'mean_staleness')
ROW += ('mean_gap', 'mean_penalty')
_DIGITS = 5  # significant ones


def shortened(found: dict[str, Any]) -> dict[str, Any]:
  """What is kept of a run: few numbers, but of every epoch."""
  kept = {name: found[name] for name in SUMMARY}
  if 'curve' in found:
    kept['curve'] = [{name: r[name] for name in ROW} for r in found['curve']]
  return rounded(kept)


def rounded(value: Any) -> Any:
  """The same with every float to five digits."""
  if isinstance(value, dict):
    return {k: rounded(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [rounded(v) for v in value]
  return float(f'{value:.{_DIGITS}g}') if isinstance(value, float) else value


def best_rates(path: str = RATES) -> dict[tuple[str, str], float]:
  """{(clock, method): learning rate} of the survey's protocol *best*."""
  with open(path, encoding='utf-8') as file:
    found = json.load(file)
  return {
    (clock, method): runs[0]['learning_rate']
    for clock, protocols in found.items()
    for method, columns in protocols['best'].items()
    for runs in columns.values()
  }


def read(folder: str = FOLDER) -> list[dict[str, Any]]:
  """The finished runs that have a curve; searches for rates have none."""
  rows = cells_lib.read(os.path.join(folder, record.METRICS)).values()
  return [row for row in rows if 'curve' in row]


def family(name: str) -> tuple[str, ...]:
  """The methods of a page of docs/methods, and the references."""
  return tuple(dict.fromkeys([*methods.FAMILIES[name], *REFERENCES]))


def markdown(name: str, runs: list[dict[str, Any]]) -> str:
  """The table of a page of docs/methods.

  Args:
    name: of `methods.FAMILIES`.
    runs: as `read` gives them.

  Returns:
    A Markdown table: on each clock the learning rate, the error at the end and
    the time to the target.
  """
  head, table = ['method'], {method: [] for method in family(name)}
  for clock in CLOCKS:
    head += [f'{clock}: rate', 'error %', f'time to {100 * TARGET:g} %']
    for method, row in table.items():
      here = (method, clock)
      seeds = [r for r in runs if (r['method'], r['clock']) == here]
      rate = f'{seeds[0]["learning_rate"]:g}'
      row += [rate, tables.cell_text(seeds), time_text(seeds)]
  return tables.markdown(
    head, [[f'`{method}`', *row] for method, row in table.items()]
  )


def time_text(seeds: list[dict[str, Any]]) -> str:
  """The mean time until the error was at the target at the end of an epoch."""
  times = [statistics.time_to(run, TARGET) for run in seeds]
  return '-' if None in times else f'{np.mean(times):.0f}'


def prepare():
  """The survey's plans with few seeds, and the rates."""
  given = [f'--flagfile={PRESET}', f'--seeds={SEEDS}', f'--workdir={FOLDER}']
  flags.FLAGS([sys.argv[0], *given, *sys.argv[1:]])
  plans = method_survey.plans(
    **survey_flags.read(), make=shared_flags.run_settings
  )
  tasks.source_of(next(iter(plans.values())).example())
  folder = folders.of_grid('workdir', flags.FLAGS.workdir)
  return plans, folder, best_rates()


def main(prepared):
  plans, folder, rates = prepared
  path = os.path.join(folder, record.METRICS)
  total = sum(len(p.settings) * len(p.seeds) for p in plans.values())
  with progress.GridProgress(None, quiet=shared_flags.quiet()) as shown:
    cells = cells_lib.Cells(
      path,
      shown,
      any_version=True,
      running=shown.running,
      kept_fn=shortened,
    )
    for clock, plan in plans.items():
      for (method, _), settings in plan.settings.items():
        if (clock, method) in rates:
          at = rate_search.with_rate(settings, rates[clock, method])
        else:
          at = rate_search.best_rate(
            cells, settings, plan.rates, plan.seeds
          ).settings
        rate_search.over_seeds(cells, at, plan.seeds, curve=True)
  print(f'{total} runs are in {path}, {cells.computed} were computed now')
  for name in methods.FAMILIES:
    print(f'\ndocs/methods/{name}.md:\n\n{markdown(name, read(folder))}')


if __name__ == '__main__':
  launch.launch(main, prepare, goes_on=True)
