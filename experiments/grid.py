"""A grid of runs: cells, their results on disk, and the two protocols."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from experiments import environment, run
from experiments import settings as settings_lib
from ga_jax import metrics

MAX_EXTENSIONS = 6  # steps by which a grid of rates grows at each edge


def momentum_of(settings: settings_lib.Settings) -> float | None:
  """The momentum given explicitly, None for the rule's own."""
  return dict(settings.parameters).get('momentum')


def with_values(
  settings: settings_lib.Settings,
  learning_rate: float,
  momentum: float | None,
) -> settings_lib.Settings:
  """The same run with another learning rate and momentum."""
  params = dict(settings.parameters)
  if momentum is not None:
    params['momentum'] = momentum
  return dataclasses.replace(
    settings,
    learning_rate=learning_rate,
    parameters=tuple(sorted(params.items())),
  )


class Cells:
  """Runs settings and remembers their summaries in a folder."""

  def __init__(self, folder: str, advance: Callable[[str], None]):
    os.makedirs(folder, exist_ok=True)
    self._folder = folder
    self._advance = advance
    self.computed = 0

  def summary(self, settings: settings_lib.Settings) -> dict[str, Any]:
    """The summary of a run: from disk where it is finished, else by running.

    Args:
      settings: checked settings.

    Returns:
      The summary, as `run.train` makes it.
    """
    path = os.path.join(self._folder, cell_name(settings) + '.json')
    summary = self._read(path)
    if summary is None:
      summary = run.train(settings, evaluate_epochs=False).summary
      metrics.write_json(path, summary)
      self.computed += 1
    self._advance(os.path.basename(path)[:-5])
    return summary

  def _read(self, path):
    try:
      with open(path) as file:
        return json.load(file)
    except (FileNotFoundError, ValueError):  # not there, or damaged: not JSON
      return None


def cell_name(settings: settings_lib.Settings) -> str:
  """A file name that differs wherever settings or versions differ."""
  text = json.dumps(
    [metrics.to_json(dataclasses.asdict(settings)), environment.versions()],
    sort_keys=True,
  )
  digest = hashlib.sha256(text.encode()).hexdigest()[:10]
  s = settings
  momentum = momentum_of(s)
  tail = '' if momentum is None else f'-m{momentum:g}'
  return (
    f'{s.method}-N{s.workers}-lr{s.learning_rate:g}{tail}-seed{s.seed}-{digest}'
  )


def over_seeds(
  cells: Cells, settings: settings_lib.Settings, seeds: Iterable[int]
) -> list[dict[str, Any]]:
  """The summaries of one setting over seeds."""
  return [
    cells.summary(dataclasses.replace(settings, seed=seed)) for seed in seeds
  ]


def validation_score(summaries: list[dict[str, Any]]) -> float:
  """Mean validation error; a diverged run counts as an error of 1."""
  return float(
    np.mean(
      [1.0 if s['diverged'] else s['validation_error'] for s in summaries]
    )
  )


def ratios(rates: tuple[float, ...]) -> tuple[float, float]:
  """By which a grid of rates is extended at its lower and its upper edge."""
  if len(rates) == 1:
    return math.sqrt(10), math.sqrt(10)
  return rates[1] / rates[0], rates[-1] / rates[-2]


class Search(NamedTuple):
  """The learning rate that is best on the validation split.

  Attributes:
    settings: the settings at the optimum.
    scores: {rate: mean validation error}.
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
    run_settings = with_values(settings, rate, momentum_of(settings))
    scores[rate] = validation_score(over_seeds(cells, run_settings, seeds))

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
      found = with_values(settings, best, momentum_of(settings))
      return Search(found, scores, not at_edge)
