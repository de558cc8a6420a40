"""The timeline of a run: a row per worker, what it did and when."""

import math

import numpy as np

from ga_jax.plots import sheet, style

# Colour, hatch and height of a row by kind of span; in grey the hatches tell.
_FILLS = {
  'compute': ('#0072B2', '', 0.8),
  'discarded': ('#E69F00', '\\\\\\\\', 0.8),
  'restart': ('#F5B799', '////', 0.8),
  'lost': ('#CC79A7', 'xxxx', 0.8),
  'unfinished': ('#56B4E9', '----', 0.8),
  'wait': ('#DDDDDD', '', 0.3),
  'away': ('#FFFFFF', '', 0.06),
}
_NAMES = {
  'compute': 'computes',
  'discarded': 'computes, discarded',
  'restart': 'computes, restarted',
  'lost': 'computes, lost',
  'unfinished': 'not finished',
  'wait': 'waits',
  'away': 'not there',
}
_ROWS = 1024  # workers that are drawn, at most
_PER_ROW = 60  # spans in a row, at most, on average
_SPANS = 4000  # spans in all, at most, where there are fewer workers
_MARKED = 64  # rows with hatches and edges, at most
_UPDATES = 50  # drawn across all rows, at most


def timeline(spans, *, title: str, num_workers: int, label_x: str = 'time'):
  """Draws a row per worker, and the updates above them.

  Args:
    spans: of `spans_of`; a part of them for a part of the run.
    title: above the picture.
    num_workers: rows, also for workers of which there are no spans.
    label_x: of the x axis, with its unit.

  Returns:
    A `Figure`. Of a run with more spans than can be told apart the beginning is
    drawn, and the picture says so.
  """
  bars, notes = _timed(spans or [])
  marks = [span.begin for span in bars if span.kind == 'apply']
  bars = [span for span in bars if span.kind in _FILLS]
  workers = sorted({span.worker_id for span in bars} | set(range(num_workers)))
  if len(workers) > _ROWS:
    notes.append(('', f'{_ROWS:,} of {len(workers):,} workers are drawn'))
  row = {worker_id: i for i, worker_id in enumerate(workers[:_ROWS])}
  bars = [span for span in bars if span.worker_id in row]
  figure, (axes,) = sheet.new(8.0, min(12.0, 1.3 + 0.26 * max(2, len(row))))
  handles = {}
  if bars:
    begin, end, note = _window(bars, len(row))
    notes += note
    top = -0.7 - max(0.5, 0.03 * len(row))  # where the updates stand
    handles = _bars(axes, bars, row, begin, end)
    times = [time for time in marks if begin <= time <= end]
    handles |= _updates(axes, times, top, len(row))
    step = -(-len(row) // 40)
    names = [f'{worker_id}' for worker_id in list(row)[::step]]
    places = range(0, len(row), step)
    axes.set_yticks([top, *places], ['updates', *names], fontsize=8)
    axes.set_xlim(begin, end)
    axes.set_ylim(len(row) - 0.4, 1.5 * top)
  else:
    sheet.nothing(axes, 'no spans')
  return sheet.finish(
    figure,
    [sheet.Panel(axes, '', notes)],
    title=title,
    label_x=label_x,
    label_y='worker',
    handles=handles,
  )


def _timed(spans):
  """The spans with finite times, and a note where there are others."""
  times = style.numbers(t for span in spans for t in (span.begin, span.end))
  times = times.reshape(-1, 2)
  fine = ~np.isnan(times).any(1)
  kept = [
    span._replace(begin=begin, end=end)
    for span, (begin, end), good in zip(
      spans, times.tolist(), fine, strict=True
    )
    if good
  ]
  without = len(spans) - len(kept)
  return kept, [('', f'{without:,} spans without a time')] if without else []


def _window(bars, rows):
  """The part of the time that is drawn: (begin, end, note)."""
  begin = min(span.begin for span in bars)
  last = max(span.end for span in bars)
  most = max(min(_SPANS, _PER_ROW * rows), rows)
  end = last
  if len(bars) > most:
    end = sorted(span.begin for span in bars)[most]
  least = 1e-9 * max(abs(begin), abs(last))  # that an axis can show
  if last - begin <= least:
    return begin, begin + (max(abs(begin), abs(last)) or 1.0), []
  if end - begin <= least:
    return begin, last, []
  note = f'the first {end - begin:.4g} of {last - begin:.4g} are drawn'
  return begin, end, [('', note)] if end < last else []


def _bars(axes, bars, row, begin, end):
  """A collection of rectangles per kind; returns handles for the legend."""
  from matplotlib import collections, patches

  boxes = {kind: [] for kind in _FILLS}
  seen = 5e-4 * (end - begin)  # shorter ones are no bars but their edges
  for span in bars:
    idle = span.kind in ('wait', 'away') and span.end - span.begin < seen
    if span.begin < end and not idle:
      middle, half = row[span.worker_id], _FILLS[span.kind][2] / 2
      left, right = span.begin, min(span.end, end)
      low, high = middle - half, middle + half
      box = [(left, low), (right, low), (right, high), (left, high)]
      boxes[span.kind].append(box)
  handles = {}
  for kind, (colour, hatch, _) in _FILLS.items():
    look = {
      'facecolor': colour,
      'edgecolor': 'black' if hatch or kind == 'away' else 'white',
      'linewidth': 0.5 if len(row) <= _MARKED else 0.0,
      'hatch': hatch if len(row) <= _MARKED else '',
    }
    if boxes[kind]:
      axes.add_collection(collections.PolyCollection(boxes[kind], **look))
      handles[_NAMES[kind]] = patches.Patch(**look)
  return handles


def _updates(axes, times, top, rows):
  """Marks above the rows, and lines through them where they are few."""
  if not times:
    return {}
  if len(times) <= _UPDATES:
    axes.vlines(
      times, top, rows - 0.5, color='black', linewidth=0.4, zorder=0.5
    )
  times = times[:: math.ceil(len(times) / style.POINTS)]
  (mark,) = axes.plot(
    times, [top] * len(times), '|', color='black', markersize=7
  )
  return {'update': mark}
