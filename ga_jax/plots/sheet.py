"""The sheet that a picture stands on: panels, legend, and what is missing."""

import textwrap
from typing import Any, NamedTuple

from ga_jax.plots import style

_LINES = 36  # of a legend's column
_SPOKEN = 6  # names that are listed where something is missing
_ROW = 11  # points, of crosses above a panel


class Panel(NamedTuple):
  """A panel that was drawn.

  Attributes:
    axes: matplotlib's.
    name: above it; '' where there is one panel only.
    notes: what is missing: (method, what), as ('sa', 'no gap recorded'); the
      name is '' for what concerns no method.
    crosses: runs that diverged: {method: [(x, what stands beside the cross)]}.
  """

  axes: Any
  name: str = ''
  notes: list[tuple[str, str]] = []  # noqa: RUF012
  crosses: dict[str, list[tuple[float, str]]] = {}  # noqa: RUF012


def new(width: float, height: float, rows: int = 1, columns: int = 1):
  """A figure and its axes, row by row.

  Args:
    width: in inches, without the legend.
    height: in inches, without crosses and notes.
    rows: of panels.
    columns: of panels.

  Returns:
    (Figure, list of axes).
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def nothing(axes, why: str, keep_x: bool = False):
  """Says in an empty panel why it is empty.

  Args:
    axes: the panel.
    why: as 'no runs'.
    keep_x: whether the x axis stays: there are crosses above it.
  """
  axes.set_yticks([])
  if not keep_x:
    axes.set_xticks([])
  axes.text(
    0.5,
    0.5,
    textwrap.fill(f'nothing to draw: {why}', 30),
    transform=axes.transAxes,
    ha='center',
    va='center',
    color=style.GREY,
  )


def finish(
  figure,
  panels: list[Panel],
  *,
  title: str,
  label_x: str = '',
  label_y: str = '',
  handles: dict[str, Any] | None = None,
):
  """Adds title, labels, one legend, crosses, and what is missing.

  Args:
    figure: the picture.
    panels: row by row; axes that are not among them are hidden.
    title: above it.
    label_x: below all panels.
    label_y: beside all panels.
    handles: {name: what it looks like}, for the legend.

  Returns:
    The figure.
  """
  drawn = [panel.axes for panel in panels]
  for axes in figure.axes:
    if axes not in drawn:
      axes.set_axis_off()
  columns = drawn[0].get_gridspec().ncols
  width, height = figure.get_size_inches()
  texts = [_missing(p.notes, width / columns - 0.5) for p in panels]
  rows = [_crosses(p.axes, p.crosses) for p in panels]
  more = max(
    _ROW * n + 9 * len(text.split('\n'))
    for n, text in zip(rows, texts, strict=True)
  )
  figure.set_size_inches(width, height + more / 72 * -(-len(panels) // columns))
  if handles:
    _legend(figure, handles)
  width, height = figure.get_size_inches()
  said = {'fontsize': 7, 'color': style.GREY}
  if len(panels) == 1:
    axes = drawn[0]
    axes.set_title(_text(title, width), fontsize=10, pad=6 + _ROW * rows[0])
    axes.set_xlabel(_text(label_x, width))
    axes.set_ylabel(_text(label_y, height))
    figure.supxlabel(texts[0], x=0.01, ha='left', **said)
    return figure
  for panel, text, number in zip(panels, texts, rows, strict=True):
    name = _text(panel.name, 3.4)
    panel.axes.set_title(name, fontsize=9, pad=6 + _ROW * number)
    panel.axes.set_xlabel(text, loc='left', **said)
  figure.suptitle(_text(title, width), fontsize=10)
  figure.supxlabel(_text(label_x, width), fontsize=10)
  figure.supylabel(_text(label_y, height), fontsize=10)
  return figure


def _text(text, inches):
  """In lines of that length."""
  return textwrap.fill(style.shown(text, 240), max(12, int(12 * inches)))


def _missing(notes, inches) -> str:
  """What is missing, in lines: 'sa, ga: no gap recorded'."""
  names, lines = {}, []
  for name, what in dict.fromkeys(notes):
    names.setdefault(what, []).append(style.shown(name, 24))
  for what, who in names.items():
    listed = ', '.join(who[:_SPOKEN])
    if len(who) > _SPOKEN:
      listed += f' and {len(who) - _SPOKEN} more'
    line = f'{listed}: {what}' if listed else what
    lines += textwrap.wrap(line, max(20, int(17 * inches)))
  return '\n'.join(lines)


def _crosses(axes, found) -> int:
  """Crosses above a panel, a row per method; returns how many rows."""
  common = {
    'textcoords': 'offset points',
    'fontsize': 7,
    'va': 'bottom',
    'annotation_clip': False,
  }
  for row, (name, crosses) in enumerate(reversed(found.items())):
    above = 3 + _ROW * row
    axes.annotate(
      f'{style.shown(name, 18)} diverged',
      (0, 1),
      (-4, above),
      xycoords='axes fraction',
      ha='right',
      **common,
    )
    for x, text in crosses:
      axes.annotate(
        f'× {text}'.strip(),
        (x, 1),
        (0, above),
        xycoords=('data', 'axes fraction'),
        ha='center',
        **common,
      )
  return len(found)


def _legend(figure, handles):
  """A legend on the right, in as many columns as it needs; makes room."""
  names = [textwrap.fill(style.shown(name), 26) for name in handles]
  lines = sum(name.count('\n') + 1 for name in names)
  columns = min(-(-lines // _LINES), len(names))
  longest = max(len(line) for name in names for line in name.split('\n'))
  width, height = figure.get_size_inches()
  figure.set_size_inches(
    width + columns * (0.075 * longest + 0.6),
    max(height, 0.17 * lines / columns + 0.9),
  )
  figure.legend(
    list(handles.values()),
    names,
    loc='outside right center',
    ncols=columns,
    fontsize=8,
    frameon=False,
    handlelength=3,
  )
