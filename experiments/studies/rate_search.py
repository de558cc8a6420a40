"""How learning rates are chosen when methods are compared.

A grid of settings (`Plan`) is run under one protocol or two (`Outcome`): at the
rate that was given, or both at the single worker's best rate and at each cell's
own (`Search`).
"""

import dataclasses
import math
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from experiments import tasks
from experiments.records import cells as cells_lib
from experiments.reporting import statistics, tables
from experiments.settings import table as settings_lib

MAX_EXTENSIONS = 6  # steps by which a grid of rates grows at each edge
EXPLAINED = {
  'fixed': 'Learning rate {rate:g} for every method and every N.',
  'unchanged': (
    'Protocol *unchanged*: the learning rate of the single worker ({baseline}) '
    'that is best on the validation split, for every method and every N.'
  ),
  'best': (
    'Protocol *best*: each method at each N at the learning rate that is best '
    'on the validation split.'
  ),
}

Line = str  # a row of a table: a method, with its momentum where several are
Column = Hashable  # the number of workers, in most tables
Results = dict[Line, dict[Column, list[dict[str, Any]]]]  # -> summaries


class Plan(NamedTuple):
  """A checked grid.

  Attributes:
    settings: {(line, column): settings}.
    columns: of the tables, in order.
    rates: learning rates to sweep, () for none.
    baselines: {line: settings of the single worker that sets the unchanged
      rate}.
    seeds: that are reported.
    search_seeds: that rates are chosen by.
    baseline_seeds: that the single worker's rate is chosen by.
    follows: whether the search of a column begins around the best rate of the
      column before, on the half-decade grid, instead of at `rates`.
    curves: whether the reported runs keep the metrics of every epoch.
  """

  settings: dict[tuple[Line, Column], settings_lib.Settings]
  columns: tuple[Column, ...]
  rates: tuple[float, ...]
  baselines: dict[Line, settings_lib.Settings]
  seeds: tuple[int, ...]
  search_seeds: tuple[int, ...] = ()
  baseline_seeds: tuple[int, ...] = ()
  follows: bool = False
  curves: bool = False

  def example(self) -> settings_lib.Settings:
    """Settings of one cell, for what all of them share."""
    return next(iter(self.settings.values()))

  def lines(self) -> tuple[Line, ...]:
    """The lines in order."""
    return tuple(dict.fromkeys(line for line, _ in self.settings))

  def first(self, number: int) -> 'Plan':
    """The plan of so many columns."""
    columns = self.columns[:number]
    kept = {key: s for key, s in self.settings.items() if key[1] in columns}
    return self._replace(settings=kept, columns=columns)

  def only(self, line: Line) -> 'Plan':
    """The plan of one line."""
    kept = {key: s for key, s in self.settings.items() if key[0] == line}
    return self._replace(settings=kept)


class Search(NamedTuple):
  """The learning rate that is best on the validation split.

  Attributes:
    settings: the settings at the optimum.
    scores: {rate: mean of the metric on the validation split}.
    bracketed: whether a rate on each side of the optimum was tried.
  """

  settings: settings_lib.Settings
  scores: dict[float, float]
  bracketed: bool


class Outcome(NamedTuple):
  """A grid under one protocol.

  Attributes:
    name: a key of `EXPLAINED`.
    results: summaries by line and column.
    unbracketed: the (line, column) whose rate is at an edge of its grid.
    scores: {(line, column): {rate: validation metric}}, where rates were swept.
  """

  name: str
  results: Results
  unbracketed: frozenset[tuple[Line, Column]] = frozenset()
  scores: dict[tuple[Line, Column], dict[float, float]] = {}  # noqa: RUF012

  def runs(self) -> list[dict[str, Any]]:
    """The summaries of all cells; cells may share some."""
    return [
      summary
      for row in self.results.values()
      for summaries in row.values()
      for summary in summaries
    ]

  def rate_text(self, line: Line, column: Column) -> str:
    """The learning rate of a cell, marked where it is at an edge."""
    runs = self.results[line][column]
    if not runs:
      return tables.MISSING
    rate = f'{runs[0]["learning_rate"]:g}'
    return rate + (' (edge)' if (line, column) in self.unbracketed else '')


Found = dict[tuple[Line, Column], Search | None]  # None where not finished


def outcomes(plan: Plan, cells: cells_lib.Cells) -> list[Outcome]:
  """What a plan gives: both protocols where it sweeps rates, else one."""
  return [
    _outcome(plan, cells, name, found)
    for name, found in searches(plan, cells).items()
  ]


def protocols(plan: Plan) -> tuple[str, ...]:
  """Keys of `EXPLAINED`: those that a plan is run under."""
  return ('unchanged', 'best') if plan.rates else ('fixed',)


def searches(plan: Plan, cells: cells_lib.Cells) -> dict[str, Found]:
  """The learning rates of all cells, by protocol."""
  if not plan.rates:
    return {
      'fixed': {key: Search(s, {}, True) for key, s in plan.settings.items()}
    }
  found = {'unchanged': {}, 'best': {}}
  for line in plan.lines():
    baseline = baseline_rate(plan, cells, line)
    own = own_rates(plan, cells, line)
    found['unchanged'] |= dict.fromkeys(own, baseline)
    found['best'] |= own
  return found


def rate_table(outcome: Outcome, columns: Iterable[Column]) -> str:
  """The learning rates of an outcome as a Markdown table."""
  columns = tuple(columns)
  rows = [
    [line, *(outcome.rate_text(line, column) for column in columns)]
    for line in outcome.results
  ]
  return tables.markdown(['learning rate', *map(str, columns)], rows)


def own_rates(plan: Plan, cells: cells_lib.Cells, line: Line) -> Found:
  """The best rate of every column of a line; see `Plan.follows`."""
  found, rates = {}, plan.rates
  seeds = plan.search_seeds or plan.seeds
  for key, settings in plan.only(line).settings.items():
    found[key] = rates and best_rate(cells, settings, rates, seeds)
    if plan.follows:  # what came before may not be finished
      rate = found[key] and found[key].settings.learning_rate
      rates = rate and half_decades(rate)
  return found


def baseline_rate(
  plan: Plan, cells: cells_lib.Cells, line: Line
) -> Search | None:
  """The single worker's best rate: all lines hang on it, so by more seeds."""
  seeds = plan.baseline_seeds or plan.seeds
  return best_rate(cells, plan.baselines[line], plan.rates, seeds)


def best_rate(
  cells: cells_lib.Cells,
  settings: settings_lib.Settings,
  rates: tuple[float, ...],
  seeds: tuple[int, ...],
) -> Search | None:
  """Finds the learning rate with the lowest validation error.

  Where the optimum is at an edge the grid is extended there, by its own ratio,
  until the optimum has a neighbour on each side, or `MAX_EXTENSIONS` are made
  at that edge. Of equal errors the smaller rate is taken.

  Args:
    cells: where runs come from.
    settings: everything but the learning rate.
    rates: increasing.
    seeds: averaged over.

  Returns:
    A `Search`; None where a run is not there and nothing is to be computed.
  """
  (down, up), scores, below, above = ratios(rates), {}, 0, 0

  def at_rate(rate):
    return with_rate(settings, float(f'{rate:.3g}'))

  def score(rate):
    at = at_rate(rate)
    runs = over_seeds(cells, at, seeds)
    if len(runs) == len(seeds):
      scores[at.learning_rate] = statistics.validation_score(
        runs, tasks.metric_of(runs)
      )
    return len(runs) == len(seeds)

  cells.together([s for r in rates for s in with_seeds(at_rate(r), seeds)])
  whole = all(score(rate) for rate in rates)
  while whole:
    best = min(scores, key=lambda rate: (scores[rate], rate))
    at_edge = best in (min(scores), max(scores))
    if best == min(scores) and below < MAX_EXTENSIONS:
      below += 1
      whole = score(rates[0] / down**below)
    elif best == max(scores) and above < MAX_EXTENSIONS:
      above += 1
      whole = score(rates[-1] * up**above)
    else:
      return Search(with_rate(settings, best), scores, not at_edge)
  return None


def with_rate(
  settings: settings_lib.Settings, learning_rate: float
) -> settings_lib.Settings:
  """The same run with another learning rate."""
  return dataclasses.replace(settings, learning_rate=learning_rate)


def with_seeds(
  settings: settings_lib.Settings, seeds: Iterable[int]
) -> list[settings_lib.Settings]:
  """The same run with other seeds."""
  return [dataclasses.replace(settings, seed=seed) for seed in seeds]


def over_seeds(
  cells: cells_lib.Cells,
  settings: settings_lib.Settings,
  seeds: Iterable[int],
  *,
  curve: bool = False,
) -> list[dict[str, Any]]:
  """The summaries of one setting over seeds, those that are there.

  See `Cells.summary`.
  """
  runs = with_seeds(settings, seeds)
  if not curve:
    cells.together(runs)
  found = [cells.summary(run, curve=curve) for run in runs]
  return [summary for summary in found if summary is not None]


def half_decades(near: float) -> tuple[float, ...]:
  """Three rates of the half-decade grid: one on each side of a rate."""
  middle = round(2 * math.log10(near))
  return tuple(10 ** (k / 2) for k in (middle - 1, middle, middle + 1))


def ratios(rates: tuple[float, ...]) -> tuple[float, float]:
  """By which a grid of rates is extended at its lower and its upper edge."""
  if len(rates) == 1:
    return math.sqrt(10), math.sqrt(10)
  return rates[1] / rates[0], rates[-1] / rates[-2]


def _outcome(plan, cells, name, found: Found) -> Outcome:
  results = {}
  for (line, column), search in found.items():
    runs = []
    if search:
      at = at_search(plan, line, column, search)
      runs = over_seeds(cells, at, plan.seeds, curve=plan.curves)
    results.setdefault(line, {})[column] = runs
  done = {key: search for key, search in found.items() if search}
  return Outcome(
    name,
    results,
    frozenset(key for key, s in done.items() if not s.bracketed),
    {key: s.scores for key, s in done.items() if s.scores},
  )


def at_search(
  plan: Plan, line: Line, column: Column, search: Search
) -> settings_lib.Settings:
  """A cell's settings at the learning rate that was found."""
  return with_rate(plan.settings[line, column], search.settings.learning_rate)
