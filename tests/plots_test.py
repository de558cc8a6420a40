"""Pictures: what is drawn, and that nothing makes them fail."""

import inspect
import itertools
import math
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import text as text_lib
from PIL import Image

from ga_jax import plots
from ga_jax.plots import style

NAMES = [
  'a method with a very long name that goes on and on and ends at last',
  *('_hidden', '$x^$', 'a$b', 'méthode', '模型 😀', '', 'two\nlines', '--'),
  *('<&>', 'bell \x07', 'ga, momentum 0', 'ga, momentum 0.9', 'x' * 300),
]
MANY = [f'method{i}' for i in range(25)]
NUMBERS = [
  *(None, math.nan, math.inf, -math.inf, 0, 0.0, -1.0, 5, 1e-320, 1e308),
  *(1e99, 1e-99, -1e308, np.float32(2), np.int64(7), 12.5),
]


def words(figure) -> str:
  """All that is written in a picture, line breaks as spaces."""
  texts = [t.get_text() for t in figure.findobj(text_lib.Text)]
  return ' '.join(' '.join(texts).split())


def drawn(figure):
  """The picture as SVG, without any warning; nothing written is cut off."""
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    text = plots.svg(figure)
  assert ElementTree.fromstring(text).tag.endswith('svg')
  box, size = figure.get_tightbbox(), figure.get_size_inches()
  slack = 0.12  # inches; text is not as wide at other resolutions
  assert min(box.x0, box.y0) > -slack
  assert box.x1 < size[0] + slack
  assert box.y1 < size[1] + slack
  return figure


# Every function, made from a name -> anything table.

LABELS = {'title': 'a title', 'label': 'test error, %'}


def by_x(values):
  return dict.fromkeys((1, 4, 16), values)


FIGURES = {
  'error_over_workers': lambda cells: plots.error_over_workers(
    {name: values and by_x(values) for name, values in cells.items()}, **LABELS
  ),
  'error_over_rates': lambda cells: plots.error_over_rates(
    {
      panel: {
        name: values
        and dict(zip((0.01, 0.1, 1.0, -1, 0), values, strict=False))
        for name, values in cells.items()
      }
      for panel in ('1 worker', '8 workers', '16 workers', '32 workers')
    },
    **LABELS,
  ),
  'curves': lambda cells: plots.curves(
    {
      column: {
        quantity: {
          name: values and (range(len(values)), values)
          for name, values in cells.items()
        }
        for quantity in ('test error, %', 'gap')
      }
      for column in ('8 workers', '16 workers')
    },
    **LABELS,
  ),
  'curves of seeds': lambda cells: plots.curves(
    {
      '8 workers': {
        'gap': {
          name: values and [(range(len(values)), values), (values, values)]
          for name, values in cells.items()
        }
      }
    },
    references=list(cells)[:2],
    **LABELS,
  ),
  'over_time': lambda cells: plots.over_time(
    {
      name: values
      and [
        (range(len(values)), values),
        (values, values[::-1]),
        (values[:1], values[:1]),
        (None, values),
      ]
      for name, values in cells.items()
    },
    quantity='gap',
    x='time',
    title='a title',
    label_x='time',
    label_y='gap',
  ),
  'scatter': lambda cells: plots.scatter(
    {
      panel: {
        name: values and (values[::-1], values)
        for name, values in cells.items()
      }
      for panel in ('gap', 'penalty')
    },
    title='a title',
    label='staleness',
  ),
  'staleness_histogram': lambda cells: plots.staleness_histogram(
    cells, title='a title'
  ),
  'histogram_by_decade': lambda cells: plots.histogram_by_decade(
    {
      name: values
      and {'edges': 10.0 ** np.arange(len(values)), 'counts': values}
      for name, values in cells.items()
    },
    **LABELS,
  ),
  'speedup': lambda cells: plots.speedup(
    {name: values and by_x(values) for name, values in cells.items()},
    title='a title',
  ),
  'speedup over ssgd': lambda cells: plots.speedup(
    {'ssgd': {1: [1.0], 4: [3.0, None], 64: [9.0]}}
    | {name: values and by_x(values) for name, values in cells.items()},
    title='a title',
  ),
  'bytes_sent': lambda cells: plots.bytes_sent(
    {
      name: values and (values[0], values[-1]) for name, values in cells.items()
    },
    title='a title',
  ),
  'bars': lambda cells: plots.bars(cells, **LABELS),
  'timeline': lambda cells: plots.timeline(
    [
      plots.Span(i, begin, end, kind)
      for i, values in enumerate(cells.values())
      for begin, end in itertools.pairwise(values or [])
      for kind in plots.KINDS
      if None not in (begin, end)
    ],
    title='a title',
    num_workers=len(cells),
    label_x='time',
  ),
}
CELLS = {
  'nothing at all': {},
  'nothing recorded': {'sa': None, 'ga': []},
  'nothing finite': {'sa': [None], 'ga': [math.nan, math.inf]},
  'one point': {'ga': [2.0]},
  'zeros': {'sa': [0.0, 0.0, 0.0], 'ga': [0.0, 1.0, 100.0]},
  'strange names and numbers': {
    name: NUMBERS[i:] + NUMBERS[:i] for i, name in enumerate(NAMES)
  },
  'many methods': {
    name: [10.0**i, None, 3.0 * i] for i, name in enumerate(MANY)
  },
}


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
  'cells',
  [
    cells
    if cells == 'strange names and numbers'
    else pytest.param(cells, marks=pytest.mark.slow)
    for cells in CELLS
  ],
)
@pytest.mark.parametrize('figure', FIGURES)
def test_no_input_makes_a_picture_fail(figure, cells):
  picture = drawn(FIGURES[figure](CELLS[cells]))
  assert 'a title' in words(picture)
  if cells.startswith('nothing') and figure not in ('speedup over ssgd',):
    assert 'nothing to draw' in words(picture)
  if cells == 'nothing recorded' and figure != 'timeline':
    assert re.search(r'sa(, ga)?: (no|not) ', words(picture))


@pytest.mark.slow
@pytest.mark.filterwarnings('error')
@settings(
  max_examples=150, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(
  figure=st.sampled_from(list(FIGURES)),
  cells=st.dictionaries(
    st.text(max_size=60) | st.sampled_from(NAMES),
    st.none()
    | st.lists(
      st.sampled_from(NUMBERS)
      | st.floats(-1e3, 1e3)
      | st.floats(allow_nan=True, allow_infinity=True),
      max_size=12,
    ),
    max_size=12,
  ),
)
def test_any_input_makes_a_picture(figure, cells):
  drawn(FIGURES[figure](cells))


@pytest.mark.parametrize('figure', FIGURES)
def test_no_data_makes_a_picture_that_says_so(figure):
  function = getattr(plots, figure.partition(' ')[0])
  names = inspect.signature(function).parameters
  given = dict.fromkeys(list(names)[1:], 'x')
  given.pop('references', None)
  if 'num_workers' in given:
    given['num_workers'] = 0
  assert 'nothing to draw: no ' in words(function(None, **given))


# What is drawn.


def lines_of(axes):
  """{method: its line}; a figure's legend tells which is which."""
  (legend,) = axes.figure.legends
  names = [text.get_text() for text in legend.get_texts()]
  looks = {
    (h.get_color(), h.get_marker()): name
    for h, name in zip(legend.legend_handles, names, strict=True)
  }
  return {
    looks[line.get_color(), line.get_marker()]: line
    for line in axes.lines
    if (line.get_color(), line.get_marker()) in looks
  }


def test_points_are_means_at_their_workers():
  figure = plots.error_over_workers(
    {'asgd': {4: [3.0, None, 5.0], 1: [2.0]}, 'ga': {16: [1.0], 4: [None]}},
    title='',
    label='',
  )
  axes = figure.axes[0]
  lines = lines_of(axes)
  assert lines['asgd'].get_xdata().tolist() == [0, 1]  # of 1, 4, 16
  assert lines['asgd'].get_ydata().tolist() == [2.0, 4.0]
  assert lines['ga'].get_xdata().tolist() == [2]
  assert [t.get_text() for t in axes.get_xticklabels()] == ['1', '4', '16']
  path = axes.collections[0].get_paths()[0].vertices
  assert path[:, 1].min() == 2.0  # one run has no spread
  assert path[:, 1].max() == pytest.approx(4.0 + math.sqrt(2.0))
  crosses = {t.get_text(): t.xy[0] for t in axes.texts if '×' in t.get_text()}
  assert crosses == {'× 1 of 3': 1, '× 1 of 1': 1}
  assert 'asgd diverged' in words(figure)


def test_one_seed_has_no_band_and_says_so():
  figure = plots.error_over_workers(
    {'asgd': {1: [2.0], 4: [3.0]}}, title='', label=''
  )
  assert not figure.axes[0].collections
  assert 'one run each: no bands' in words(figure)


def test_a_large_range_is_logarithmic():
  def scale(errors):
    cells = {'asgd': dict(enumerate([[e] for e in errors], 1))}
    return plots.error_over_workers(cells, title='', label='').axes[0]

  assert scale([2, 9]).get_yscale() == 'linear'
  assert scale([2, 11]).get_yscale() == 'log'
  assert scale([0, 11]).get_yscale() == 'linear'


def test_rates_that_diverged_are_crosses():
  figure = plots.error_over_rates(
    {'8 workers': {'ga': {0.1: 2.0, 1.0: None}, 'sa': {0.1: 5.0}}},
    title='',
    label='',
  )
  axes = figure.axes[0]
  (cross,) = [t for t in axes.texts if t.get_text() == '×']
  assert cross.xy[0] == 1.0
  assert axes.get_ylim() == pytest.approx((1.9, 4.0))
  assert 'sa: above the picture' in words(figure)


def over_time(runs):
  return plots.over_time(
    runs, quantity='gap', x='time', title='', label_x='', label_y=''
  )


def test_seeds_become_a_mean_and_a_band():
  figure = over_time(
    {
      'ga': [([1, 2, 3], [1.0, 2.0, 3.0]), ([2, 3, 4], [3.0, None, 5.0])],
      'sa': [([1, 2, 3], [2.0, 4.0, None]), ([1, 2], [4.0, 4.0])],
      'dc': [([1, 2], [None, None])],
      'dana': [(None, [1.0, 1.0])],
    }
  )
  axes = figure.axes[0]
  lines = lines_of(axes)
  assert lines['ga'].get_xdata().tolist() == [1.5, 2.0, 3.5]
  assert lines['ga'].get_ydata().tolist() == [2.0, 2.0, 4.0]
  path = axes.collections[0].get_paths()[0].vertices[:, 1]
  assert path.max() == pytest.approx(4.0 + math.sqrt(2.0))
  (end,) = [line for line in axes.lines if line.get_marker() == 'x']
  assert end.get_xydata().tolist() == [[2.0, 4.0]]
  said = words(figure)
  assert 'sa: 1 of 2 runs diverged (×)' in said
  assert 'dc: no gap recorded' in said
  assert 'dana: no time recorded' in said


def test_zeros_on_a_logarithmic_axis_are_named():
  x = [1, 2, 3]
  figure = over_time(
    {
      'ga': [(x, [0.1, 1.0, 10.0])],
      'ssgd': [(x, [0.0, 0.0, 0.0])],
      'sa': [(x, [0.0, 1.0, 1.0])],
    }
  )
  assert figure.axes[0].get_yscale() == 'log'
  assert lines_of(figure.axes[0])['sa'].get_xdata().tolist() == [2, 3]
  said = words(figure)
  assert 'ssgd: 0 throughout: not on a logarithmic axis' in said
  assert 'sa: 0 or less in part' in said


def test_long_lines_are_thinned_out():
  x = np.arange(100_000.0)
  figure = over_time({'ga': [(x, 1 + x)]})
  drawn_x = lines_of(figure.axes[0])['ga'].get_xdata()
  assert len(drawn_x) == style.POINTS
  assert drawn_x[[0, -1]].tolist() == [0, 99_999]
  assert 'ga: 1,000 of 100,000 points are drawn' in words(figure)


def test_a_method_looks_the_same_in_all_panels():
  x = [1, 2]
  figure = plots.curves(
    {
      '8 workers': {'gap': {'asgd': (x, x), 'ga': (x, x)}},
      '16 workers': {'gap': {'ga': (x, x)}},  # the other one diverged
    },
    title='',
    label='epoch',
  )
  (_, ga), (alone,) = (axes.lines for axes in figure.axes)
  assert ga.get_color() == alone.get_color()
  assert ga.get_marker() == alone.get_marker()


def test_references_are_grey_and_black_and_nothing_else_is():
  names = ['ssgd', *MANY, 'asgd']
  looks = style.looks(names, ('asgd', 'ssgd'))
  assert (looks['asgd']['color'], looks['asgd']['linestyle']) == (
    '#999999',
    '-',
  )
  assert (looks['ssgd']['color'], looks['ssgd']['linestyle']) == (
    '#000000',
    '--',
  )
  others = {looks[name]['color'] for name in MANY}
  assert len(others) == len(style.COLOURS) - 2
  assert not others & {'#999999', '#000000'}


def test_curves_have_a_band_over_seeds_and_points_none():
  seeds = [((1, 2), (3.0, 4.0)), ((1, 2), (5.0, 8.0))]
  figure = plots.curves(
    {'a': {'error': {'ga': seeds, 'asgd': seeds[0]}}},
    title='',
    label='epoch',
    references=('asgd',),
  )
  (axes,) = figure.axes
  lines = {tuple(line.get_ydata()) for line in axes.lines}
  assert {(4.0, 6.0), (3.0, 4.0)} <= lines
  assert len(axes.collections) == 1  # the band of `ga`


def test_two_lists_are_the_points_of_one_run():
  lines = {'ga': [[1, 2], [7.0, 8.0]]}  # as JSON has it
  figure = plots.curves({'a': {'error': lines}}, title='', label='epoch')
  (line,) = figure.axes[0].lines
  assert line.get_xydata().tolist() == [[1, 7], [2, 8]]


def test_points_that_a_logarithmic_axis_cannot_show_are_counted():
  figure = plots.scatter(
    {'gap': {'ga': ([1, 2, 3], [0.0, 1.0, None]), 'sa': ([1], [0.0])}},
    title='',
    label='staleness',
  )
  assert lines_of(figure.axes[0])['ga'].get_xydata().tolist() == [[2.0, 1.0]]
  assert 'ga: 2 of 3 points are not above 0' in words(figure)
  assert 'sa: no points recorded' in words(figure)


def test_every_method_has_its_own_look():
  names = [*(f'method{i}' for i in range(40)), 'method1, momentum 0']
  looks = style.looks(names)
  assert len({tuple(look.items()) for look in looks.values()}) == len(names)
  assert looks['method1']['color'] == looks['method1, momentum 0']['color']


def test_staleness_is_a_share_with_its_mean():
  figure = plots.staleness_histogram(
    {'asgd': [0, 1, 2, 1], 'sa': None, 'ssgd': [8]}, title=''
  )
  heights = [bar.get_height() for bar in figure.axes[0].patches]
  assert heights == [0, 25, 50, 25, 100]
  said = words(figure)
  assert 'asgd, mean 2 ssgd, mean 0' in said
  assert 'sa: no staleness recorded' in said


def test_decades_that_are_empty_for_all_are_left_out():
  edges = [0.0, 1e-8, 1e-7, 1e-6, 1e-5]
  figure = plots.histogram_by_decade(
    {
      'ga': {'edges': edges, 'counts': [0, 3, 1, 0, 0]},
      'sa': {'edges': edges, 'counts': [0, 0, 4, 0, 0]},
      'dc': {},
    },
    title='',
    label='gap',
  )
  axes = figure.axes[0]
  ticks = [t.get_text() for t in axes.get_xticklabels()]
  assert ticks == ['1e-8', '1e-7', '1e-6']
  heights = [bar.get_height() for bar in axes.patches]
  assert heights == [75, 25, 0, 0, 100, 0]
  assert 'dc: no histogram of the gap recorded' in words(figure)


def test_speed_is_compared_with_ssgd_at_the_same_number_of_workers():
  figure = plots.speedup(
    {
      'ga': {1: [1.0], 8: [8.0, 6.0], 16: [15.0]},
      'ssgd': {1: [1.0], 8: [3.0, 4.0]},
    },
    title='',
  )
  left, right = figure.axes
  assert lines_of(left)['ga'].get_ydata().tolist() == [1.0, 7.0, 15.0]
  ideal = lines_of(left)['ideal: N times as fast']
  assert ideal.get_xdata().tolist() == ideal.get_ydata().tolist()
  assert lines_of(right)['ga'].get_ydata().tolist() == [1.0, 2.0]
  assert lines_of(right)['ssgd'].get_ydata().tolist() == [1.0, 1.0]
  assert 'ga: no ssgd at 16 workers' in words(figure)
  alone = plots.speedup({'ga': {8: [7.0]}}, title='')
  assert len(alone.axes) == 1
  assert 'no ssgd: not compared with it' in words(alone)


def test_bytes_have_a_unit():
  figure = plots.bytes_sent({'ga': (2e6, 5e5), 'sa': None}, title='')
  widths = [bar.get_width() for bar in figure.axes[0].patches]
  assert widths == [2.0, 0.5]
  assert 'MB, whole run' in words(figure)
  assert 'sa: no bytes recorded' in words(figure)


def test_bars_are_medians():
  figure = plots.bars(
    {'a long name that is wrapped': [1.0, 4.0, 2.0], 'b': []},
    title='',
    label='batches per second',
  )
  (bar,) = figure.axes[0].patches
  assert bar.get_height() == 2.0
  assert 'b: not measured' in words(figure)


# Timelines.


def boxes(figure):
  """[worker, begin, end] of every rectangle."""
  return [
    (round(np.mean(p.vertices[:4, 1])), *p.vertices[[0, 1], 0].tolist())
    for collection in figure.axes[0].collections
    for p in collection.get_paths()
    if len(p.vertices) == 5
  ]


def test_a_timeline_has_a_row_per_worker():
  spans = [
    plots.Span(0, 0.0, 2.0, 'compute'),
    plots.Span(0, 2.0, 3.0, 'wait'),
    plots.Span(2, 0.0, 3.0, 'restart'),
    plots.Span(2, 3.0, 3.0, 'apply', 1),
  ]
  figure = drawn(plots.timeline(spans, title='', num_workers=3))
  assert boxes(figure) == [(0, 0, 2), (2, 0, 3), (0, 2, 3)]
  axes = figure.axes[0]
  ticks = [t.get_text() for t in axes.get_yticklabels()]
  assert ticks == ['updates', '0', '1', '2']
  assert [line.get_xdata() for line in axes.lines] == [[3.0]]
  said = words(figure)
  assert 'computes computes, restarted waits update' in said


def test_a_timeline_of_100_000_spans_shows_the_beginning():
  spans = [
    plots.Span(i % 8, float(i // 8), i // 8 + 1.0, 'compute')
    for i in range(100_000)
  ]
  figure = drawn(plots.timeline(spans, title='', num_workers=8))
  assert len(boxes(figure)) == 480
  assert 'the first 60 of 1.25e+04 are drawn' in words(figure)


def test_a_timeline_draws_at_most_1_024_workers():
  spans = [
    plots.Span(i, 0.01 * i, 20.0, kind)
    for i in range(1024)
    for kind in ('compute', 'lost')
  ]
  figure = drawn(plots.timeline(spans, title='', num_workers=1024))
  assert len(boxes(figure)) == 2048
  assert figure.get_size_inches()[1] < 13
  more = plots.timeline(spans, title='', num_workers=1100)
  assert '1,024 of 1,100 workers are drawn' in words(more)


# Files.

CELL = {'asgd': {1: [2.0, 3.0], 4: [None, 80.0]}}


@pytest.mark.parametrize(
  ('ending', 'first'),
  [('png', b'\x89PNG\r\n\x1a\n'), ('svg', b'<?xml'), ('pdf', b'%PDF')],
)
def test_the_ending_says_the_format(tmp_path, ending, first):
  contents = []
  for i in range(2):
    path = tmp_path / f'{i}.{ending}'
    plots.save(plots.error_over_workers(CELL, **LABELS), str(path))
    contents.append(path.read_bytes())
  assert contents[0].startswith(first)
  assert contents[0] == contents[1]  # the same data, the same file


def test_another_ending_is_refused(tmp_path):
  figure = plots.error_over_workers(CELL, **LABELS)
  with pytest.raises(ValueError, match=r'must end in .png, .svg or .pdf'):
    plots.save(figure, str(tmp_path / 'a.gif'))
  assert not list(tmp_path.iterdir())


def test_svg_is_one_element_for_a_page():
  text = plots.svg(plots.error_over_workers(CELL, **LABELS))
  assert text.startswith('<svg')
  assert text.rstrip().endswith('</svg>')
  assert '<!-- a title -->' in text


def test_bars_differ_in_grey(tmp_path):
  """Hatches tell bars apart where the colours are as dark."""
  path = str(tmp_path / 'grey.png')
  figure = plots.bars({'a': [2.0], 'b': [2.0], 'c': [2.0]}, **LABELS)
  plots.save(figure, path)
  with Image.open(path) as image:
    grey = np.asarray(image.convert('L'), np.float64)
  seen = []
  for bar in figure.axes[0].patches:
    box = bar.get_window_extent()  # at 100 dots per inch
    low, high = (int(1.5 * v) for v in (box.y0, box.y0 + 0.35 * box.height))
    left, right = (int(1.5 * v) + s for v, s in ((box.x0, 6), (box.x1, -6)))
    rows = grey[len(grey) - high : len(grey) - low, left:right]
    seen.append((rows.mean(), rows.std()))
  assert len(seen) == 3
  for i, (mean, spread) in enumerate(seen):
    for other, its in seen[:i]:
      assert max(abs(mean - other), abs(spread - its)) > 10
