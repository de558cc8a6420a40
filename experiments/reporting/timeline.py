"""The timeline of a run as SVG: who computed what, when, and how late it was.

A row per worker, a rectangle per span, a mark per update. What an event is
stands in its <title>: browsers show it, and the page's script shows it at once,
on hover and by keyboard. Long runs are shown at their beginning and their end.
"""

import itertools
from typing import NamedTuple

import numpy as np

from experiments.records import finished as runs_lib
from experiments.reporting import history as history_lib
from experiments.reporting import lines, markup
from ga_jax import plots

SPANS = 2400  # on a page, so that it opens soon
MOST = 8  # timelines on a page, at most
FEWEST = 100  # spans at an end of a timeline
LEVELS = 5  # shades of staleness
WIDTH, LEFT, HEIGHT = 1000, 44, 420  # in units of the picture
_FILLED = ('compute', 'discarded', 'restart', 'lost', 'unfinished', 'wait')


class Part(NamedTuple):
  """A part of a run.

  Attributes:
    name: of the part.
    spans: in it, workers' and updates.
    begin: in the trace's units of time.
    end: the same.
  """

  name: str
  spans: list[plots.Span]
  begin: float
  end: float


def section(
  comparison: lines.Comparison, told: dict[str, history_lib.LineHistory]
) -> str:
  """A timeline per line, of a run with the most workers.

  Args:
    comparison: the runs.
    told: what happened in them.
  """
  most = max(FEWEST, SPANS // (2 * len(told)))
  parts = [markup.paragraph(_about(comparison, told))]
  parts += [_of_line(one, most) for one in told.values()]
  return ''.join(parts)


def _about(comparison, told) -> str:
  text = (
    'A row per worker; a mark under them per update of the server. Point at an '
    'event, or press Tab and the arrow keys, to read its worker, version, '
    'staleness and gap. The darker a gradient, the staler it was.'
  )
  number = len(comparison.lines())
  if len(comparison.seen) > number:
    text += ' Of each line one run with the most workers is shown.'
  if len(told) < number:
    text += f' The first {len(told)} of {number} lines are shown.'
  return text


def _of_line(told: history_lib.LineHistory, most: int) -> str:
  """The timeline of a line, or why it has none."""
  plural = 's' if told.cell.workers > 1 else ''
  name = f'{told.cell.line}, {told.cell.workers} worker{plural}'
  if told.history is None:
    return markup.titled(
      name, markup.paragraph(f'No timeline: {told.why}.', 'note')
    )
  return _drawn(name, told.one, told.history, most)


def _drawn(name: str, one: runs_lib.SavedRun, history, most: int) -> str:
  spans = plots.spans_of(history.computed())
  parts = windows(spans, most)
  top = max([1, *(s.staleness for s in spans if s.kind == 'compute')])
  unit = 'mean batch times' if one.settings.runtime == 'simulate' else 'seconds'
  inner = ''.join(
    markup.figure(
      _svg(part, history, top, f'{name}: {part.name}'),
      f'{name}, seed {one.settings.seed}: {part.name}; time in {unit}',
    )
    for part in parts
  )
  legend = _legend(top, {s.kind for s in spans})
  return markup.titled(name, f'{legend}{inner}{_source(history)}')


def _source(history) -> str:
  """Where the timeline is from, and what is not in it."""
  texts = []
  if not history.recorded:
    texts.append(
      'There is no trace: the schedule was played again from policy and clock, '
      'and says what the summary says. Gaps were not recorded.'
    )
  elif history.gaps is None:
    texts.append('Gaps were not recorded.')
  rest = len(history.trace.applied()) - history.executed
  if rest:
    texts.append(
      f'The run ended after {history.executed:,} arrivals; the {rest:,} that '
      'were scheduled after them are not drawn.'
    )
  return markup.paragraph(' '.join(texts), 'note') if texts else ''


def windows(spans: list[plots.Span], most: int) -> list[Part]:
  """The parts of a run that are shown.

  Args:
    spans: in order of their beginning.
    most: spans of workers at each end of a run; one of up to twice as many is
      shown whole.

  Returns:
    One part, or its beginning and its end.
  """
  own = [s for s in spans if s.kind not in ('apply', 'away')]
  begin = min((s.begin for s in spans), default=0.0)
  end = max((s.end for s in spans), default=0.0)
  if len(own) <= 2 * most:
    return [Part('the whole run', spans, begin, end)]
  first = own[most].begin
  last = sorted(s.end for s in own)[-most - 1]

  def part(name, low, high):
    inside = [s for s in spans if s.end > low and s.begin < high]
    return Part(f'{name} of {end - begin:.4g}', inside, low, high)

  return [
    part(f'the first {first - begin:.3g}', begin, first),
    part(f'the last {end - last:.3g}', last, end),
  ]


def title_of(span: plots.Span, history) -> str:
  """What an event is, in lines."""
  if span.kind == 'apply':
    by = f', by worker {span.worker_id}' if span.worker_id >= 0 else ''
    return f'update {span.version}{by}\ntime {span.begin:.6g}'
  texts = [f'worker {span.worker_id}: {span.kind}']
  if span.ticket_id >= 0:
    late = f'staleness {span.staleness}' if span.staleness >= 0 else ''
    read = f'version {span.version}'
    texts.append(', '.join(filter(None, (read, late))))
    texts.append(gap_text(span, history))
    texts.append(f'ticket {span.ticket_id}')
  texts.append(f'time {span.begin:.6g} to {span.end:.6g}')
  return '\n'.join(texts)


def gap_text(span: plots.Span, history) -> str:
  """The gap of an arrival, or that there is none."""
  if span.arrival < 0:
    return 'no gap: it entered no round'
  if history.gaps is None:
    return 'gap not recorded'
  return f'gap {history.gaps[span.arrival]:.3e}'


def _svg(part: Part, history, top: int, label: str) -> str:
  workers = sorted({s.worker_id for s in part.spans if s.worker_id >= 0})
  row = {worker: i for i, worker in enumerate(workers)}
  high = float(np.clip(HEIGHT / max(1, len(workers)), 3, 18))
  scale = (WIDTH - LEFT - 4) / ((part.end - part.begin) or 1.0)
  bottom = high * len(workers)
  groups = [[] for _ in workers]
  marks = []
  for span in part.spans:
    x = (max(span.begin, part.begin) - part.begin) * scale
    wide = (min(span.end, part.end) - part.begin) * scale - x
    title = f'<title>{markup.escape(title_of(span, history))}</title>'
    if span.kind == 'apply':
      marks.append(
        f'<rect class="apply" x="{x:.1f}" y="{bottom + 3:.1f}" width="1.2" '
        f'height="9">{title}</rect>'
      )
    elif span.kind in _FILLED:
      groups[row[span.worker_id]].append(
        f'<rect class="{_class(span, top)}" x="{x:.1f}" '
        f'width="{max(wide, 0.4):.1f}" height="{high - 1:.1f}">{title}</rect>'
      )
  rows = ''.join(
    f'<g transform="translate(0,{high * i:.1f})">{"".join(group)}</g>'
    for i, group in enumerate(groups)
  )
  return (
    '<div class="wide"><svg class="timeline" tabindex="0" role="group" '
    f'aria-label="Timeline. {markup.escape(label)}" '
    f'viewBox="{-LEFT} -2 {WIDTH} {bottom + 40:.0f}">'
    f'{rows}<g>{"".join(marks)}</g>'
    f'{_labels(workers, high)}{_axis(part, scale, bottom)}</svg></div>'
  )


def _class(span, top: int) -> str:
  """A computation's shade, or the kind of what is none."""
  if span.kind != 'compute':
    return span.kind
  return f's{min(LEVELS - 1, LEVELS * span.staleness // (top + 1))}'


def _labels(workers, high: float) -> str:
  """Numbers of workers, as many as there is room for."""
  every = max(1, int(np.ceil(11 / high)))
  return ''.join(
    f'<text class="end" x="-6" y="{high * (i + 0.5) + 3:.1f}">{worker}</text>'
    for i, worker in enumerate(workers)
    if i % every == 0
  )


def _axis(part: Part, scale: float, bottom: float) -> str:
  """Five times under the rows."""
  times = np.linspace(part.begin, part.end, 5)
  anchors = ('start', *['middle'] * 3, 'end')
  return (
    f'<text class="end" x="-6" y="{bottom + 12:.1f}">server</text>'
    + ''.join(
      f'<text class="{anchor}" x="{(time - part.begin) * scale:.1f}" '
      f'y="{bottom + 28:.1f}">{time:.4g}</text>'
      for time, anchor in zip(times, anchors, strict=True)
    )
  )


def _legend(top: int, kinds: set[str]) -> str:
  """The colours that are there."""
  edges = [-(-(top + 1) * i // LEVELS) for i in range(LEVELS + 1)]
  known = [
    (
      f's{i}',
      f'staleness {low}' + (f' to {high - 1}' if high - 1 > low else ''),
    )
    for i, (low, high) in enumerate(itertools.pairwise(edges))
    if low < high
  ]
  known += [
    (kind, f'{kind}: {plots.KINDS[kind]}')
    for kind in _FILLED[1:]
    if kind in kinds
  ]
  swatches = ''.join(
    '<li><svg class="swatch" viewBox="0 0 12 12" aria-hidden="true"><rect '
    f'class="{kind}" width="12" height="12"/></svg>{markup.escape(text)}</li>'
    for kind, text in known
  )
  return f'<ul class="legend">{swatches}</ul>'
