"""CIFAR as it is published: what is read, and what is refused, in one line.

The published files themselves are read where GA_JAX_CIFAR10 names their folder
or archive:

  GA_JAX_CIFAR10=DIR python -m pytest tests/cifar_test.py -m slow
"""

import os
import pickle

import numpy as np
import pytest

from experiments.records import cells
from experiments.settings import table as settings_lib
from ga_jax import data
from ga_jax.data import plain_pickle, scaling
from tests import cifar_files, scripts

REAL = os.environ.get('GA_JAX_CIFAR10', '')
FORMS = [*cifar_files.ARCHIVES]


def files_of(arrays, version):
  return {'binary': cifar_files.binary, 'python': cifar_files.python}[version](
    arrays
  )


def check(dataset, arrays, name):
  assert dataset.num_classes == {'cifar10': 10, 'cifar100': 100}[name]
  for split, (labels, images) in cifar_files.splits(arrays).items():
    found = getattr(dataset, split)
    assert found.inputs.dtype == np.uint8
    assert found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.inputs, images)
    np.testing.assert_array_equal(found.labels, labels)


def refused(path, name='cifar10'):
  with pytest.raises(data.DataError) as error:
    data.DATASETS[name](str(path))
  message = str(error.value)
  assert '\n' not in message
  assert str(path) in message
  return message


@pytest.fixture
def binary(tmp_path):
  """The folder of a small CIFAR-10."""
  cifar_files.write(tmp_path, cifar_files.binary(cifar_files.made('cifar10')))
  return tmp_path


def rewrite(path, change):
  path.write_bytes(change(path.read_bytes()))


# What is read.


@pytest.mark.parametrize(('name', 'version'), FORMS)
def test_published_files_are_read_wherever_they_lie(tmp_path, name, version):
  arrays = cifar_files.made(name)
  files = files_of(arrays, version)
  archive, folder = cifar_files.ARCHIVES[name, version]
  cifar_files.write(tmp_path / 'a' / folder, files)
  (tmp_path / 'b').mkdir()
  cifar_files.archive(tmp_path / 'b' / archive, folder, files)
  for place in ('a', f'a/{folder}', 'b', f'b/{archive}'):
    check(data.DATASETS[name](str(tmp_path / place)), arrays, name)


@pytest.mark.parametrize('protocol', [0, 1, 2, 3, 4])
def test_pickles_of_python_3_are_read(tmp_path, protocol):
  arrays = cifar_files.made('cifar100')
  write = cifar_files.python3(protocol)
  cifar_files.write(tmp_path, cifar_files.python(arrays, write))
  check(data.cifar100(str(tmp_path)), arrays, 'cifar100')


def test_cells_are_the_same_wherever_the_data_lie(binary):
  here = settings_lib.Settings(dataset='cifar10', data_path=str(binary))
  there = settings_lib.Settings(dataset='cifar10')
  assert here.data_name() == 'cifar10'
  assert cells.cell_name(here, any_version=True) == cells.cell_name(
    there, any_version=True
  )


def test_statistics_of_images_of_bytes_are_exact():
  rng = np.random.default_rng(0)
  for _ in range(20):
    shape = *rng.integers(1, 40, 3), rng.integers(1, 4)
    images = rng.integers(0, rng.integers(1, 257), shape).astype(np.uint8)
    images[..., 0] = 7  # what is constant counts as 0
    mean, std = scaling.statistics(images)
    flat = images.reshape(-1, shape[-1])
    expected = flat.std(0, dtype=np.float64) / 255
    expected[flat.min(0) == flat.max(0)] = np.inf
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_array_equal(
      mean, (flat.mean(0, dtype=np.float64) / 255).astype(np.float32)
    )
    np.testing.assert_array_equal(std, expected.astype(np.float32))


# What is refused.


def test_a_missing_batch_is_named(binary):
  (binary / 'data_batch_3.bin').unlink()
  assert 'has no data_batch_3.bin; all of cifar-10-binary' in refused(binary)


def test_a_file_of_another_size_is_named(binary):
  path = binary / 'data_batch_2.bin'
  rewrite(path, lambda content: content[:-1])
  assert f'{path} holds 12291 bytes, must hold a multiple of 3073' in refused(
    binary
  )
  path.write_bytes(b'')
  assert f'{path} holds 0 bytes' in refused(binary)


@pytest.mark.parametrize('file', ['data_batch_4.bin', 'test_batch.bin'])
def test_a_file_that_was_cut_between_images_is_noticed(binary, file):
  rewrite(binary / file, lambda content: content[:-3073])
  message = refused(binary)
  assert f'{file} has 3' in message
  assert message.count(' has 4') == 5


def test_a_wrong_label_is_named(binary):
  path = binary / 'test_batch.bin'
  rewrite(path, lambda c: c[: 2 * 3073] + b'\x0a' + c[2 * 3073 + 1 :])
  assert f'{path}: labels must be 0 to 9, image 2 has 10' in refused(binary)


def test_a_wrong_coarse_label_is_named(tmp_path):
  files = cifar_files.binary(cifar_files.made('cifar100'))
  files['train.bin'] = b'\x14' + files['train.bin'][1:]
  cifar_files.write(tmp_path, files)
  message = refused(tmp_path, 'cifar100')
  assert 'train.bin: coarse_labels must be 0 to 19, image 0 has 20' in message


def test_damaged_archives_are_refused(tmp_path):
  archive, folder = cifar_files.ARCHIVES['cifar10', 'binary']
  path = tmp_path / archive
  files = cifar_files.binary(cifar_files.made('cifar10'))
  cifar_files.archive(path, folder, files)
  whole = path.read_bytes()

  def flipped(i):
    return whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]

  for damaged in (
    *(whole[: len(whole) // 2], whole[:-1], b''),
    *(flipped(len(whole) // 2), flipped(len(whole) - 6), b'no archive'),
  ):
    path.write_bytes(damaged)
    assert 'cannot be read as .tar.gz' in refused(path)
  path.write_bytes(whole)
  assert 'is no archive of cifar100' in refused(path, 'cifar100')
  del files['test_batch.bin']
  cifar_files.archive(path, folder, files)
  assert f'{path} has no test_batch.bin; all of' in refused(path)


def test_what_is_not_there_names_what_brings_it(tmp_path):
  message = refused(tmp_path)
  assert 'python -m experiments.prepare --dataset=cifar10' in message
  assert 'or get cifar-10-binary.tar.gz from www.cs.toronto.edu' in message


# Pickles.


class Evil:
  """What runs a command when it is read."""

  def __reduce__(self):
    return os.mkdir, ('evil-was-here',)


@pytest.mark.parametrize(
  ('value', 'said'),
  [
    (Evil(), 'posix.mkdir'),
    (np.zeros(3, np.int64), 'an array of i8'),
    (np.array([None]), 'an array of O8'),
    (np.float64(1), 'scalar'),
    (settings_lib.Settings(), 'Settings'),
  ],
)
def test_pickles_that_are_not_plain_are_refused(
  binary, value, said, monkeypatch
):
  monkeypatch.chdir(binary)
  with pytest.raises(plain_pickle.NotPlainError, match=said):
    plain_pickle.loads(pickle.dumps({'data': value}, 2))
  for path in binary.glob('*.bin'):
    path.unlink()
  files = cifar_files.python(cifar_files.made('cifar10'))
  files['data_batch_1'] = pickle.dumps({'data': value}, 2)
  cifar_files.write(binary, files)
  message = refused(binary)
  assert 'data_batch_1 is refused: it holds ' in message
  assert not (binary / 'evil-was-here').exists()


def test_plain_values_are_read_as_they_are():
  value = {
    'a': [1, 2.5, None, True, 'text', b'bytes'],
    'b': (np.arange(6, dtype=np.uint8).reshape(2, 3), {'c': 1}),
  }
  for protocol in range(5):
    found = plain_pickle.loads(pickle.dumps(value, protocol))
    assert found['a'] == value['a']
    np.testing.assert_array_equal(found['b'][0], value['b'][0])
    assert found['b'][1] == value['b'][1]
  by_columns = np.asfortranarray(value['b'][0])
  found = plain_pickle.loads(pickle.dumps(by_columns, 2))
  np.testing.assert_array_equal(found, by_columns)


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    (b'no pickle', 'cannot be read as a pickle: '),
    (pickle.dumps([1]), 'is no dict with data, labels'),
    (pickle.dumps({'data': 1}, 2), 'is no dict with data, labels'),
    (pickle.dumps({'data': 1, 'labels': []}, 2), 'must be bytes of shape'),
    (
      pickle.dumps({'data': np.zeros((2, 3072), 'u1'), 'labels': [1.5, 2]}, 2),
      'labels must be a list of integers',
    ),
    (
      pickle.dumps({'data': np.zeros((2, 3072), 'u1'), 'labels': [1]}, 2),
      'has 2 images but 1 labels',
    ),
    (
      pickle.dumps({'data': np.zeros((2, 3072), 'u1'), 'labels': [1, -1]}, 2),
      'labels must be 0 to 9, image 1 has -1',
    ),
  ],
)
def test_pickles_of_something_else_are_named(tmp_path, content, said):
  files = cifar_files.python(cifar_files.made('cifar10'))
  files['data_batch_5'] = content
  cifar_files.write(tmp_path, files)
  message = refused(tmp_path)
  assert message.startswith(str(tmp_path / 'data_batch_5'))
  assert said in message


# Whether they are the published bytes.


def test_other_bytes_than_the_published_are_told(binary, monkeypatch):
  for name in ('TF_CPP_MIN_LOG_LEVEL', 'TF_ENABLE_ONEDNN_OPTS'):
    monkeypatch.setenv(name, '')  # the script sets these
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  ended = scripts.call('prepare', '--verify', f'--data_path={binary}')
  assert ended.code == 1
  assert ended.out.splitlines()[2] == 'data_batch_3.bin: other bytes'
  assert 'test_batch.bin is not what was published' in ended.err
  for flags, said in (
    ([], '--data_path=: must be the folder or archive of the published files'),
    (['--dataset=wikitext103'], 'the digests of cifar10 are known, not those'),
  ):
    ended = scripts.call('prepare', '--verify', *flags)
    assert ended.code == 2
    assert said in ended.err


def test_what_cannot_be_verified_is_told(tmp_path):
  cifar_files.write(tmp_path, cifar_files.python(cifar_files.made('cifar10')))
  with pytest.raises(data.DataError, match='known are the digests of data_bat'):
    data.published('cifar10', str(tmp_path))
  with pytest.raises(data.DataError, match='holds neither cifar-10'):
    data.published('cifar10', str(tmp_path / 'nothing'))


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason='GA_JAX_CIFAR10 names no folder')
def test_the_published_files_themselves():
  assert all(data.published('cifar10', REAL).values())
  dataset = data.cifar10(REAL)
  assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
  assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
  np.testing.assert_allclose(
    255 * dataset.mean, [125.307, 122.950, 113.865], atol=1e-3
  )
  np.testing.assert_allclose(
    255 * dataset.std, [62.993, 62.089, 66.705], atol=1e-3
  )
