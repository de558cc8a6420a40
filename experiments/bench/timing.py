"""Measuring: alternate the candidates, quote the median and the extremes."""

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax


class Figure(NamedTuple):
  """Of several rounds."""

  median: float
  minimum: float
  maximum: float

  def __str__(self):
    return f'{self.median:.3g} ({self.minimum:.3g} to {self.maximum:.3g})'


def figure(values) -> Figure:
  """Median, minimum and maximum of a list of numbers."""
  return Figure(statistics.median(values), min(values), max(values))


def alternate(
  candidates: dict[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
  """Measures candidates in turn, so that drift meets all of them alike.

  Args:
    candidates: {name: function that returns what it measured}.
    rounds: how often each is called.

  Returns:
    {name: measurements}.
  """
  measured = {name: [] for name in candidates}
  for i in range(rounds):
    names = list(candidates)
    for name in names if i % 2 == 0 else reversed(names):
      measured[name].append(candidates[name]())
  return measured


def seconds(run: Callable[[], object]) -> float:
  """Wall time of one call."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def machine() -> dict[str, object]:
  """What the numbers were measured on, the load before included."""
  return {
    'device': jax.devices()[0].device_kind,
    'cores': os.cpu_count(),
    'load_before': os.getloadavg()[0],
    'jax': jax.__version__,
  }


def write(path: str, results: dict):
  """Writes a benchmark's JSON where a path was asked for."""
  if path:
    with open(path, 'w') as file:
      json.dump(results, file, indent=2)
      file.write('\n')
