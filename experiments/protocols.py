"""How learning rates are chosen when methods are compared."""

from typing import Any, NamedTuple

from experiments import grid
from experiments import settings as settings_lib

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

Results = dict[str, dict[int, list[dict[str, Any]]]]  # method, N -> summaries


class Plan(NamedTuple):
  """A checked grid.

  Attributes:
    settings: {(method, workers, momentum): settings}, momentum None for the
      rule's own.
    workers: numbers of workers.
    rates: learning rates to sweep, () for none.
    baselines: {momentum: settings of the single worker that sets the rate}.
    seeds: the seeds.
  """

  settings: dict[tuple[str, int, float | None], settings_lib.Settings]
  workers: tuple[int, ...]
  rates: tuple[float, ...]
  baselines: dict[float | None, settings_lib.Settings]
  seeds: tuple[int, ...]

  def example(self) -> settings_lib.Settings:
    """Settings of one cell, for what all of them share."""
    return next(iter(self.settings.values()))

  def label(self, name: str, momentum: float | None) -> str:
    """A method's name, with the momentum where several are compared."""
    if len({m for _, _, m in self.settings}) == 1:
      return name
    return f'{name}, momentum {momentum:g}'


class Outcome(NamedTuple):
  """A grid under one protocol.

  Attributes:
    name: a key of `EXPLAINED`.
    results: summaries by method and number of workers.
    unbracketed: the (method, workers) whose rate is at an edge of its grid.
  """

  name: str
  results: Results
  unbracketed: frozenset[tuple[str, int]] = frozenset()


def fixed(plan: Plan, cells: grid.Cells) -> Outcome:
  """Every method and N at the learning rate that was given."""
  results = {}
  for (name, n, momentum), settings in plan.settings.items():
    line = results.setdefault(plan.label(name, momentum), {})
    line[n] = grid.over_seeds(cells, settings, plan.seeds)
  return Outcome('fixed', results)


def sweep(plan: Plan, cells: grid.Cells) -> list[Outcome]:
  """Both protocols: the single worker's best rate, and each method's own."""
  baselines = {
    momentum: grid.best_rate(cells, settings, plan.rates, plan.seeds)
    for momentum, settings in plan.baselines.items()
  }
  chosen = {'unchanged': {}, 'best': {}}
  unbracketed = {'unchanged': set(), 'best': set()}
  for (name, n, momentum), settings in plan.settings.items():
    label = plan.label(name, momentum)
    searches = {
      'unchanged': baselines[momentum],
      'best': grid.best_rate(cells, settings, plan.rates, plan.seeds),
    }
    for protocol, search in searches.items():
      at = grid.with_values(settings, search.settings.learning_rate, momentum)
      line = chosen[protocol].setdefault(label, {})
      line[n] = grid.over_seeds(cells, at, plan.seeds)
      if not search.bracketed:
        unbracketed[protocol].add((label, n))
  return [
    Outcome(name, results, frozenset(unbracketed[name]))
    for name, results in chosen.items()
  ]
