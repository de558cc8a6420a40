"""Measuring: alternate the candidates, quote the median and the extremes.

Every benchmark ends with `finish`, which prints what was aimed at beside what
was seen and writes JSON of one form:

  {'command': ..., 'machine': {...}, 'printed': [...], 'rows': [...],
   'targets': [{'what': ..., 'measured': {'median': ..., 'minimum': ...,
   'maximum': ...}, 'bound': ..., 'at_least': ..., 'met': ...}]}

where the rows are the benchmark's own, and printed what it gave to `say`.
`experiments.bench.all` makes a page of these files.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.running import accelerators
from experiments.settings import path_flags
from ga_jax.record import files

_JSON = path_flags.output('json', '', 'also write the figures here')
_SAID: list[str] = []


class Figure(NamedTuple):
  """Of several rounds."""

  median: float
  minimum: float
  maximum: float

  def __str__(self):
    return f'{self.median:.3g} ({self.minimum:.3g} to {self.maximum:.3g})'


class Target(NamedTuple):
  """What was aimed at, and what was seen.

  Attributes:
    what: was measured, its unit or yardstick included.
    measured: in several rounds.
    bound: of the median.
    at_least: whether the bound is a lower one.
  """

  what: str
  measured: Figure
  bound: float
  at_least: bool = False

  @property
  def met(self) -> bool:
    """Whether the median keeps the bound."""
    median = self.measured.median
    return median >= self.bound if self.at_least else median <= self.bound

  def __str__(self):
    side = 'at least' if self.at_least else 'at most'
    verdict = 'met' if self.met else 'MISSED'
    return f'{self.what}: {self.measured}, {side} {self.bound:g}: {verdict}'


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
  """What the numbers were measured on, the load before included; says it."""
  accelerators.say(accelerators.here())
  return {
    'device': jax.devices()[0].device_kind,
    'cores': os.cpu_count(),
    'load_before': os.getloadavg()[0],
    'jax': jax.__version__,
  }


def ratios(values, yardstick) -> Figure:
  """Of measurements over those of the same round of another candidate."""
  return figure([a / b for a, b in zip(values, yardstick, strict=True)])


def say(line: object = ''):
  """Prints a line that belongs to the benchmark's result."""
  print(line, flush=True)
  _SAID.append(str(line))


def finish(where: dict[str, object], rows: list[dict], targets=()):
  """Prints the targets and writes the JSON where --json asks for it.

  Args:
    where: of `machine`, called before anything was measured.
    rows: the benchmark's own figures.
    targets: `Target`s.
  """
  for target in targets:
    print(target)
  write(where, rows, targets)


def write(where: dict[str, object], rows: list[dict], targets=()):
  """Writes what there is so far; see `finish`."""
  if _JSON.value:
    met = [
      {**t._asdict(), 'measured': t.measured._asdict(), 'met': t.met}
      for t in targets
    ]
    results = {
      'command': _command(),
      'machine': where,
      'printed': _SAID,
      'targets': met,
      'rows': rows,
    }
    files.write_json(_JSON.value, results)


def written() -> dict[str, Any]:
  """What --json holds from an earlier call; {} where there is nothing."""
  if not (_JSON.value and os.path.exists(_JSON.value)):
    return {}
  with open(_JSON.value, encoding='utf-8') as file:
    return json.load(file)


def _command() -> str:
  """By which this program was started."""
  name = sys.modules['__main__'].__spec__.name
  given = [flag for flag in sys.argv[1:] if not flag.startswith('--json')]
  return ' '.join(['python', '-m', name, *given])
