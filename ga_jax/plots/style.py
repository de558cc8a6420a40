"""What all pictures share: looks, numbers, names, lines and scales."""

import functools
import math

import numpy as np

# Okabe and Ito's palette, safe for colour-blind readers, and two more; with
# markers and hatches everything can be told apart in grey too.
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
DASHES = ('-', '--', ':', '-.')
_REFERENCES = ('#999999', '#000000')
HATCHES = ('', '///', '\\\\\\', 'xxx', '---', '|||', '+++', '//', '||--')
GREY = '#555555'  # of what is said beside the data
POINTS = 1000  # of a line, at most: more cannot be seen
LARGEST = 1e100  # beyond it a number counts as not finite
_NAME = 46  # characters of a name that are shown


def numbers(values) -> np.ndarray:
  """Numbers as float64 [n]; what is None, not finite or absurd is NaN."""
  values = [] if values is None else values
  if not isinstance(values, np.ndarray):
    values = list(values)
  found = np.array(values, np.float64).ravel()
  found[~(np.abs(found) < LARGEST)] = np.nan
  found[np.abs(found) < 1 / LARGEST] = 0.0  # NaN stays
  return found


def finite(values) -> np.ndarray:
  """The numbers of `values` that are finite."""
  found = numbers(values)
  return found[~np.isnan(found)]


def mean_and_spread(values) -> tuple[float, float]:
  """Mean of finite numbers, and their standard deviation: 0 for one."""
  spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
  return float(np.mean(values)), float(spread)


def looks(names, references=()) -> dict[str, dict[str, object]]:
  """Colour and marker by method; dashes by what stands after its comma.

  Args:
    names: of what is drawn.
    references: up to two of them that are the same in many pictures: the first
      in grey, the second in black and dashed, without markers.

  Returns:
    {name: what matplotlib draws its line with}.
  """
  given = dict.fromkeys(name.partition(',')[0] for name in names)
  methods = [name for name in given if name not in references]
  colours = [c for c in COLOURS if not (references and c in _REFERENCES)]
  kinds = list(dict.fromkeys(name.partition(',')[2] for name in names))

  def look(name):
    method, _, kind = name.partition(',')
    if method in references:
      i = references.index(method) % len(_REFERENCES)
      return {'color': _REFERENCES[i], 'linestyle': DASHES[i], 'linewidth': 2.5}
    i, turn = methods.index(method), len(colours)
    return {
      'color': colours[i % turn],
      'markerfacecolor': 'white' if i % 2 else colours[i % turn],
      'marker': MARKERS[(i + i // turn) % turn],  # 100 different pairs
      'linestyle': DASHES[kinds.index(kind) % len(DASHES)],
    }

  return {name: look(name) for name in names}


def shown(name, most: int = _NAME) -> str:
  """A name as it can be drawn: one line, known glyphs, no formula, not long."""
  line = ' '.join(str(name).split())
  line = ''.join(c if ord(c) in _glyphs() else '?' for c in line)
  if len(line) > most:
    line = f'{line[: most - most // 3 - 1]}…{line[-(most // 3) :]}'
  return line.replace('$', r'\$')


@functools.cache
def _glyphs():
  """Characters that matplotlib's own font has."""
  from matplotlib import font_manager

  path = font_manager.findfont('DejaVu Sans')
  return frozenset(font_manager.get_font(path).get_charmap())


def fill(i: int) -> dict[str, object]:
  """Colour and hatch of the i-th kind of bar."""
  return {
    'color': COLOURS[i % len(COLOURS)],
    'edgecolor': 'black',
    'linewidth': 0.6,
    'hatch': HATCHES[i % len(HATCHES)],
  }


def plain(value: float) -> str:
  """A number as it stands at an axis: 0.002, 20, 1e5."""
  if value == 0 or 1e-3 <= abs(value) < 1e4:
    return f'{value:g}'
  digits, _, power = f'{value:.2g}'.partition('e')
  if not power:
    digits, _, power = f'{value:.0e}'.partition('e')
  return f'{digits}e{int(power)}'


def band(axes, x, mean, spread, look):
  """Draws a line with a band of one standard deviation around it.

  Args:
    axes: where.
    x: [n].
    mean: [n].
    spread: [n]; all 0 where there is no band.
    look: of `looks`.

  Returns:
    The line, for the legend.
  """
  every = max(1, len(x) // 12)
  (line,) = axes.plot(x, mean, markersize=5, markevery=every, **look)
  if np.any(spread):
    low, high = mean - spread, mean + spread
    axes.fill_between(
      x, low, high, color=look['color'], alpha=0.15, linewidth=0
    )
  return line


def logarithmic(axis, values):
  """Makes an axis logarithmic, with plain numbers.

  Args:
    axis: `axes.xaxis` or `axes.yaxis`.
    values: what is drawn, all above 0; bands below them are cut.
  """
  low, high = min(values) / 1.5, max(values) * 1.5
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  step = -(-len(decades) // 8)
  digits = (1, 2, 5) if len(decades) < 5 else (1,)
  marks = [m * 10.0**k for k in decades[::step] for m in digits]
  _logarithmic(axis, low, high, [m for m in marks if low <= m <= high])


def logarithmic_counts(axis, values):
  """Makes an axis logarithmic whose marks are these numbers, all above 0."""
  values = sorted(values)
  marks = values[:: -(-len(values) // 10)]
  _logarithmic(axis, values[0] / 1.4, values[-1] * 1.4, marks)


def _logarithmic(axis, low, high, marks):
  name = axis.axis_name
  axis.axes.set(**{f'{name}scale': 'log', f'{name}lim': (low, high)})
  axis.set_ticks(marks, [plain(m) for m in marks])
  axis.set_ticks([], minor=True)
