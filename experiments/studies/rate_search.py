"""The learning rate that is best for a setting."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from experiments import tasks
from experiments.records.cells import Cells
from experiments.settings import table as settings_lib

MAX_EXTENSIONS = 6  # steps by which a grid of rates grows at each edge


def with_rate(
  settings: settings_lib.Settings, learning_rate: float
) -> settings_lib.Settings:
  """The same run with another learning rate."""
  return dataclasses.replace(settings, learning_rate=learning_rate)


def over_seeds(
  cells: Cells,
  settings: settings_lib.Settings,
  seeds: Iterable[int],
  **how,
) -> list[dict[str, Any]]:
  """The summaries of one setting over seeds; see `Cells.summary`."""
  return [
    cells.summary(dataclasses.replace(settings, seed=seed), **how)
    for seed in seeds
  ]


def validation_score(summaries: list[dict[str, Any]]) -> float:
  """Mean of the metric on the validation split; its worst where diverged."""
  metric = tasks.metric_of(summaries)
  name = f'validation_{metric.name}'
  return float(
    np.mean([metric.worst if s['diverged'] else s[name] for s in summaries])
  )


def half_decades(near: float) -> tuple[float, ...]:
  """Three rates of the half-decade grid: one on each side of a rate."""
  middle = round(2 * math.log10(near))
  return tuple(10 ** (k / 2) for k in (middle - 1, middle, middle + 1))


def ratios(rates: tuple[float, ...]) -> tuple[float, float]:
  """By which a grid of rates is extended at its lower and its upper edge."""
  if len(rates) == 1:
    return math.sqrt(10), math.sqrt(10)
  return rates[1] / rates[0], rates[-1] / rates[-2]


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


def best_rate(
  cells: Cells,
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
    scores[rate] = validation_score(over_seeds(cells, at, seeds))

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
