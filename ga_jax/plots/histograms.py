"""How often: staleness, and gap and penalty by decade."""

import numpy as np

from ga_jax.plots import sheet, style

_BARS = 160  # in one picture, at most


def staleness_histogram(counts, *, title: str):
  """Draws which part of the arrivals was how stale.

  Args:
    counts: {method: number of arrivals by staleness [n]}.
    title: above the picture.

  Returns:
    A `Figure`; means stand in the legend.
  """
  shares, names, notes = {}, {}, []
  for name, line in (counts or {}).items():
    share = _share(line)
    if share is None:
      notes.append((name, 'no staleness recorded'))
      continue
    mean = float(share @ np.arange(len(share))) / 100
    names[name] = f'{name}, mean {mean:.3g}'
    shares[name] = dict(enumerate(share))
  most = max((len(line) for line in shares.values()), default=1)
  step = -(-most // 16)
  return _histogram(
    shares,
    names,
    notes,
    marks={i: str(i) for i in range(0, most, step)},
    title=title,
    label='staleness, server updates',
    why='no staleness recorded' if notes else 'no runs',
  )


def histogram_by_decade(histograms, *, title: str, label: str):
  """Draws which part of the arrivals fell between which edges.

  Args:
    histograms: {method: {'edges': [n], 'counts': [n]}}, the last bin without an
      upper edge, as in the `gap_histogram` of a summary.
    title: above the picture.
    label: of the x axis, as 'gap'.

  Returns:
    A `Figure`; bins at both ends that are empty for all are left out.
  """
  shares, notes = {}, []
  for name, histogram in (histograms or {}).items():
    histogram = histogram or {}
    edges = style.numbers(
      f'{edge:.6g}' for edge in style.numbers(histogram.get('edges'))
    )
    share = _share(histogram.get('counts'))
    if share is None or np.isnan(edges).any() or len(edges) < len(share):
      notes.append((name, f'no histogram of the {label} recorded'))
      continue
    shares[name] = dict(zip(edges.tolist(), share, strict=False))
  edges = sorted({edge for line in shares.values() for edge in line})
  full = [e for e in edges if any(s.get(e) for s in shares.values())]
  if full:
    edges = edges[edges.index(full[0]) : edges.index(full[-1]) + 2]
  position = {edge: i for i, edge in enumerate(edges)}
  return _histogram(
    {
      name: {position[e]: s for e, s in line.items() if e in position}
      for name, line in shares.items()
    },
    {name: name for name in shares},
    notes,
    marks={i - 0.5: style.plain(e) for e, i in position.items()},
    title=title,
    label=label,
    why=f'no histogram of the {label} recorded' if notes else 'no runs',
  )


def _share(counts) -> np.ndarray | None:
  """Counts in % of all; None where there are none."""
  counts = np.nan_to_num(style.numbers(counts)).clip(0)
  return 100 * counts / counts.sum() if counts.sum() > 0 else None


def _histogram(shares, names, notes, *, marks, title, label, why):
  """Draws {name: {position of a bin: %}}: bars, or lines if they are many."""
  figure, (axes,) = sheet.new(7.0, 3.6)
  looks, handles = style.looks(shares), {}
  few = sum(len(line) for line in shares.values()) <= _BARS
  width = 0.84 / max(1, len(shares))
  for i, (name, line) in enumerate(shares.items()):
    x, y = np.array(sorted(line.items())).T
    if few:
      x = x + (i + 0.5) * width - 0.42
      handles[names[name]] = axes.bar(x, y, width, **style.fill(i))
    else:
      handles[names[name]] = style.band(axes, x, y, 0.0, looks[name])
  axes.set_xticks(list(marks), list(marks.values()))
  axes.set_ylim(bottom=0)
  axes.set_axisbelow(True)
  axes.grid(alpha=0.3)
  if not shares:
    sheet.nothing(axes, why)
  return sheet.finish(
    figure,
    [sheet.Panel(axes, '', notes)],
    title=title,
    label_x=label,
    label_y='arrivals, %',
    handles=handles,
  )
