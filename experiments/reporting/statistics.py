"""Numbers of several runs: errors, means and paired differences.

A run is its summary; runs of one setting stand in the order of their seeds.
"""

from typing import Any

import numpy as np

from experiments import tasks

Summary = dict[str, Any]
SYNCHRONOUS = 'ssgd'  # what speed-ups are measured against, beside one worker


def error(summary: Summary | None, metric: tasks.Metric) -> float | None:
  """A run's metric as it is shown; None where it diverged or has none."""
  found = summary and summary.get(f'test_{metric.name}')
  if found is None or summary['diverged']:
    return None
  return metric.scale * found


def errors(summaries: list[Summary]) -> list[float | None]:
  """The metric on the test split as it is shown, None where diverged."""
  metric = tasks.metric_of(summaries)
  return [error(summary, metric) for summary in summaries]


def validation_score(
  summaries: list[Summary | None], metric: tasks.Metric
) -> float | None:
  """Mean of the metric on the validation split, its worst where diverged.

  Args:
    summaries: None for a run that has not ended.
    metric: what they are judged by.

  Returns:
    The mean, not scaled; None where a run has no such metric.
  """
  name = f'validation_{metric.name}'
  found = [
    metric.worst if s and s['diverged'] else s and s.get(name)
    for s in summaries
  ]
  if not found or None in found:
    return None
  return float(np.mean(found))


def mean(summaries: list[Summary], name: str) -> float:
  """The mean of one of their numbers."""
  return float(np.mean([summary[name] for summary in summaries]))


def by_epoch(summaries: list[Summary], name: str) -> np.ndarray:
  """The mean of a number of their curves, [epochs]."""
  rows = [[row[name] for row in summary['curve']] for summary in summaries]
  return np.mean(rows, axis=0)


def pace(summary: Summary) -> float | None:
  """Simulated time per batch; None of a run that was not simulated."""
  time, batches = summary.get('simulated_time'), summary.get('batches')
  return None if time is None or batches is None else time / batches


def totals(summaries: list[Summary]) -> tuple[int, float]:
  """Updates and seconds of all of them."""
  return (
    sum(summary['updates'] for summary in summaries),
    sum(summary['wall_seconds'] for summary in summaries),
  )


def time_to(summary: Summary, target: float) -> float | None:
  """The time at the end of the first epoch whose error is at a target.

  Args:
    summary: of a run with its curve.
    target: of the metric on the test split, not scaled.

  Returns:
    The time; None where the run diverged or never was there.
  """
  if summary['diverged']:
    return None
  name = f'test_{tasks.metric_of([summary]).name}'
  return next(
    (row['time'] for row in summary['curve'] if row[name] <= target), None
  )


def mean_text(values: list[float]) -> str:
  """'mean ± standard deviation' of some numbers."""
  text = f'{np.mean(values):.2f}'
  if len(values) > 1:
    text += f' ± {np.std(values, ddof=1):.2f}'
  return text


def difference_text(apart: list[float]) -> str:
  """'mean (how many standard errors of it)' of paired differences."""
  middle, text = np.mean(apart), f'{np.mean(apart):+.2f}'
  if len(apart) < 2 or not np.ptp(apart):
    return text
  spread = np.std(apart, ddof=1) / np.sqrt(len(apart))
  return f'{text} ({abs(middle) / spread:.1f})'
