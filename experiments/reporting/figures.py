"""The figures of a report, from its runs; `ga_jax.plots` draws them."""

import os
from typing import NamedTuple

import numpy as np

from experiments.reporting import about, history, lines, markup, table
from ga_jax import plots

FORMATS = ('png', 'svg', 'pdf')
MOST = 24  # lines in a figure: more cannot be told apart
NARROW = 6  # lines of a comparison up to which two figures stand side by side


class DrawnFigure(NamedTuple):
  """A figure.

  Attributes:
    name: of its files.
    caption: what it shows, in a sentence.
    figure: of matplotlib.
    broad: whether it takes the whole width of the page.
  """

  name: str
  caption: str
  figure: object
  broad: bool = False


def section(drawn: list[DrawnFigure]) -> str:
  """All figures, as SVG in the page."""
  import matplotlib

  shown = []
  for i, one in enumerate(drawn):
    with matplotlib.rc_context({'svg.fonttype': 'none'}):  # text stays text
      svg = plots.svg(one.figure)
    inner = markup.inlined(svg, one.caption, f'f{i}-')
    shown.append(markup.figure(inner, one.caption, 'broad' * one.broad))
  return f'<div class="pictures">{"".join(shown)}</div>'


def save(drawn: list[DrawnFigure], folder: str):
  """Writes every figure as PNG, SVG and PDF."""
  for one in drawn:
    for ending in FORMATS:
      path = os.path.join(folder, f'{one.name}.{ending}')
      plots.save(one.figure, path)


def of(
  comparison: lines.Comparison, told: dict[str, history.LineHistory]
) -> list[DrawnFigure]:
  """Draws what there are numbers for.

  Args:
    comparison: the runs.
    told: what happened in them.

  Returns:
    The figures, in the order they are shown.
  """
  every = comparison.lines()
  broad = len(every) > NARROW
  shown = set(every[:MOST])
  comparison = comparison._replace(
    cells=[cell for cell in comparison.cells if cell.line in shown],
    rates={k: v for k, v in comparison.rates.items() if k[0] in shown},
  )
  found = [
    *_over_workers(comparison),
    *_over_rates(comparison),
    *_over_time(comparison),
    *_histograms(comparison, told),
    *_speed(comparison),
    *_bytes(comparison),
  ]
  tail = f' The first {MOST} of {len(every)} lines.' if every[MOST:] else ''
  return [
    one._replace(caption=one.caption + tail, broad=one.broad or broad)
    for one in found
  ]


def largest(comparison: lines.Comparison) -> list[lines.Cell]:
  """The cells of the largest number of workers."""
  most = comparison.workers()[-1]
  return [cell for cell in comparison.cells if cell.workers == most]


def _titled(comparison: lines.Comparison, workers: int | None = None) -> str:
  """What a figure is of, where it stands alone."""
  known = about.where(comparison)
  of = list(dict.fromkeys((known[0], known[-1])))  # data, and clock
  return ', '.join([*of, about.workers_text([workers])] if workers else of)


def _with(workers: int) -> str:
  return f'with {about.workers_text([workers])}'


def _over_workers(comparison) -> list[DrawnFigure]:
  if len(comparison.workers()) < 2:
    return []
  cells = {}
  for cell in comparison.cells:
    errors = [comparison.error(one) for one in cell.runs if one.summary]
    cells.setdefault(cell.line, {})[cell.workers] = errors
  label = comparison.metric.label
  figure = plots.error_over_workers(
    cells, title=_titled(comparison), label=label
  )
  caption = (
    f'The test {comparison.metric.name} over the number of workers: mean and '
    'standard deviation over seeds.'
  )
  return [DrawnFigure('error-over-workers', caption, figure)]


def _over_rates(comparison) -> list[DrawnFigure]:
  metric, panels = comparison.metric, {}
  for (line, workers), rates in comparison.rates.items():
    scores = {rate: lines.score(runs, metric) for rate, runs in rates.items()}
    panels.setdefault(about.workers_text([workers]), {})[line] = {
      rate: None if score >= metric.worst else metric.scale * score
      for rate, score in sorted(scores.items())
    }
  if not panels:
    return []
  label = metric.label.replace('test', 'validation')
  figure = plots.error_over_rates(
    panels, title=_titled(comparison), label=label
  )
  caption = (
    f'The validation {metric.name} over the learning rate, mean over seeds, '
    'cut at twice the lowest.'
  )
  return [DrawnFigure('error-over-rate', caption, figure, True)]


def _over_time(comparison) -> list[DrawnFigure]:
  """Test error, gap and penalty while training went on."""
  time = any(row.get('time') for one in comparison.seen for row in one.rows)
  found = [_curve(comparison, 'error', 'epoch')]
  if time:
    found.append(_curve(comparison, 'error', 'time'))
  for name in ('gap', 'penalty'):
    found.append(_curve(comparison, name, 'time' if time else 'epoch'))
  return [one for one in found if one]


def _curve(comparison, name: str, x: str) -> DrawnFigure | None:
  """A quantity over epochs or time; None where nothing was recorded."""
  metric = comparison.metric
  key, quantity, label, scale = {
    'error': (
      f'test_{metric.name}',
      f'test {metric.name}',
      metric.label,
      metric.scale,
    ),
    'gap': ('mean_gap', 'gap', 'gap (root mean square)', 1.0),
    'penalty': ('mean_penalty', 'mean penalty', 'mean penalty', 1.0),
  }[name]
  cells = largest(comparison)
  runs = {
    cell.line: [
      points
      for one in cell.runs
      if len((points := series(one, x, key, scale))[0])
    ]
    for cell in cells
  }
  if not any(runs.values()):
    return None
  workers = cells[0].workers
  figure = plots.over_time(
    runs,
    quantity=quantity,
    x=x,
    title=_titled(comparison, workers),
    label_x='epoch' if x == 'epoch' else _time_label(comparison),
    label_y=label,
  )
  over = {'epoch': 'epochs', 'time': 'time'}[x]
  caption = f'The {quantity} over {over}, {_with(workers)}.'
  return DrawnFigure(f'{name}-over-{over}', caption, figure)


def series(one, x: str, key: str, scale: float):
  """(x, y) of a run's rows; a number that is not there is NaN."""
  rows = [row for row in one.rows if row.get(x) is not None]
  values = [row.get(key) for row in rows]
  if not any(value is not None for value in values):
    rows, values = [], []
  y = [np.nan if value is None else scale * value for value in values]
  return np.array([row[x] for row in rows]), np.array(y)


def _time_label(comparison) -> str:
  runtimes = {one.settings.runtime for one in comparison.seen}
  if runtimes == {'simulate'}:
    return 'simulated time, in mean batch times'
  return (
    'seconds' if 'simulate' not in runtimes else 'time, in units or seconds'
  )


def _histograms(comparison, told) -> list[DrawnFigure]:
  """Of the first run of every line: staleness, gaps and penalties."""
  workers = comparison.workers()[-1]
  title = _titled(comparison, workers)
  first = {
    cell.line: cell.runs[0].summary or {} for cell in largest(comparison)
  }
  drawn = []
  staleness = {
    line: summary.get('staleness_histogram') or _counts(told.get(line))
    for line, summary in first.items()
  }
  if any(staleness.values()):
    figure = plots.staleness_histogram(staleness, title=title)
    caption = f'How stale gradients were, in updates, {_with(workers)}.'
    drawn.append(DrawnFigure('staleness', caption, figure))
  for name in ('gap', 'penalty'):
    found = {line: s.get(f'{name}_histogram') for line, s in first.items()}
    if any(found.values()):
      figure = plots.histogram_by_decade(found, title=title, label=name)
      caption = f'How large the {name} of an arrival was, {_with(workers)}.'
      drawn.append(DrawnFigure(f'{name}-histogram', caption, figure))
  return drawn


def _counts(told: history.LineHistory | None) -> list[int] | None:
  """Arrivals by staleness, where the schedule was played again."""
  if told is None or told.history is None:
    return None
  return np.bincount(told.history.staleness()).tolist()


def _speed(comparison) -> list[DrawnFigure]:
  points = {}
  for cell in comparison.cells:
    values = table.known(cell, 'simulated_speedup')
    if values:
      points.setdefault(cell.line, {})[cell.workers] = values
  if len(comparison.workers()) < 2 or not points:
    return []
  figure = plots.speedup(points, title=_titled(comparison))
  caption = (
    'How many times sooner as many batches were done than by one worker.'
  )
  return [DrawnFigure('speed-up', caption, figure)]


def _bytes(comparison) -> list[DrawnFigure]:
  sent = {}
  for cell in largest(comparison):
    down, up = (table.known(cell, f'bytes_{n}') for n in ('pulled', 'pushed'))
    if down and up:
      sent[cell.line] = float(np.mean(down)), float(np.mean(up))
  if not sent:
    return []
  workers = comparison.workers()[-1]
  figure = plots.bytes_sent(sent, title=_titled(comparison, workers))
  caption = f'What workers were sent and submitted, {_with(workers)}.'
  return [DrawnFigure('bytes', caption, figure)]
