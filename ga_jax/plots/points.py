"""One quantity against another, a point per arrival."""

import numpy as np

from ga_jax.plots import sheet, style

_MOST = 5000  # points of a group


def scatter(panels, *, title: str, label: str):
  """Draws points, a panel beside the other.

  Args:
    panels: {what y is: {group: (x [n], y [n])}}; what is not above 0 is left
      out, for all axes are logarithmic.
    title: above the picture.
    label: of the x axes.

  Returns:
    A `Figure`; groups differ in colour and marker.
  """
  panels = panels or {'': {}}
  columns = len(panels)
  figure, grid = sheet.new(3.9 * columns, 3.6, 1, columns)
  groups = dict.fromkeys(g for panel in panels.values() for g in panel or {})
  looks, handles, drawn = style.looks(groups), {}, []
  for axes, (name, given) in zip(grid, panels.items(), strict=True):
    notes, seen = [], np.zeros([2, 0])
    for group, pair in (given or {}).items():
      x, y = (style.numbers(part) for part in pair or (None, None))
      points = np.stack([x[: len(y)], y[: len(x)]])
      fine = np.all(np.nan_to_num(points) > 0, axis=0)
      if not fine.any():
        notes.append((group, 'no points recorded'))
      elif not fine.all():
        without = f'{fine.size - fine.sum():,} of {fine.size:,} points'
        notes.append((group, f'{without} are not above 0'))
      points = points[:, fine]
      if points.shape[1] > _MOST:
        notes.append((group, f'{_MOST:,} of {points.shape[1]:,} points drawn'))
        points = points[
          :, np.linspace(0, points.shape[1] - 1, _MOST).astype(int)
        ]
      seen = np.concatenate([seen, points], axis=1)
      look = {**looks[group], 'linestyle': 'none'}
      (handles[group],) = axes.plot(*points, markersize=3, **look)
    if seen.size:
      style.logarithmic(axes.xaxis, seen[0])
      style.logarithmic(axes.yaxis, seen[1])
      axes.grid(alpha=0.3)
    else:
      sheet.nothing(axes, 'no points recorded')
    drawn.append(sheet.Panel(axes, name, notes))
  return sheet.finish(
    figure, drawn, title=title, label_x=label, handles=handles
  )
