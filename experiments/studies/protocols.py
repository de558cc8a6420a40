"""How learning rates are chosen when methods are compared."""

from collections.abc import Hashable
from typing import Any, NamedTuple

from experiments.records import cells as cells_lib
from experiments.settings import table as settings_lib
from experiments.studies import rate_search

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
      search = rate_search.best_rate(cells, settings, rates, seeds)
      found['best'][line, column] = search
      found['unchanged'][line, column] = baseline
      if plan.follows:
        rates = rate_search.half_decades(search.settings.learning_rate)
  return [
    _outcome(plan, cells, name, searches) for name, searches in found.items()
  ]


def outcomes(plan: Plan, cells: cells_lib.Cells) -> list[Outcome]:
  """What a plan gives: both protocols where it sweeps rates, else one."""
  return sweep(plan, cells) if plan.rates else [fixed(plan, cells)]


def baseline_rate(plan, cells, line) -> rate_search.Search:
  """The single worker's best rate: all lines hang on it, so by all seeds."""
  return rate_search.best_rate(
    cells, plan.baselines[line], plan.rates, plan.seeds
  )


def _outcome(plan, cells, name, searches) -> Outcome:
  results = {}
  for (line, column), search in searches.items():
    rate = search.settings.learning_rate
    at = rate_search.with_rate(plan.settings[line, column], rate)
    results.setdefault(line, {})[column] = _reported(plan, cells, at)
  return Outcome(
    name,
    results,
    frozenset(key for key, s in searches.items() if not s.bracketed),
    {key: search.scores for key, search in searches.items()},
  )


def _reported(plan, cells, settings):
  how = {'curve': True} if plan.curves else {}
  return rate_search.over_seeds(cells, settings, plan.seeds, **how)
