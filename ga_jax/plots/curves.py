"""Quantities in the course of training: over epochs, or over time."""

from typing import NamedTuple

import numpy as np

from ga_jax.plots import sheet, style


class Line(NamedTuple):
  """What is drawn of a method."""

  x: np.ndarray  # [n]
  mean: np.ndarray  # [n]
  spread: np.ndarray  # [n], 0 for one run
  ends: list[tuple[float, float]]  # the last points of runs that diverged
  notes: list[str]  # what is missing


def over_time(
  runs, *, quantity: str, x: str, title: str, label_x: str, label_y: str
):
  """Draws a line per method, the mean over its seeds, with a band.

  Args:
    runs: {method: [(x [n], y [n]) per seed]}; None or NaN where nothing was
      recorded, or from where a run diverged on.
    quantity: what y is, for what is said to be missing: 'gap'.
    x: what x is: 'epoch' or 'time'.
    title: above the picture.
    label_x: of the x axis.
    label_y: of the y axis.

  Returns:
    A `Figure`. The k-th point is the mean over the k-th points of all seeds
    that have it, in x and in y; the band is their standard deviation. Crosses
    stand where runs that diverged were last finite. A quantity that spans more
    than a decade is drawn on a logarithmic axis.
  """
  figure, (axes,) = sheet.new(6.0, 4.0)
  lines = {
    name: _over_seeds(seeds or [], quantity, x)
    for name, seeds in (runs or {}).items()
  }
  handles = {}
  notes = _draw(axes, lines, style.looks(lines), handles)
  seeds = max((len(s or []) for s in (runs or {}).values()), default=0)
  if seeds == 1:
    notes.append(('', 'one run each: no bands'))
  if not any(len(line.x) for line in lines.values()):
    sheet.nothing(axes, f'no {quantity} recorded' if lines else 'no runs')
  return sheet.finish(
    figure,
    [sheet.Panel(axes, '', notes)],
    title=title,
    label_x=label_x,
    label_y=label_y,
    handles=handles,
  )


def curves(panels, *, title: str, label: str, references=()):
  """Draws a column per number of workers, a row per quantity.

  Args:
    panels: {title of a column: {quantity: {method: (x [n], y [n])}}}; a list of
      such pairs, one per seed, is drawn as `over_time` draws it.
    title: above the picture.
    label: of the x axes.
    references: up to two methods to be drawn in grey and black.

  Returns:
    A `Figure`. Quantities that span more than a decade are drawn on logarithmic
    axes.
  """
  panels = {name: column or {} for name, column in (panels or {}).items()}
  columns = max(1, len(panels))
  rows = max(1, *(len(column) for column in panels.values()), 1)
  figure, grid = sheet.new(3.4 * columns, 2.3 * rows + 0.6, rows, columns)
  looks = style.looks(
    dict.fromkeys(
      method
      for column in panels.values()
      for lines in column.values()
      for method in lines or {}
    ),
    references,
  )
  handles, drawn = {}, {}
  for j, (name, column) in enumerate(panels.items()):
    for k, (quantity, given) in enumerate(column.items()):
      axes = grid[k * columns + j]
      lines = {
        method: _over_seeds(_seeds(found), quantity, label)
        for method, found in (given or {}).items()
      }
      notes = _draw(axes, lines, looks, handles)
      if not any(len(line.x) for line in lines.values()):
        sheet.nothing(axes, f'no {quantity} recorded')
      panel = sheet.Panel(axes, f'{name}: {quantity}', notes)
      drawn[k * columns + j] = panel
  if not drawn:
    sheet.nothing(grid[0], 'no runs')
    drawn = {0: sheet.Panel(grid[0])}
  return sheet.finish(
    figure,
    [drawn[i] for i in sorted(drawn)],
    title=title,
    label_x=label,
    handles=handles,
  )


def _seeds(found) -> list:
  """A list of (x, y) as it is; one such pair as a list."""
  many = isinstance(found, list) and all(isinstance(p, tuple) for p in found)
  return found if many else [found]


def _over_seeds(seeds, quantity, name_x) -> Line:
  """Means by row over the seeds that have it."""
  pairs, ends, bad = [], [], 0
  for pair in seeds:
    x, y = (style.numbers(part) for part in pair or (None, None))
    x = x if len(x) else np.full(len(y), np.nan)
    x, y = x[: len(y)], y[: len(x)]
    pairs.append((x, y))
    kept = np.flatnonzero(~np.isnan(x + y))
    if len(kept) and np.isnan(y[-1]):
      ends.append((x[kept[-1]], y[kept[-1]]))
      bad += 1
  length = max((len(x) for x, _ in pairs), default=0)
  table = np.full((2, len(pairs), length), np.nan)
  for i, pair in enumerate(pairs):
    table[:, i, : len(pair[0])] = pair
  kept = ~np.isnan(table.sum(0))
  rows = kept.any(0)
  x, mean, spread = _moments(table[..., rows], kept[:, rows])
  notes = _notes(table, kept, quantity, name_x)
  if bad:
    notes.append(f'{bad} of {len(pairs)} runs diverged (×)')
  if len(x) > style.POINTS:
    some = np.linspace(0, len(x) - 1, style.POINTS).astype(int)
    notes.append(f'{style.POINTS:,} of {len(x):,} points are drawn')
    x, mean, spread = x[some], mean[some], spread[some]
  return Line(x, mean, spread, ends, notes)


def _moments(table, kept):
  """Mean of x, mean and standard deviation of y over the seeds, by row."""
  number = kept.sum(0)
  x, y = np.where(kept, table, 0.0).sum(1) / number
  squares = np.where(kept, (table[1] - y) ** 2, 0.0).sum(0)
  return x, y, np.sqrt(squares / np.maximum(number - 1, 1))


def _notes(table, kept, quantity, name_x) -> list[str]:
  if kept.any():
    return []
  if not table.shape[1]:
    return ['no runs']
  missing = name_x if not np.isnan(table[1]).all() else quantity
  return [f'no {missing} recorded']


def _draw(axes, lines: dict[str, Line], looks, handles):
  """Draws lines; returns notes."""
  notes = [(name, text) for name, line in lines.items() for text in line.notes]
  values = np.concatenate([line.mean for line in lines.values()] or [[]])
  positive = values[values > 0]
  log = len(positive) and max(positive) > 10 * min(positive)
  for name, (x, mean, spread, ends, _) in lines.items():
    if log and len(mean) and not np.all(mean > 0):
      zero = 'throughout' if not np.any(mean) else 'or less in part'
      notes.append((name, f'0 {zero}: not on a logarithmic axis'))
      x, mean, spread = (part[mean > 0] for part in (x, mean, spread))
    handles[name] = style.band(axes, x, mean, spread, looks[name])
    for end in ends:
      colour = looks[name]['color']
      axes.plot(*end, 'x', color=colour, markersize=9, markeredgewidth=2)
  if log:
    style.logarithmic(axes.yaxis, positive)
  places = np.concatenate([line.x for line in lines.values()] or [[]])
  if np.all(places == np.round(places)):  # epochs
    axes.xaxis.get_major_locator().set_params(integer=True)
  axes.grid(alpha=0.3)
  return notes
