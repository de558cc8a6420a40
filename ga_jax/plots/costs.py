"""What methods cost: speed-up, bytes, and any measurement with its spread."""

import textwrap

import numpy as np

from ga_jax.plots import sheet, style

SYNCHRONOUS = 'ssgd'  # the method that speed-ups are compared with


def speedup(points, *, title: str):
  """Draws how many times as fast N workers are as one, and as SSGD's N.

  Args:
    points: {method: {workers: speed-ups over one worker, one per run}}.
    title: above the picture.

  Returns:
    A `Figure`: on the left the speed-ups with the ideal line (N workers are N
    times as fast), on the right how many times as fast as `ssgd` with the same
    number of workers, where there are runs of it. Points are means, bands
    standard deviations.
  """
  found = {
    name: {n: style.finite(v) for n, v in sorted((line or {}).items()) if n > 0}
    for name, line in (points or {}).items()
  }
  base = next((n for n in found if n.partition(',')[0] == SYNCHRONOUS), None)
  columns = 1 if base is None else 2
  figure, grid = sheet.new(4.2 * columns, 3.8, 1, columns)
  looks, handles = style.looks(found), {}
  panels = [_over_one(grid[0], found, looks, handles)]
  if base is None:
    panels[0].notes.append(('', f'no {SYNCHRONOUS}: not compared with it'))
  else:
    panels.append(_over_synchronous(grid[1], found, base, looks))
  return sheet.finish(
    figure,
    panels,
    title=title,
    label_x='workers',
    label_y='' if base else 'times as fast as one worker',
    handles=handles,
  )


def _over_one(axes, found, looks, handles):
  """Speed-ups over one worker, on logarithmic axes."""
  notes = []
  lines = {
    name: {n: v[v > 0] for n, v in line.items() if np.any(v > 0)}
    for name, line in found.items()
  }
  workers = sorted({n for line in lines.values() for n in line})
  for name, line in lines.items():
    handles[name] = _line(axes, line, looks[name])
    if not line:
      notes.append((name, 'no speed-up recorded'))
  if not workers:
    sheet.nothing(axes, 'no speed-up recorded')
    return sheet.Panel(axes, 'over one worker', notes)
  ends = [workers[0] / 1.4, workers[-1] * 1.4]
  (handles['ideal: N times as fast'],) = axes.plot(
    ends, ends, '--', color='black', linewidth=1
  )
  means = [np.mean(v) for line in lines.values() for v in line.values()]
  style.logarithmic(axes.yaxis, [*means, *workers])
  style.logarithmic_counts(axes.xaxis, workers)
  axes.grid(alpha=0.3)
  return sheet.Panel(axes, 'over one worker', notes)


def _over_synchronous(axes, found, base, looks):
  """Speed over that of SSGD with as many workers."""
  notes, lines = [], {}
  theirs = {n: v.mean() for n, v in found[base].items() if np.any(v > 0)}
  for name, line in found.items():
    shared = {n: line[n] / theirs[n] for n in line if n in theirs}
    lines[name] = {n: v for n, v in shared.items() if len(v)}
    without = [f'{n:g}' for n, v in line.items() if len(v) and n not in theirs]
    if without:
      notes.append((name, f'no {base} at {", ".join(without)} workers'))
  workers = sorted({n for line in lines.values() for n in line})
  for name, line in lines.items():
    _line(axes, line, looks[name])
  name = f'over {base} with as many workers'
  if not workers:
    sheet.nothing(axes, f'no speed-up of {base} recorded')
    return sheet.Panel(axes, name, notes)
  axes.set_ylim(bottom=0)
  style.logarithmic_counts(axes.xaxis, workers)
  axes.grid(alpha=0.3)
  return sheet.Panel(axes, name, notes)


def _line(axes, line, look):
  """Means with their band, by number of workers."""
  points = [(n, *style.mean_and_spread(v)) for n, v in line.items()]
  return style.band(axes, *np.array(points).reshape(-1, 3).T, look)


_UNITS = ('bytes', 'kB', 'MB', 'GB', 'TB', 'PB')


def bytes_sent(sent, *, title: str):
  """Draws what workers were sent and what they submitted, two bars a method.

  Args:
    sent: {method: (bytes pulled, bytes pushed)}.
    title: above the picture.

  Returns:
    A `Figure`.
  """
  sent = {
    name: style.numbers(pair if pair is not None else (None, None))
    for name, pair in (sent or {}).items()
  }
  figure, (axes,) = sheet.new(6.0, 1.4 + 0.42 * max(2, len(sent)))
  known = [v for pair in sent.values() for v in pair if v > 0]
  power = min(len(_UNITS) - 1, int(np.log10(max(known, default=1.0)) // 3))
  power = max(0, power)
  notes, handles = [], {}
  for row, (name, pair) in enumerate(sent.items()):
    if np.isnan(pair).all():
      notes.append((name, 'no bytes recorded'))
      continue
    for i, part in enumerate(('pulled', 'pushed')):
      value = pair[i] / 1000.0**power
      if np.isnan(value):
        notes.append((name, f'no bytes {part} recorded'))
        continue
      y = row + 0.4 * i - 0.2
      bar = axes.barh(y, value, 0.36, **style.fill(i))
      handles.setdefault(f'{part} by workers', bar)
      axes.annotate(
        style.plain(float(f'{value:.3g}')),
        (value, y),
        (3, 0),
        textcoords='offset points',
        va='center',
        fontsize=7,
      )
  names = [style.shown(name, 30) for name in sent]
  axes.set_yticks(range(len(sent)), names, fontsize=8)
  axes.set_ylim(len(sent) - 0.4, -0.6)
  axes.set_xlim(0, 1.15 * max(known, default=1.0) / 1000.0**power)
  axes.grid(axis='x', alpha=0.3)
  axes.set_axisbelow(True)
  if not handles:
    sheet.nothing(axes, 'no bytes recorded')
  return sheet.finish(
    figure,
    [sheet.Panel(axes, '', notes)],
    title=title,
    label_x=f'{_UNITS[power]}, whole run',
    handles=dict(sorted(handles.items())),
  )


def bars(values, *, title: str, label: str):
  """Draws a bar per name: the median, with minimum and maximum.

  Args:
    values: measurements by name.
    title: above the picture.
    label: of the vertical axis, with the unit.

  Returns:
    A `Figure`.
  """
  values = {n: style.finite(v) for n, v in (values or {}).items()}
  many = len(values) > 8
  figure, (axes,) = sheet.new(
    10.0 if many else max(3.8, 1.2 * len(values) + 1.4), 3.6
  )
  notes = []
  for i, (name, measured) in enumerate(values.items()):
    if not len(measured):
      notes.append((name, 'not measured'))
      continue
    middle = float(np.median(measured))
    spread = [[middle - min(measured)], [max(measured) - middle]]
    axes.bar(i, middle, yerr=spread, capsize=4, **style.fill(i))
    if not many:
      axes.annotate(
        f'{middle:.3g}',
        (i, middle / 2),
        ha='center',
        va='center',
        bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1.5},
      )
  names = [textwrap.fill(style.shown(name), 16) for name in values]
  axes.set_xticks(range(len(values)), names, rotation=90 if many else 0)
  axes.set_xlim(-0.6, max(len(values), 1) - 0.4)
  axes.grid(axis='y', alpha=0.3)
  axes.set_axisbelow(True)
  if len(notes) == len(values):
    sheet.nothing(axes, 'no measurements')
  panel = sheet.Panel(axes, '', notes)
  return sheet.finish(figure, [panel], title=title, label_y=label)
