"""Markdown tables of grids."""

import os
from typing import Any

from experiments.reporting import statistics
from experiments.running import environment
from ga_jax.record import files


def cell_text(summaries: list[dict[str, Any]]) -> str:
  """'mean ± std' of the test errors in %, and what diverged."""
  kept = [error for error in statistics.errors(summaries) if error is not None]
  diverged = len(summaries) - len(kept)
  if not kept:
    return 'diverged'
  text = statistics.mean_text(kept)
  if diverged:
    text += f' ({diverged} of {len(summaries)} diverged)'
  return text


def difference(ours: list[dict[str, Any]], theirs) -> str:
  """'mean (standard errors)' of paired differences; '' where it says nothing.

  Args:
    ours: summaries by seed.
    theirs: of the same seeds.
  """
  pairs = zip(*map(statistics.errors, (ours, theirs)), strict=True)
  apart = [a - b for a, b in pairs if a is not None and b is not None]
  if len(apart) < max(2, len(ours)) or not any(apart):
    return ''
  return statistics.difference_text(apart)


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
  files.write_text(path, text)
  print(text)
  print(f'Written to {path}')
