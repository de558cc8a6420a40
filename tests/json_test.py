"""What a run leaves on disk: JSON."""

import json
import math
import os

import numpy as np
import pytest

from ga_jax.record import files


def test_json_file_is_read_back(tmp_path):
  path = str(tmp_path / 'a.json')
  value = {'name': 'ga', 'list': [1, 2.5, None, True], 'deep': {'x': 'µ'}}
  files.write_json(path, value)
  with open(path) as file:
    assert json.load(file) == value


@pytest.mark.parametrize('old', [None, '{"old": 1}'])
def test_a_failed_write_leaves_the_old_file(tmp_path, old):
  path = tmp_path / 'a.json'
  if old is not None:
    path.write_text(old)
  with pytest.raises(TypeError):
    files.write_json(str(path), {'fine': [1] * 10_000, 'not': object()})
  if old is not None:
    assert path.read_text() == old
  assert os.listdir(tmp_path) == ([] if old is None else ['a.json'])


def test_a_write_leaves_only_its_file(tmp_path):
  path = tmp_path / 'a.json'
  for value in (1, 2):
    files.write_json(str(path), value)
  assert os.listdir(tmp_path) == ['a.json']
  assert json.loads(path.read_text()) == 2


def test_a_bare_file_name_is_written_to_the_working_folder(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  files.write_json('a.json', [1])
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
  files.write_json(str(path), value)

  def refuse(name):
    raise AssertionError(f'{name} is not JSON')

  assert json.loads(path.read_text(), parse_constant=refuse) == wanted


def test_json_lines_are_there_as_they_are_written(tmp_path):
  path = tmp_path / 'a.jsonl'
  rows = [{'epoch': 1.0, 'loss': 0.5}, {'loss': np.float32('inf')}]
  with files.JsonLines(str(path)) as log:
    for i, row in enumerate(rows):
      log.write(row)
      assert len(path.read_text().splitlines()) == i + 1
  with files.JsonLines(str(path)) as log:  # goes on where it was
    log.write({'text': 'two\nlines'})
  read = [json.loads(line) for line in path.read_text().splitlines()]
  assert read == [rows[0], {'loss': None}, {'text': 'two\nlines'}]


def test_json_lines_close_their_file_on_an_error(tmp_path):
  log = files.JsonLines(str(tmp_path / 'a.jsonl'))
  with pytest.raises(KeyError), log:
    raise KeyError
  with pytest.raises(ValueError, match='closed'):
    log.write({})
