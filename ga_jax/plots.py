"""Figures, from plain numbers; no JAX here."""

import textwrap

import numpy as np

# Okabe and Ito's palette, safe for colour-blind readers; with the markers the
# lines can be told apart in grey too.
COLOURS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#56B4E9',
  '#000000',
  '#8C6D31',
  '#999999',
  '#882255',
)
MARKERS = 'osD^vPX*<>'
DASHES = ('-', '--', ':', '-.')  # where there are more lines than colours


def error_over_workers(path: str, cells, *, title: str, label: str):
  """Draws a line with its band per method.

  Args:
    path: of the picture; its ending chooses the format.
    cells: {method: {workers: list of errors in %, None for a diverged run}}.
    title: above the picture.
    label: of the y axis.

  Points are means over the runs that did not diverge, bands their standard
  deviation. Where runs diverged a cross at the top says so. Where errors differ
  by more than a factor of five the y axis is logarithmic.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7.0, 4.4), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  all_workers = sorted({n for line in cells.values() for n in line})
  position = {n: i for i, n in enumerate(all_workers)}
  diverged, means = [], []
  styles = _styles(cells)
  for i, (method, line) in enumerate(cells.items()):
    colour = styles[method]['color']
    x, mean, std = [], [], []
    for workers in sorted(line):
      kept = [error for error in line[workers] if error is not None]
      if len(kept) < len(line[workers]):
        diverged.append((position[workers] + 0.06 * i, colour))
      if kept:
        x.append(position[workers])
        mean.append(np.mean(kept))
        std.append(np.std(kept, ddof=1) if len(kept) > 1 else 0.0)
    mean, std = np.array(mean), np.array(std)
    means.extend(mean)
    axes.plot(x, mean, label=method, **styles[method])
    if len(x):
      axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15)
  for x, colour in diverged:
    axes.plot(
      x,
      0.97,
      marker='x',
      color=colour,
      transform=axes.get_xaxis_transform(),
      clip_on=False,
    )
  if diverged:
    axes.plot([], [], 'x', color='grey', label='some runs diverged')
  if means and 0 < 5 * min(means) < max(means):
    _logarithmic(axes, min(means), max(means))
  axes.set_xticks(range(len(all_workers)), [str(n) for n in all_workers])
  axes.set_xlabel('workers')
  axes.set_ylabel(label)
  axes.set_title(title, fontsize=10)
  axes.grid(alpha=0.3)
  if len(cells) > 8:  # beside the picture, and not in it
    figure.set_size_inches(9.0, 4.8)
    figure.legend(loc='outside right center', frameon=False, fontsize=8)
  else:
    axes.legend(frameon=False, fontsize=9)
  figure.savefig(path, dpi=150)


def error_over_rates(path: str, panels, *, title: str, label: str):
  """Draws a panel per number of workers: a line per method over its rates.

  Args:
    path: of the picture.
    panels: {title of a panel: {method: {learning rate: error, None where a run
      diverged}}}.
    title: above the picture.
    label: of the y axes.

  Errors are cut at twice the lowest one of a panel: the optima can be read so.
  """
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure, grid = _panels(rows, columns, (3.4 * columns + 1.8, 2.9 * rows))
  styles = _styles(dict.fromkeys(m for p in panels.values() for m in p))
  for axes, (name, lines) in zip(grid, panels.items(), strict=False):
    known = [e for m in lines.values() for e in m.values() if e is not None]
    lowest = min(known, default=1.0)
    for method, scores in lines.items():
      kept = {r: e for r, e in scores.items() if e is not None}
      axes.plot(list(kept), list(kept.values()), label=method, **styles[method])
    axes.set_xscale('log')
    axes.set_ylim(0.95 * lowest, 2 * lowest)
    axes.set_title(name, fontsize=9)
    axes.grid(alpha=0.3)
  _finish(figure, grid, len(panels), title, 'learning rate', label)
  figure.savefig(path, dpi=150)


def curves(path: str, panels, *, title: str, label: str):
  """Draws a column per number of workers, a row per quantity.

  Args:
    path: of the picture.
    panels: {title of a column: {quantity: {method: (x [n], y [n])}}}.
    title: above the picture.
    label: of the x axes.

  Quantities that span more than a decade are drawn on logarithmic axes.
  """
  rows = max(len(column) for column in panels.values())
  size = (3.4 * len(panels) + 1.8, 2.3 * rows + 0.6)
  figure, grid = _panels(rows, len(panels), size)
  for j, (name, quantities) in enumerate(panels.items()):
    for k, (quantity, lines) in enumerate(quantities.items()):
      axes = grid[k * len(panels) + j]
      styles = _styles(lines)
      for method, (x, y) in lines.items():
        axes.plot(x, y, label=method, markersize=4, **styles[method])
      values = [v for _, y in lines.values() for v in y if v > 0]
      if values and max(values) > 10 * min(values):
        axes.set_yscale('log')
      axes.set_title(f'{name}: {quantity}', fontsize=9)
      axes.grid(alpha=0.3)
  _finish(figure, grid, rows * len(panels), title, label, '')
  figure.savefig(path, dpi=150)


def _styles(names) -> dict[str, dict[str, object]]:
  """Colour and marker by method; dashes by what stands after its comma."""
  methods = list(dict.fromkeys(name.partition(',')[0] for name in names))
  kinds = list(dict.fromkeys(name.partition(',')[2] for name in names))

  def style(name):
    method, _, kind = name.partition(',')
    i, j = methods.index(method), kinds.index(kind)
    return {
      'color': COLOURS[i % len(COLOURS)],
      'marker': MARKERS[i % len(MARKERS)],
      'linestyle': DASHES[(j + i // len(COLOURS)) % len(DASHES)],
    }

  return {name: style(name) for name in names}


def _panels(rows: int, columns: int, size):
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=size, layout='constrained')
  FigureCanvasAgg(figure)
  return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _finish(figure, grid, used: int, title: str, x_label: str, y_label: str):
  """Labels, one legend for all panels, and nothing where nothing is drawn."""
  for axes in grid[used:]:
    axes.set_axis_off()
  figure.suptitle(title, fontsize=10)
  figure.supxlabel(x_label, fontsize=10)
  figure.supylabel(y_label, fontsize=10)
  found = {}
  for axes in grid[:used]:
    for line, name in zip(*axes.get_legend_handles_labels(), strict=True):
      found.setdefault(name, line)
  figure.legend(
    found.values(),
    found.keys(),
    loc='outside right center',
    fontsize=8,
    frameon=False,
  )


def _logarithmic(axes, lowest, highest):
  """A logarithmic axis with plain numbers; bands below it are cut."""
  axes.set_yscale('log')
  axes.set_ylim(lowest / 2, highest * 1.5)
  marks = [m * 10.0**k for k in range(-4, 3) for m in (1, 2, 5)]
  shown = [m for m in marks if lowest / 2 <= m <= highest * 1.5]
  axes.set_yticks(shown, [f'{m:g}' for m in shown], minor=False)
  axes.set_yticks([], minor=True)


def bars(path: str, values: dict[str, list[float]], title: str, label: str):
  """A bar per name: the median, with minimum and maximum.

  Args:
    path: the picture; its ending says the format.
    values: measurements by name.
    title: above it.
    label: of the vertical axis, with the unit.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(5, 3.2), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  for i, measured in enumerate(values.values()):
    middle = float(np.median(measured))
    spread = [[middle - min(measured)], [max(measured) - middle]]
    axes.bar(
      i,
      middle,
      yerr=spread,
      capsize=4,
      color=COLOURS[i % len(COLOURS)],
      edgecolor='black',
    )
    axes.annotate(
      f'{middle:.3g}',
      (i, middle / 2),
      ha='center',
      va='center',
      bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1.5},
    )
  names = [textwrap.fill(name, 16) for name in values]
  axes.set_xticks(range(len(values)), names)
  axes.set_ylabel(label)
  axes.set_title(title, fontsize=10)
  axes.grid(axis='y', alpha=0.3)
  axes.set_axisbelow(True)
  figure.savefig(path, dpi=150)
