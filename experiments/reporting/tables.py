"""Markdown tables of grids."""

import os
from typing import Any

import numpy as np

from experiments import tasks
from experiments.running import environment
from ga_jax.record import files


def errors(summaries: list[dict[str, Any]]) -> list[float | None]:
  """The metric on the test split as it is shown, None where diverged."""
  metric = tasks.metric_of(summaries)
  name = f'test_{metric.name}'
  return [None if s['diverged'] else metric.scale * s[name] for s in summaries]


def cell_text(summaries: list[dict[str, Any]]) -> str:
  """'mean ± std' of the test errors in %, and what diverged."""
  kept = [error for error in errors(summaries) if error is not None]
  diverged = len(summaries) - len(kept)
  if not kept:
    return 'diverged'
  text = mean_text(kept)
  if diverged:
    text += f' ({diverged} of {len(summaries)} diverged)'
  return text


def mean_text(values: list[float]) -> str:
  """'mean ± standard deviation' of some numbers."""
  text = f'{np.mean(values):.2f}'
  if len(values) > 1:
    text += f' ± {np.std(values, ddof=1):.2f}'
  return text


def difference(ours: list[dict[str, Any]], theirs) -> str:
  """'mean (standard errors)' of paired differences; '' where it says nothing.

  Args:
    ours: summaries by seed.
    theirs: of the same seeds.
  """
  pairs = zip(errors(ours), errors(theirs), strict=True)
  apart = [a - b for a, b in pairs if a is not None and b is not None]
  if len(apart) < max(2, len(ours)) or not np.any(apart):
    return ''
  mean, spread = np.mean(apart), np.std(apart, ddof=1) / np.sqrt(len(apart))
  return f'{mean:+.2f} ({abs(mean) / spread:.1f})'


def error_table(
  results: dict[str, dict[int, list[dict[str, Any]]]], workers: tuple[int, ...]
) -> str:
  """One row per method, one column per number of workers."""
  head = ['method', *(f'{n} worker{"s" if n > 1 else ""}' for n in workers)]
  rows = [
    [name, *(cell_text(line[n]) for n in workers)]
    for name, line in results.items()
  ]
  return markdown(head, rows)


def rate_table(outcome, workers: tuple[int, ...]) -> str:
  """The learning rates of an `Outcome`, edges of a grid marked."""

  def text(name, n):
    rate = f'{outcome.results[name][n][0]["learning_rate"]:g}'
    return rate + (' (edge)' if (name, n) in outcome.unbracketed else '')

  head = ['learning rate', *(str(n) for n in workers)]
  rows = [[name, *(text(name, n) for n in workers)] for name in outcome.results]
  return markdown(head, rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
  """A Markdown table, its columns aligned for reading as text."""
  widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

  def line(row):
    cells = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    return '| ' + ' | '.join(cells) + ' |'

  rule = '|' + '|'.join('-' * (w + 2) for w in widths) + '|'
  return '\n'.join([line(head), rule, *map(line, rows)])


def write(workdir: str, results, text: str):
  """Writes results.json, versions.json and table.md, and prints the table."""
  files.write_json(os.path.join(workdir, 'results.json'), results)
  files.write_json(
    os.path.join(workdir, 'versions.json'), environment.versions()
  )
  write_page(os.path.join(workdir, 'table.md'), text)


def write_page(path: str, text: str):
  """Writes a page, whole or not at all, and prints it."""
  with files.replacing(path) as partial, open(partial, 'w') as file:
    file.write(text)
  print(text)
  print(f'Written to {path}')


def totals(results) -> tuple[int, float]:
  """Updates and seconds of all runs in a grid."""
  summaries = [
    s for line in results.values() for cell in line.values() for s in cell
  ]
  return (
    sum(s['updates'] for s in summaries),
    sum(s['wall_seconds'] for s in summaries),
  )
