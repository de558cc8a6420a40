"""Data are known by what they hold: by every value, not by their path."""

import numpy as np
import pytest

from experiments import tasks
from experiments.settings import table as settings_lib
from ga_jax import data
from ga_jax.data import fingerprint, stream
from tests import tfds_sets


def arrays():
  rng = np.random.default_rng(0)
  return {
    'x_train': rng.random((6, 3), np.float32),
    'y_train': np.arange(6) % 2,
    'x_test': rng.random((4, 3), np.float32),
    'y_test': np.arange(4) % 2,
  }


def test_a_fingerprint_depends_on_every_value_shape_and_dtype():
  x = np.arange(6, dtype=np.int32)
  seen = {
    fingerprint.of_arrays(x),
    fingerprint.of_arrays(x.reshape(2, 3)),
    fingerprint.of_arrays(x.astype(np.int64)),
    fingerprint.of_arrays(x.view(np.float32)),
    fingerprint.of_arrays(x[::-1]),
    fingerprint.of_arrays(x, x[:0]),
    fingerprint.of_arrays(x[:5], x[5:]),
    *(fingerprint.of_arrays(np.where(x == i, 9, x)) for i in range(6)),
  }
  assert len(seen) == 13
  # sha256sum of '<i4 (6,)\n' and the six numbers, four bytes each.
  assert fingerprint.of_arrays(x) == '6-d40d1d72aff5cede'
  assert fingerprint.of_arrays(x) == fingerprint.of_arrays(x.astype('>i4'))
  strided = np.repeat(x, 2)[::2]
  assert fingerprint.of_arrays(x) == fingerprint.of_arrays(strided)
  assert fingerprint.of_texts(['ab', 'c']) != fingerprint.of_texts(['a', 'bc'])


def test_the_fingerprint_of_a_file_is_of_its_arrays(tmp_path):
  path, values = str(tmp_path / 'data.npz'), arrays()
  np.savez(path, **values)
  known = data.npz(path).fingerprint()
  assert {part: one.split('-')[0] for part, one in known.items()} == {
    'train': '6',
    'validation': '0',
    'test': '4',
  }
  np.savez_compressed(tmp_path / 'elsewhere.npz', **values)
  assert data.npz(str(tmp_path / 'elsewhere.npz')).fingerprint() == known
  for name, part in (('x_train', 'train'), ('y_test', 'test')):
    changed = {k: v.copy() for k, v in values.items()}
    changed[name].reshape(-1)[-1] = 1 - changed[name].reshape(-1)[-1]
    np.savez(path, **changed)
    other = data.npz(path).fingerprint()
    assert {k for k in known if known[k] != other[k]} == {part}
  held = data.npz(path).hold_out(2).fingerprint()
  assert [held[part][0] for part in data.base.SPLITS] == ['4', '2', '4']


def test_the_fingerprint_of_a_text_is_of_its_tokens(tmp_path, monkeypatch):
  monkeypatch.setenv('GA_JAX_CACHE', str(tmp_path / 'cache'))
  lines = [f'a line with the number {i}\n' for i in range(40)]
  path = tmp_path / 'text.txt'
  path.write_text(''.join(lines))
  known = data.characters(str(path)).fingerprint()
  lines[-1] = lines[-1].replace('3', '2', 1)
  path.write_text(''.join(lines))
  other = data.characters(str(path)).fingerprint()
  assert {k for k in known if known[k] != other[k]} == {'test'}
  path.write_text(''.join(lines).replace('w', 'W'))
  other = data.characters(str(path)).fingerprint()
  assert {k for k in known if known[k] != other[k]} >= {'test', 'vocabulary'}


def test_the_fingerprint_of_a_stream_is_of_files_and_samples(tmp_path):
  tfds_sets.write_imagenet(tmp_path / 'a', train=20, shards=2)
  tfds_sets.write_imagenet(tmp_path / 'b', train=20, shards=2)
  known = data.imagenet2012(str(tmp_path / 'a')).fingerprint()
  assert data.imagenet2012(str(tmp_path / 'b')).fingerprint() == known
  assert {part: one.split('-')[0] for part, one in known.items()} == {
    'train': '20',
    'validation': '0',
    'test': '6',
    'files': '4',
  }
  tfds_sets.write_imagenet(tmp_path / 'c', train=20, shards=2, broken=[7])
  other = data.imagenet2012(str(tmp_path / 'c')).fingerprint()
  assert {k for k in known if known[k] != other[k]} == {'train', 'files'}
  tfds_sets.write_imagenet(tmp_path / 'd', train=20, shards=1)
  other = data.imagenet2012(str(tmp_path / 'd')).fingerprint()
  assert {k for k in known if known[k] != other[k]} == {'files'}
  held = data.imagenet2012(str(tmp_path / 'a')).hold_out(5).fingerprint()
  assert (held['train'][:2], held['validation'][0]) == ('15', '5')


def test_the_fingerprint_of_a_large_stream_reads_only_some():
  read = []

  def read_fn(i):
    read.append(i)
    return bytes([i % 251]), i % 5

  train = stream.Records('train', read_fn, np.arange(10**6))
  none = train._replace(rows=train.rows[:0])
  made = stream.Stream(
    'large', train, none, none, view_fn=None, input_shape=(1, 1, 3),
    num_classes=5, mean=np.zeros(3), std=np.ones(3),
  )  # fmt: skip
  made.fingerprint()
  assert len(read) == 64
  assert (read[0], read[-1]) == (0, 999_999)


def test_a_fingerprint_names_an_example_that_cannot_be_read():
  def read_fn(i):
    raise OSError('the disk is gone')

  train = stream.Records('train', read_fn, np.arange(3))
  made = stream.Stream(
    'torn', train, train, train, view_fn=None, input_shape=(1, 1, 3),
    num_classes=5, mean=np.zeros(3), std=np.ones(3),
  )  # fmt: skip
  with pytest.raises(data.DataError, match='torn: train example 0 cannot be'):
    made.fingerprint()


def test_every_data_set_of_a_task_has_a_fingerprint():
  known = tasks.fingerprint_of(settings_lib.Settings(dataset='digits'))
  assert known['test'].split('-')[0] == '360'
  for kind in (data.Dataset, data.Corpus, data.Stream):
    assert callable(kind.fingerprint)
