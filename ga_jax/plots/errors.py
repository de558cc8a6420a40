"""The error that training ends with: over workers, and over learning rates."""

import numpy as np

from ga_jax.plots import sheet, style


def error_over_workers(cells, *, title: str, label: str):
  """Draws a line with its band per method.

  Args:
    cells: {method: {workers: list of errors in %, None for a diverged run}}.
    title: above the picture.
    label: of the y axis.

  Returns:
    A `Figure`. Points are means over the runs that did not diverge, bands their
    standard deviation. Where runs diverged a cross above says how many of how
    many. Where errors differ by more than a factor of five the y axis is
    logarithmic.
  """
  cells = {name: line or {} for name, line in (cells or {}).items()}
  figure, (axes,) = sheet.new(6.0, 4.0)
  all_workers = sorted({n for line in cells.values() for n in line})
  position = {n: i for i, n in enumerate(all_workers)}
  looks = style.looks(cells)
  handles, crosses, notes, means, most = {}, {}, [], [], 0
  for method, line in cells.items():
    points = []
    for workers in sorted(line):
      kept, number = style.finite(line[workers]), len(line[workers] or ())
      most = max(most, len(kept))
      if len(kept):
        points.append((position[workers], *style.mean_and_spread(kept)))
      if len(kept) < number:
        cross = position[workers], f'{number - len(kept)} of {number}'
        crosses.setdefault(method, []).append(cross)
    x, mean, spread = np.array(points).reshape(-1, 3).T
    means.extend(mean)
    handles[method] = style.band(axes, x, mean, spread, looks[method])
    if not points:
      notes.append((method, 'all diverged' if method in crosses else 'no runs'))
  if most == 1:
    notes.append(('', 'one run each: no bands'))
  axes.set_xticks(range(len(all_workers)), [f'{n:g}' for n in all_workers])
  axes.set_xlim(-0.5, max(0.5, len(all_workers) - 0.5))
  axes.grid(alpha=0.3)
  if means and 0 < 5 * min(means) < max(means):
    style.logarithmic(axes.yaxis, means)
  if not means:
    why = 'all runs diverged' if crosses else 'no runs'
    sheet.nothing(axes, why, keep_x=bool(crosses))
  return sheet.finish(
    figure,
    [sheet.Panel(axes, '', notes, crosses)],
    title=title,
    label_x='workers',
    label_y=label,
    handles=handles,
  )


def error_over_rates(panels, *, title: str, label: str):
  """Draws a panel per number of workers: a line per method over its rates.

  Args:
    panels: {title of a panel: {method: {learning rate: error, None where a run
      diverged}}}.
    title: above the picture.
    label: of the y axes.

  Returns:
    A `Figure`. Errors are cut at twice the lowest one of a panel: the optima
    can be read so. Crosses above a panel stand where runs diverged.
  """
  panels = dict(panels or {'': {}})
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure, grid = sheet.new(3.4 * columns, 2.9 * rows, rows, columns)
  looks = style.looks(
    dict.fromkeys(m for p in panels.values() for m in p or {})
  )
  handles, drawn = {}, []
  for axes, (name, lines) in zip(grid, panels.items(), strict=False):
    found = _rates(axes, lines or {}, looks, handles)
    drawn.append(sheet.Panel(axes, name, *found))
  return sheet.finish(
    figure,
    drawn,
    title=title,
    label_x='learning rate',
    label_y=label,
    handles=handles,
  )


def _rates(axes, panel, looks, handles):
  """Draws a panel; returns its notes and crosses."""
  notes, crosses, drawn = [], {}, {}
  for method, scores in panel.items():
    rates, errors = (
      style.numbers(scores),
      style.numbers((scores or {}).values()),
    )
    fine = rates > 0
    rates, errors = rates[fine], errors[fine]
    kept = ~np.isnan(errors)
    drawn[method] = rates[kept], errors[kept]
    if not all(kept):
      crosses[method] = [(rate, '') for rate in rates[~kept]]
    if not any(kept):
      notes.append((method, 'all diverged' if len(rates) else 'no runs'))
  lowest = min((min(e) for _, e in drawn.values() if len(e)), default=None)
  for method, (rates, errors) in drawn.items():
    (handles[method],) = axes.plot(rates, errors, **looks[method])
    if len(errors) and min(errors) > 2 * lowest > 0:
      notes.append((method, 'above the picture'))
  axes.grid(alpha=0.3)
  all_rates = [x for rates, _ in drawn.values() for x in rates]
  all_rates += [x for row in crosses.values() for x, _ in row]
  if all_rates:
    style.logarithmic(axes.xaxis, all_rates)
  if lowest is None:
    why = 'all runs diverged' if crosses else 'no runs'
    sheet.nothing(axes, why, keep_x=bool(crosses))
  elif lowest > 0:
    axes.set_ylim(0.95 * lowest, 2 * lowest)
  return notes, crosses
