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
    rate = f'{self.results[line][column][0]["learning_rate"]:g}'
    return rate + (' (edge)' if (line, column) in self.unbracketed else '')


def outcomes(plan: Plan, cells: cells_lib.Cells) -> list[Outcome]:
  """What a plan gives: both protocols where it sweeps rates, else one."""
  return sweep(plan, cells) if plan.rates else [fixed(plan, cells)]


def rate_table(outcome: Outcome, columns: Iterable[Column]) -> str:
  """The learning rates of an outcome as a Markdown table."""
  rows = [
    [line, *(outcome.rate_text(line, column) for column in columns)]
    for line in outcome.results
  ]
  return tables.markdown(['learning rate', *map(str, columns)], rows)


def fixed(plan: Plan, cells: cells_lib.Cells) -> Outcome:
  """Every line and column at the learning rate that was given."""
  results = {}
  for (line, column), settings in plan.settings.items():
    results.setdefault(line, {})[column] = _reported(plan, cells, settings)
  return Outcome('fixed', results)


def sweep(plan: Plan, cells: cells_lib.Cells) -> list[Outcome]:
  """Both protocols: the single worker's best rate, and each cell's own."""
  found = {'unchanged': {}, 'best': {}}
  for line in plan.lines():
    rates, seeds = plan.rates, plan.search_seeds or plan.seeds
    baseline = baseline_rate(plan, cells, line)
    for (_, column), settings in plan.only(line).settings.items():
      search = best_rate(cells, settings, rates, seeds)
      found['best'][line, column] = search
      found['unchanged'][line, column] = baseline
      if plan.follows:
        rates = half_decades(search.settings.learning_rate)
  return [
    _outcome(plan, cells, name, searches) for name, searches in found.items()
  ]


def baseline_rate(plan: Plan, cells: cells_lib.Cells, line: Line) -> Search:
  """The single worker's best rate: all lines hang on it, so by more seeds."""
  seeds = plan.baseline_seeds or plan.seeds
  return best_rate(cells, plan.baselines[line], plan.rates, seeds)


def best_rate(
  cells: cells_lib.Cells,
  settings: settings_lib.Settings,
  rates: tuple[float, ...],
  seeds: tuple[int, ...],
) -> Search:
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
    A `Search`.
  """
  (down, up), scores, below, above = ratios(rates), {}, 0, 0

  def score(rate):
    rate = float(f'{rate:.3g}')
    at = with_rate(settings, rate)
    runs = over_seeds(cells, at, seeds)
    scores[rate] = statistics.validation_score(runs, tasks.metric_of(runs))

  for rate in rates:
    score(rate)
  while True:
    best = min(scores, key=lambda rate: (scores[rate], rate))
    at_edge = best in (min(scores), max(scores))
    if best == min(scores) and below < MAX_EXTENSIONS:
      below += 1
      score(rates[0] / down**below)
    elif best == max(scores) and above < MAX_EXTENSIONS:
      above += 1
      score(rates[-1] * up**above)
    else:
      return Search(with_rate(settings, best), scores, not at_edge)


def with_rate(
  settings: settings_lib.Settings, learning_rate: float
) -> settings_lib.Settings:
  """The same run with another learning rate."""
  return dataclasses.replace(settings, learning_rate=learning_rate)


def over_seeds(
  cells: cells_lib.Cells,
  settings: settings_lib.Settings,
  seeds: Iterable[int],
  *,
  curve: bool = False,
) -> list[dict[str, Any]]:
  """The summaries of one setting over seeds; see `Cells.summary`."""
  return [
    cells.summary(dataclasses.replace(settings, seed=seed), curve=curve)
    for seed in seeds
  ]


def half_decades(near: float) -> tuple[float, ...]:
  """Three rates of the half-decade grid: one on each side of a rate."""
  middle = round(2 * math.log10(near))
  return tuple(10 ** (k / 2) for k in (middle - 1, middle, middle + 1))


def ratios(rates: tuple[float, ...]) -> tuple[float, float]:
  """By which a grid of rates is extended at its lower and its upper edge."""
  if len(rates) == 1:
    return math.sqrt(10), math.sqrt(10)
  return rates[1] / rates[0], rates[-1] / rates[-2]


def _outcome(plan, cells, name, searches) -> Outcome:
  results = {}
  for (line, column), search in searches.items():
    rate = search.settings.learning_rate
    at = with_rate(plan.settings[line, column], rate)
    results.setdefault(line, {})[column] = _reported(plan, cells, at)
  return Outcome(
    name,
    results,
    frozenset(key for key, s in searches.items() if not s.bracketed),
    {key: search.scores for key, search in searches.items()},
  )


def _reported(plan, cells, settings):
  return over_seeds(cells, settings, plan.seeds, curve=plan.curves)
