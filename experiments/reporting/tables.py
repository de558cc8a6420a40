"""Markdown tables of grids."""

import os
from typing import Any

from experiments.reporting import statistics
from experiments.running import environment
from ga_jax.record import files

MISSING = '–'  # in the place of what is not finished


def cell_text(summaries: list[dict[str, Any]], seeds: int = 0) -> str:
  """'mean ± std' of the test errors in %, and what diverged.

  Args:
    summaries: of the runs.
    seeds: how many there are to be; where fewer are there it is said.
  """
  if not summaries:
    return MISSING
  kept = [error for error in statistics.errors(summaries) if error is not None]
  diverged = len(summaries) - len(kept)
  text = statistics.mean_text(kept) if kept else 'diverged'
  if kept and diverged:
    text += f' ({diverged} of {len(summaries)} diverged)'
  if len(summaries) < seeds:
    text += f' ({len(summaries)} of {seeds} seeds)'
  return text


def difference(ours: list[dict[str, Any]], theirs) -> str:
  """'mean (standard errors)' of paired differences; '' where it says nothing.

  Args:
    ours: summaries.
    theirs: likewise; compared are those of the same seeds.
  """
  if not (ours and theirs):
    return ''
  first, second = (
    {s['seed']: error for s, error in zip(runs, found, strict=True)}
    for runs, found in zip(
      (ours, theirs), map(statistics.errors, (ours, theirs)), strict=True
    )
  )
  pairs = [(first[s], second[s]) for s in first if s in second]
  apart = [a - b for a, b in pairs if a is not None and b is not None]
  if len(apart) < max(2, len(pairs)) or not any(apart):
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
