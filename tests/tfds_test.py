"""Data sets of TensorFlow Datasets, as they are read: without TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ga_jax import data
from ga_jax.data import origins
from tests import tfds_sets

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SETS = {
  'cifar10': ((32, 32, 3), 10),
  'cifar100': ((32, 32, 3), 100),
  'fashion_mnist': ((28, 28, 1), 10),
}


# What is read.


@pytest.mark.parametrize('name', SETS)
def test_images_are_those_of_tensorflow_datasets(name):
  shape, classes = SETS[name]
  with tfds.testing.mock_data(num_examples=7):
    dataset = data.DATASETS[name](None)
    source = tfds.data_source(name, split='train')
  assert dataset.train.inputs.shape == dataset.test.inputs.shape == (7, *shape)
  assert dataset.train.inputs.dtype == np.uint8
  assert dataset.train.labels.dtype == np.int32
  assert dataset.num_classes == classes
  for i in range(7):
    assert np.array_equal(dataset.train.inputs[i], source[i]['image'])
    assert dataset.train.labels[i] == source[i]['label']


def test_prepared_images_are_read_as_they_are(tmp_path):
  _, arrays = tfds_sets.write_cifar10(tmp_path, shards=3)
  dataset = data.cifar10(str(tmp_path))
  for split in ('train', 'test'):
    images, labels = arrays[split]
    found = getattr(dataset, split)
    assert np.array_equal(found.inputs, images)
    assert np.array_equal(found.labels, labels)
  flat = arrays['train'][0].reshape(-1, 3) / 255
  np.testing.assert_allclose(dataset.mean, flat.mean(0), rtol=1e-5)
  np.testing.assert_allclose(dataset.std, flat.std(0), rtol=1e-5)


def test_reading_needs_no_tensorflow(tmp_path):
  tfds_sets.write_cifar10(tmp_path)
  tfds_sets.write_imagenet(tmp_path)
  code = (
    'import sys\n'
    'from ga_jax import data\n'
    f'data.cifar10({str(tmp_path)!r})\n'
    f'stream = data.imagenet2012({str(tmp_path)!r}, image_size=16)\n'
    'stream.source(4, 0, augment=True).batch_fn(3)\n'
    'print(sum(int(b.valid.sum()) for b in stream.batches("test", 4)))\n'
    'print("tensorflow" in sys.modules)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == '6\nFalse\n'
  assert done.stderr == ''


# What cannot be read.


def refused(path, name='cifar10'):
  """The one line that says why a data set cannot be read."""
  with pytest.raises(data.DataError) as caught:
    data.DATASETS[name](path and str(path))
  message = str(caught.value)
  assert '\n' not in message
  run = f'python -m experiments.prepare --dataset={name}'
  assert run in message
  assert not path or f'--data_path={path}' in message
  return message


def test_a_data_set_that_is_not_prepared_is_refused(tmp_path, caplog):
  for name in ('cifar10', 'imagenet2012'):
    message = refused(tmp_path, name)
    assert f'{name} is not prepared in {tmp_path}' in message
    assert 'ga_jax[tfds]' in message
  assert caplog.text == ''


def test_a_folder_that_is_not_there_is_refused(tmp_path):
  assert 'none is not a folder' in refused(tmp_path / 'none')


def test_a_half_prepared_data_set_is_refused(tmp_path):
  folder, _ = tfds_sets.write_cifar10(tmp_path)
  os.unlink(os.path.join(folder, 'dataset_info.json'))
  message = refused(tmp_path)
  assert 'is not whole (no dataset_info.json)' in message
  assert '--overwrite' in message


def test_a_preparation_that_was_killed_counts_as_none(tmp_path):
  folder, _ = tfds_sets.write_cifar10(tmp_path)
  unfinished = os.path.join(os.path.dirname(folder), 'incomplete.1A2B3C_3.0.2')
  os.rename(folder, unfinished)
  assert 'cifar10 is not prepared in' in refused(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
  folder, _ = tfds_sets.write_cifar10(tmp_path, shards=3)
  name = 'cifar10-train.array_record-00001-of-00003'
  os.unlink(os.path.join(folder, name))
  message = refused(tmp_path)
  assert f'is not whole (no {name})' in message
  assert '--overwrite' in message


@pytest.mark.parametrize('kept', [0, 0.3, 0.9])
def test_a_shard_that_is_cut_short_is_named(tmp_path, kept):
  folder, _ = tfds_sets.write_cifar10(tmp_path, shards=2)
  name = 'cifar10-test.array_record-00000-of-00002'
  path = os.path.join(folder, name)
  os.truncate(path, int(kept * os.path.getsize(path)))
  message = refused(tmp_path)
  assert f'is not whole ({name}' in message
  assert '--overwrite' in message


def test_a_shard_with_other_records_is_named(tmp_path):
  folder, _ = tfds_sets.write_cifar10(tmp_path / 'a', train=12)
  other, _ = tfds_sets.write_cifar10(tmp_path / 'b', train=9)
  name = 'cifar10-train.array_record-00000-of-00001'
  os.replace(os.path.join(other, name), os.path.join(folder, name))
  message = refused(tmp_path / 'a')
  assert f'({name} has 9 records instead of 12)' in message


def test_a_format_that_only_tensorflow_reads_is_refused(tmp_path):
  tfds_sets.write_cifar10(tmp_path, file_format='tfrecord')
  message = refused(tmp_path)
  assert 'holds tfrecord, which only TensorFlow reads' in message
  assert '--overwrite' in message


def test_a_missing_split_is_named(tmp_path):
  images = [tfds_sets.encoded(np.zeros((8, 8, 3), np.uint8), 'JPEG')]
  tfds_sets.write('imagenet2012', tmp_path, {'train': (images, [0])})
  message = refused(tmp_path, 'imagenet2012')
  assert 'has no split validation, only train' in message


def test_a_damaged_image_is_named(tmp_path):
  rng = np.random.default_rng(0)
  images = [
    tfds_sets.encoded(rng.integers(0, 256, (32, 32, 3), np.uint8))
    for _ in range(5)
  ]
  images[3] = images[3][:400]
  tfds_sets.write(
    'cifar10', tmp_path, dict.fromkeys(('train', 'test'), (images, range(5)))
  )
  with pytest.raises(
    data.DataError, match='cifar10: train example 3 cannot be read: '
  ) as caught:
    data.cifar10(str(tmp_path))
  assert '\n' not in str(caught.value)


def test_the_command_shown_quotes_its_path():
  assert origins.command('cifar10', None) == (
    'python -m experiments.prepare --dataset=cifar10'
  )
  assert origins.command('cifar10', '/a b', '--overwrite').endswith(
    "--data_path='/a b' --overwrite"
  )
