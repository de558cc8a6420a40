"""Sorts runs into the lines of a comparison: method, workers, rate, seed.

A line is a method, with those settings beside workers, learning rate and seed
that differ among the runs. Where several learning rates of a line were run at
one N, each with a validation metric, a cell is at the rate that is best on the
validation split, over the seeds that all its rates have; else the rate is a
setting like the others.
"""

import dataclasses
from typing import Any, NamedTuple

from experiments import tasks
from experiments.records import finished as runs_lib
from experiments.reporting import statistics
from experiments.settings import setting
from experiments.settings import table as settings_lib

AXES = ('workers', 'learning_rate', 'seed')
MISSING = ''  # a parameter that was not given


class Cell(NamedTuple):
  """The runs of one line, number of workers and learning rate.

  Attributes:
    line: its label.
    method: of the line.
    workers: N.
    rate: the learning rate.
    runs: by seed.
    edge: whether the rate is the lowest or highest of several that were run.
  """

  line: str
  method: str
  workers: int
  rate: float
  runs: list[runs_lib.SavedRun]
  edge: bool = False

  def finished(self) -> list[runs_lib.SavedRun]:
    """The runs that ended with finite numbers."""
    return [one for one in self.runs if one.summary and not one.diverged]


class Comparison(NamedTuple):
  """All runs of a report, sorted.

  Attributes:
    seen: the runs.
    metric: what they are judged by.
    varied: names of the settings that differ, beside `AXES`.
    cells: what is shown, by line and workers.
    rates: {(line, workers): {rate: runs}} where several rates were run.
    baseline: the method that the others are compared with.
  """

  seen: list[runs_lib.SavedRun]
  metric: tasks.Metric
  varied: tuple[str, ...]
  cells: list[Cell]
  rates: dict[tuple[str, int], dict[float, list[runs_lib.SavedRun]]]
  baseline: str

  def lines(self) -> list[str]:
    """Labels in order."""
    return list(dict.fromkeys(cell.line for cell in self.cells))

  def workers(self) -> list[int]:
    """All N."""
    return sorted({cell.workers for cell in self.cells})

  def error(self, one: runs_lib.SavedRun) -> float | None:
    """A run's metric as it is shown; None where it has none."""
    return statistics.error(one.summary, self.metric)

  def partner(self, cell: Cell) -> Cell | None:
    """The baseline's cell of the same N and, where there is one, settings."""
    label = self.baseline + cell.line.removeprefix(cell.method)
    at = [
      other
      for other in self.cells
      if other.method == self.baseline and other.workers == cell.workers
    ]
    same = [other for other in at if other.line == label]
    found = same or at
    return found[0] if len(found) == 1 and found[0] != cell else None


def compared(seen: list[runs_lib.SavedRun], baseline: str = '') -> Comparison:
  """Sorts runs.

  Args:
    seen: at least one.
    baseline: a method; by default asgd where there is one, else the first.

  Returns:
    A `Comparison`.

  Raises:
    SettingError: the runs are of several tasks, or none is of the baseline.
  """
  metric = metric_of(seen)
  methods = list(dict.fromkeys(one.settings.method for one in seen))
  if baseline and baseline not in methods:
    raise settings_lib.SettingError(
      'baseline', baseline, f'must be one of {", ".join(methods)}'
    )
  varied = differing(seen)
  labels = _labels(seen, varied)
  sorted_ = _sorted(seen, labels)
  if not _searched(sorted_, metric):
    varied = differing(seen, ('workers', 'seed'))
    labels = _labels(seen, varied)
    sorted_ = _sorted(seen, labels)
  cells = [
    _chosen(line, workers, rates, metric)
    for (line, workers), rates in sorted_.items()
  ]
  several = {key: rates for key, rates in sorted_.items() if len(rates) > 1}
  chosen = baseline or ('asgd' if 'asgd' in methods else methods[0])
  return Comparison(seen, metric, varied, cells, several, chosen)


def metric_of(seen: list[runs_lib.SavedRun]) -> tasks.Metric:
  """What the runs are judged by."""
  found = [one.summary or (one.rows[-1] if one.rows else None) for one in seen]
  found = [summary for summary in found if summary]
  if not found:
    return tasks.ERROR  # nothing is shown of it
  try:
    return tasks.metric_of(found)
  except ValueError as error:
    folders = ','.join(dict.fromkeys(one.folder for one in seen))
    raise settings_lib.SettingError(
      'workdir', folders, 'must be runs of tasks that are judged alike'
    ) from error


def flat(one: runs_lib.SavedRun) -> dict[str, Any]:
  """A run's settings by name, the parameters of its parts among them."""
  settings = one.settings
  if not one.known:
    return {'method': settings.method, 'clock': settings.clock}
  values = {
    field.name: getattr(settings, field.name)
    for field in dataclasses.fields(settings)
  }
  return values | dict(values.pop('parameters'))


def differing(
  seen: list[runs_lib.SavedRun], axes: tuple[str, ...] = AXES
) -> tuple[str, ...]:
  """Names of the settings that are not the same in all runs."""
  values = [flat(one) for one in seen]
  complete = [flat(one) for one in seen if one.known]
  names = dict.fromkeys(name for v in values for name in v)

  def differs(name):
    of_all = name in ('method', 'clock')
    found = [v.get(name, MISSING) for v in (values if of_all else complete)]
    return any(value != found[0] for value in found)

  return tuple(name for name in names if name not in axes and differs(name))


def _labels(seen, varied) -> list[str]:
  """A label per run, and the folder where labels do not tell runs apart."""
  labels = []
  for one in seen:
    values = flat(one)
    rest = [
      f'{name} {setting.text_of(values[name])}'
      for name in varied
      if name != 'method' and values.get(name, MISSING) not in (MISSING, ())
    ]
    labels.append(', '.join([one.settings.method, *rest]))
  folders = {}
  for label, one in zip(labels, seen, strict=True):
    s = one.settings
    at = folders.setdefault((label, s.workers, s.learning_rate, s.seed), [])
    at.append(one.folder)
  twice = {key[0] for key, found in folders.items() if len(set(found)) > 1}
  return [
    f'{label}, {one.folder}' if label in twice else label
    for label, one in zip(labels, seen, strict=True)
  ]


def _sorted(seen, labels):
  """{(line, workers): {rate: runs by seed}}, lines in their own order."""
  order = {label: i for i, label in enumerate(dict.fromkeys(labels))}
  found = {}
  for label, one in sorted(
    zip(labels, seen, strict=True),
    key=lambda pair: (
      order[pair[0]],
      pair[1].settings.workers,
      pair[1].settings.learning_rate,
      pair[1].settings.seed,
    ),
  ):
    s = one.settings
    rates = found.setdefault((label, s.workers), {})
    by_seed = rates.setdefault(s.learning_rate, {})
    by_seed[s.seed] = one  # of other versions the last one counts
  return {
    key: {rate: list(runs.values()) for rate, runs in rates.items()}
    for key, rates in found.items()
  }


def _searched(sorted_, metric) -> bool:
  """Whether rates can be chosen wherever there are several."""
  return all(
    score(runs, metric) is not None
    for rates in sorted_.values()
    if len(rates) > 1
    for runs in rates.values()
  )


def score(runs: list[runs_lib.SavedRun], metric: tasks.Metric) -> float | None:
  """See `statistics.validation_score`."""
  return statistics.validation_score([one.summary for one in runs], metric)


def _chosen(line, workers, rates, metric) -> Cell:
  """The cell at the best rate; of equal ones the smaller."""
  best = min(rates)
  if len(rates) > 1:
    common = set.intersection(
      *({one.settings.seed for one in found} for found in rates.values())
    )

    def badness(rate):
      kept = [o for o in rates[rate] if o.settings.seed in common]
      return score(kept or rates[rate], metric), rate

    best = min(rates, key=badness)
  method = rates[best][0].settings.method
  edge = len(rates) > 1 and best in (min(rates), max(rates))
  return Cell(line, method, workers, best, rates[best], edge)
