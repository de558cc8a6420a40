"""What a run leaves on disk: JSON and pictures."""

import json
import math
import os
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from ga_jax import metrics, plots

# JSON.


def test_json_file_is_read_back(tmp_path):
  path = str(tmp_path / 'a.json')
  value = {'name': 'ga', 'list': [1, 2.5, None, True], 'deep': {'x': 'µ'}}
  metrics.write_json(path, value)
  with open(path) as file:
    assert json.load(file) == value


@pytest.mark.parametrize('old', [None, '{"old": 1}'])
def test_a_failed_write_leaves_the_old_file(tmp_path, old):
  path = tmp_path / 'a.json'
  if old is not None:
    path.write_text(old)
  with pytest.raises(TypeError):
    metrics.write_json(str(path), {'fine': [1] * 10_000, 'not': object()})
  if old is not None:
    assert path.read_text() == old
  assert os.listdir(tmp_path) == ([] if old is None else ['a.json'])


def test_a_write_leaves_only_its_file(tmp_path):
  path = tmp_path / 'a.json'
  for value in (1, 2):
    metrics.write_json(str(path), value)
  assert os.listdir(tmp_path) == ['a.json']
  assert json.loads(path.read_text()) == 2


def test_a_bare_file_name_is_in_the_working_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  metrics.write_json('a.json', [1])
  assert json.loads((tmp_path / 'a.json').read_text()) == [1]


@pytest.mark.parametrize(
  ('value', 'wanted'),
  [
    (math.nan, None),
    (-math.inf, None),
    (np.float32('nan'), None),
    (np.array([1.0, np.inf]), [1.0, None]),
    ({'a': (0.5, [math.inf])}, {'a': [0.5, [None]]}),
    ({1: np.int64(3), 'b': np.bool_(True)}, {'1': 3, 'b': True}),
    (np.float64(0.25), 0.25),
    ('nan', 'nan'),
  ],
)
def test_json_has_no_nan(tmp_path, value, wanted):
  path = tmp_path / 'a.json'
  metrics.write_json(str(path), value)

  def refuse(name):
    raise AssertionError(f'{name} is not JSON')

  assert json.loads(path.read_text(), parse_constant=refuse) == wanted


def test_json_lines_are_there_as_they_are_written(tmp_path):
  path = tmp_path / 'a.jsonl'
  rows = [{'epoch': 1.0, 'loss': 0.5}, {'loss': np.float32('inf')}]
  with metrics.JsonLines(str(path)) as log:
    for i, row in enumerate(rows):
      log.write(row)
      assert len(path.read_text().splitlines()) == i + 1
  with metrics.JsonLines(str(path)) as log:  # goes on where it was
    log.write({'text': 'two\nlines'})
  read = [json.loads(line) for line in path.read_text().splitlines()]
  assert read == [rows[0], {'loss': None}, {'text': 'two\nlines'}]


def test_json_lines_close_their_file_on_an_error(tmp_path):
  log = metrics.JsonLines(str(tmp_path / 'a.jsonl'))
  with pytest.raises(KeyError), log:
    raise KeyError
  with pytest.raises(ValueError, match='closed'):
    log.write({})


# Pictures.

CELLS = {
  'plain': {'asgd': {1: [2.0, 2.5], 4: [3.0, 3.5]}, 'ga': {1: [2.0], 4: [2.1]}},
  'one seed': {'asgd': {1: [2.0], 4: [3.0], 16: [9.0]}},
  'one worker': {'asgd': {8: [2.0, 3.0]}, 'ga': {8: [1.0, 1.5]}},
  'missing workers': {'asgd': {1: [2.0], 4: [3.0]}, 'ga': {4: [2.0]}},
  'some diverged': {'asgd': {1: [2.0, 3.0], 4: [None, 80.0]}},
  'one method diverged': {'asgd': {1: [None], 4: [None]}, 'ga': {1: [2.0]}},
  'all diverged': {'asgd': {1: [None, None], 4: [None]}, 'ga': {4: [None]}},
  'many methods': {f'method{i}': {1: [float(i)]} for i in range(11)},
}


@pytest.mark.parametrize('name', CELLS)
def test_picture_of_any_grid(tmp_path, name):
  path = tmp_path / 'error.svg'
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    plots.error_over_workers(
      str(path), CELLS[name], title='a title', label='test error, %'
    )
  text = path.read_text()
  assert ElementTree.fromstring(text).tag.endswith('svg')
  for method in CELLS[name]:
    assert f'<!-- {method} -->' in text  # it is in the legend
  for label in ('a title', 'test error, %', 'workers'):
    assert f'<!-- {label} -->' in text
  assert ('some runs diverged' in text) == ('diverged' in name)


def test_picture_as_png(tmp_path):
  path = tmp_path / 'error.png'
  plots.error_over_workers(
    str(path), CELLS['some diverged'], title='a title', label='error'
  )
  content = path.read_bytes()
  assert content.startswith(b'\x89PNG\r\n\x1a\n')
  assert content.endswith(b'IEND\xaeB`\x82')
  assert int.from_bytes(content[16:20], 'big') == 1050  # 7 inches of 150 dots


def drawn(monkeypatch, cells):
  """The figure's axes, instead of a file."""
  from matplotlib import figure

  seen = []
  monkeypatch.setattr(
    figure.Figure, 'savefig', lambda self, *_, **__: seen.append(self)
  )
  plots.error_over_workers('x.png', cells, title='', label='')
  return seen[0].axes[0]


def test_points_are_means_at_their_workers(monkeypatch):
  axes = drawn(
    monkeypatch,
    {'asgd': {4: [3.0, None, 5.0], 1: [2.0]}, 'ga': {16: [1.0], 4: [None]}},
  )
  lines = {line.get_label(): line for line in axes.lines}
  assert lines['asgd'].get_xdata().tolist() == [0, 1]  # of 1, 4, 16
  assert lines['asgd'].get_ydata().tolist() == [2.0, 4.0]
  assert lines['ga'].get_xdata().tolist() == [2]
  assert [t.get_text() for t in axes.get_xticklabels()] == ['1', '4', '16']
  band = axes.collections[0].get_paths()[0].vertices
  assert band[:, 1].min() == 2.0  # one run has no spread
  assert band[:, 1].max() == pytest.approx(4.0 + math.sqrt(2.0))


def test_every_method_has_its_own_look(monkeypatch):
  axes = drawn(monkeypatch, CELLS['many methods'])
  looks = {
    (line.get_color(), line.get_marker(), line.get_linestyle())
    for line in axes.lines
  }
  assert len(looks) == len(CELLS['many methods'])


def test_bars_are_drawn(tmp_path):
  path = str(tmp_path / 'bars.png')
  values = {'a long name that is wrapped': [1.0, 2.0, 4.0], 'b': [3.0]}
  plots.bars(path, values, title='title', label='batches per second')
  with open(path, 'rb') as file:
    assert file.read(4) == b'\x89PNG'
