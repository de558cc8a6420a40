"""Data sets: what is read, what is refused, and how batches are drawn."""

import gzip
import importlib.util
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax import data
from tests import cases

FASHION_MNIST = '/usr/share/datasets/fashion-mnist'
IDX_FILES = {
  'x_train': 'train-images-idx3-ubyte',
  'y_train': 'train-labels-idx1-ubyte',
  'x_test': 't10k-images-idx3-ubyte',
  'y_test': 't10k-labels-idx1-ubyte',
}


def image_arrays(train=7, test=3, side=5):
  rng = np.random.default_rng(1)
  arrays = {}
  for part, n in (('train', train), ('test', test)):
    arrays[f'x_{part}'] = rng.integers(0, 256, (n, side, side), np.uint8)
    arrays[f'y_{part}'] = (np.arange(n) % 3).astype(np.uint8)
  return arrays


def vector_arrays():
  rng = np.random.default_rng(2)
  return {
    'x_train': rng.normal(3.0, 2.0, (40, 4)),
    'y_train': np.arange(40) % 3,
    'x_test': rng.normal(3.0, 2.0, (9, 4)),
    'y_test': np.arange(9) % 3,
  }


def write_npz(folder, **arrays):
  path = os.path.join(folder, 'own.npz')
  np.savez(path, **arrays)
  return path


def idx_bytes(array):
  shape = struct.pack(f'>{array.ndim}I', *array.shape)
  return bytes((0, 0, 8, array.ndim)) + shape + array.tobytes()


def write_idx(folder, arrays, *, ending='', dotted=False):
  for key, name in IDX_FILES.items():
    name = name.replace('-idx', '.idx') if dotted else name
    write = gzip.open if ending == '.gz' else open
    with write(os.path.join(folder, name + ending), 'wb') as file:
      file.write(idx_bytes(arrays[key]))
  return str(folder)


def numbered(n):
  """A data set whose examples carry their own index."""
  inputs = np.arange(n, dtype=np.float32)[:, None]
  split = data.Split(inputs, np.arange(n) % 5)
  return data.make_dataset('numbered', split, split)


# Digits.


def test_digits_split_is_fixed_and_a_partition():
  from sklearn import datasets

  first, again = data.digits(), data.digits()
  assert first.train.inputs.shape == (1437, 8, 8, 1)
  assert first.test.inputs.shape == (360, 8, 8, 1)
  assert len(first.validation.labels) == 0
  assert first.num_classes == 10
  assert cases.same_bits(first.train, again.train)
  assert cases.same_bits(first.test, again.test)

  def rows(inputs, labels):
    flat = np.asarray(inputs, np.float64).reshape(len(labels), -1)
    return sorted(map(tuple, np.column_stack([flat, labels])))

  bunch = datasets.load_digits()
  whole = rows(np.round(bunch.images * 255 / 16), bunch.target)
  assert rows(*first.train) + rows(*first.test) != whole  # neither is sorted
  assert sorted(rows(*first.train) + rows(*first.test)) == whole


def test_digits_test_split_has_every_class():
  assert np.bincount(data.digits().test.labels).min() >= 25


def test_digits_take_no_path():
  with pytest.raises(data.DataError, match='data_path'):
    data.digits('/tmp')


# Holding out.


def test_hold_out_is_a_partition():
  dataset = data.hold_out(numbered(100), 23)
  held = dataset.validation.inputs[:, 0].tolist()
  kept = dataset.train.inputs[:, 0].tolist()
  assert len(held) == 23
  assert sorted(held + kept) == list(range(100))
  for split in (dataset.train, dataset.validation):
    assert np.array_equal(split.labels, split.inputs[:, 0] % 5)


def test_hold_out_is_drawn_not_cut_off():
  held = data.hold_out(numbered(100), 23).validation.inputs[:, 0]
  assert 25 < held.mean() < 75
  assert held.min() < 20
  assert held.max() > 80


def test_hold_out_does_not_depend_on_numpys_seed():
  np.random.seed(1)
  first = data.hold_out(numbered(50), 9)
  np.random.seed(2)
  assert cases.same_bits(
    first.validation, data.hold_out(numbered(50), 9).validation
  )


def test_hold_out_leaves_the_test_split_alone():
  dataset = numbered(50)
  assert cases.same_bits(data.hold_out(dataset, 9).test, dataset.test)
  assert data.hold_out(dataset, 0) is dataset


@pytest.mark.parametrize('size', [50, 51])
def test_hold_out_leaves_something_to_train_on(size):
  with pytest.raises(data.DataError, match=f'{size} of 50'):
    data.hold_out(numbered(50), size)


# Batches.


def test_batches_are_a_function_of_seed_and_id():
  batches = range(40)  # more epochs than any cache keeps
  one = data.training_source(numbered(17), 5, 3).batch_fn
  other = data.training_source(numbered(17), 5, 3).batch_fn
  forward = {i: one(i).tolist() for i in batches}
  shuffled = np.random.default_rng(0).permutation(batches).tolist()
  assert {i: other(i).tolist() for i in shuffled} == forward
  assert {i: one(i).tolist() for i in shuffled} == forward


def test_an_epoch_repeats_nothing():
  batch_fn = data.training_source(numbered(17), 5, 0).batch_fn
  epochs = [
    np.concatenate([batch_fn(3 * epoch + i) for i in range(3)])
    for epoch in range(20)
  ]
  for seen in epochs:
    assert len(set(seen.tolist())) == 15
    assert seen.min() >= 0
    assert seen.max() < 17
  assert set(np.concatenate(epochs).tolist()) == set(range(17))


def test_an_epoch_that_fills_its_batches_is_a_permutation():
  batch_fn = data.training_source(numbered(20), 5, 0).batch_fn
  for epoch in range(3):
    seen = np.concatenate([batch_fn(4 * epoch + i) for i in range(4)])
    assert sorted(seen.tolist()) == list(range(20))


def test_epochs_and_seeds_differ():
  def epoch_of(seed, epoch):
    batch_fn = data.training_source(numbered(60), 10, seed).batch_fn
    return tuple(np.concatenate([batch_fn(6 * epoch + i) for i in range(6)]))

  drawn = {epoch_of(seed, epoch) for seed in range(4) for epoch in range(4)}
  assert len(drawn) == 16


def test_a_batch_is_no_larger_than_the_split():
  assert len(data.training_source(numbered(10), 10, 0).batch_fn(7)) == 10
  with pytest.raises(data.DataError, match='batch_size 11'):
    data.training_source(numbered(10), 11, 0)


@pytest.mark.parametrize('arrays', [image_arrays(), vector_arrays()])
def test_loaded_batches_are_normalised(arrays, tmp_path):
  dataset = data.npz(write_npz(tmp_path, **arrays))
  source = data.training_source(dataset, 4, 0)
  indices = source.batch_fn(0)
  inputs, labels = source.load_fn(source.resident, indices, None)

  plain = arrays['x_train'].astype(np.float64)
  if arrays['x_train'].dtype == np.uint8:
    plain = plain[..., None] / 255
  axes = tuple(range(plain.ndim - 1))  # per channel, per feature
  wanted = (plain - plain.mean(axes)) / plain.std(axes)
  assert inputs.dtype == jnp.float32
  np.testing.assert_allclose(inputs, wanted[indices], rtol=1e-4, atol=1e-5)
  assert np.array_equal(labels, arrays['y_train'][indices])


def test_a_constant_feature_stays_finite(tmp_path):
  arrays = vector_arrays()
  arrays['x_train'][:, 1] = 2.0
  dataset = data.npz(write_npz(tmp_path, **arrays))
  inputs = data.to_float(
    jnp.asarray(dataset.train.inputs), dataset.mean, dataset.std
  )
  assert np.all(np.isfinite(inputs))
  assert np.all(inputs[:, 1] == 0)


# Augmentation.


def tiny_images(n, side, channels):
  rng = np.random.default_rng(4)
  inputs = rng.integers(0, 256, (n, side, side, channels), np.uint8)
  split = data.Split(inputs, np.arange(n))
  return data.make_dataset('tiny', split, split)


def windows(image, pad):
  """Every window of a padded image, and its mirror: {(row, column, flip)}."""
  side = image.shape[0]
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  found = {}
  for row in range(2 * pad + 1):
    for column in range(2 * pad + 1):
      window = padded[row : row + side, column : column + side]
      found[row, column, False] = window
      found[row, column, True] = window[:, ::-1]
  return found


@pytest.mark.parametrize(('side', 'pad'), [(4, 1), (16, 2)])
def test_augmented_images_are_shifted_and_flipped_windows(side, pad):
  n = 1000
  resident = data.training_source(tiny_images(2, side, 2), 2, 0).resident
  plain, _ = data.base.load(resident, np.arange(2), None)
  candidates = [windows(image, pad) for image in np.asarray(plain)]
  indices = np.arange(n) % 2
  images, labels = data.base.load_augmented(
    resident, indices, jax.random.key(0)
  )
  assert images.shape == (n, side, side, 2)
  assert np.array_equal(labels, indices)
  drawn = set()
  for image, index in zip(np.asarray(images), indices, strict=True):
    fitting = [
      name
      for name, window in candidates[index].items()
      if np.array_equal(image, window)
    ]
    assert len(fitting) == 1
    drawn.add(fitting[0])
  assert drawn == set(candidates[0])  # every shift, flipped and not


def test_augmentation_is_a_function_of_the_key():
  source = data.training_source(tiny_images(6, 4, 1), 6, 0, augment=True)

  def augmented(seed):
    key = jax.random.key(seed)
    return source.load_fn(source.resident, np.arange(6), key)[0]

  first, again, other = augmented(1), augmented(1), augmented(2)
  assert np.array_equal(first, again)
  assert not np.array_equal(first, other)


# IDX files.


@pytest.mark.parametrize(
  ('ending', 'dotted'), [('', False), ('.gz', False), ('', True), ('.gz', True)]
)
def test_idx_round_trip(tmp_path, ending, dotted):
  arrays = image_arrays()
  dataset = data.idx(write_idx(tmp_path, arrays, ending=ending, dotted=dotted))
  assert np.array_equal(dataset.train.inputs[..., 0], arrays['x_train'])
  assert np.array_equal(dataset.train.labels, arrays['y_train'])
  assert np.array_equal(dataset.test.inputs[..., 0], arrays['x_test'])
  assert np.array_equal(dataset.test.labels, arrays['y_test'])
  assert dataset.train.inputs.shape == (7, 5, 5, 1)
  assert dataset.train.labels.dtype == np.int32
  assert dataset.num_classes == 3


@pytest.mark.parametrize('path', [None, '', '/no/such/folder'])
def test_idx_needs_a_folder(path):
  with pytest.raises(data.DataError, match='data_path') as caught:
    data.idx(path)
  assert repr(path) in str(caught.value)


@pytest.mark.parametrize('name', IDX_FILES.values())
def test_idx_names_the_file_that_is_missing(tmp_path, name):
  folder = write_idx(tmp_path, image_arrays())
  os.unlink(tmp_path / name)
  with pytest.raises(data.DataError, match=name):
    data.idx(folder)


@pytest.mark.parametrize('name', IDX_FILES.values())
@pytest.mark.parametrize(
  'damage',
  [
    lambda content: content[:-1],  # payload cut short
    lambda content: content + b'\0',  # more than was announced
    lambda content: content[:6],  # not even a header
    lambda content: b'',
    lambda content: b'\0\0\x0d' + content[3:],  # floats
    lambda content: b'\x89PNG' + content[4:],
  ],
)
def test_idx_names_the_file_that_is_damaged(tmp_path, name, damage):
  folder = write_idx(tmp_path, image_arrays())
  path = tmp_path / name
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(data.DataError, match=name):
    data.idx(folder)


@pytest.mark.parametrize(
  'damage',
  [
    lambda content: content[:-12],  # the download broke off
    lambda content: content[:14] + bytes(255 - b for b in content[14:]),
    lambda content: b'<html>not found</html>',
  ],
)
def test_idx_names_the_archive_that_is_damaged(tmp_path, damage):
  folder = write_idx(tmp_path, image_arrays(), ending='.gz')
  path = tmp_path / 'train-images-idx3-ubyte.gz'
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(data.DataError, match=r'train-images-idx3-ubyte\.gz'):
    data.idx(folder)


def test_idx_wants_a_label_per_image(tmp_path):
  arrays = image_arrays()
  arrays['y_test'] = arrays['y_test'][:-1]
  folder = write_idx(tmp_path, arrays)
  with pytest.raises(
    data.DataError, match='test has 3 inputs but 2 labels'
  ) as e:
    data.idx(folder)
  assert folder in str(e.value)


@pytest.mark.skipif(
  not os.path.isdir(FASHION_MNIST),
  reason='needs apt install dataset-fashion-mnist',
)
def test_fashion_mnist_has_its_known_counts_and_statistics():
  dataset = data.idx(FASHION_MNIST)
  assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
  assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
  assert dataset.train.inputs.shape == (60000, 28, 28, 1)
  np.testing.assert_allclose(dataset.mean, [0.2860], atol=1e-4)
  np.testing.assert_allclose(dataset.std, [0.3530], atol=1e-4)


# NPZ files.


def test_npz_images_without_a_channel_axis_get_one(tmp_path):
  arrays = image_arrays()
  dataset = data.npz(write_npz(tmp_path, **arrays))
  assert dataset.train.inputs.shape == (7, 5, 5, 1)
  assert dataset.test.inputs.shape == (3, 5, 5, 1)
  assert dataset.train.inputs.dtype == np.uint8
  assert np.array_equal(dataset.train.inputs[..., 0], arrays['x_train'])
  assert np.array_equal(dataset.test.labels, arrays['y_test'])
  assert dataset.mean.shape == (1,)


def test_npz_vectors_are_read_with_their_statistics(tmp_path):
  arrays = vector_arrays()
  dataset = data.npz(write_npz(tmp_path, **arrays))
  assert np.array_equal(dataset.train.inputs, arrays['x_train'])
  assert dataset.staged.dtype == np.float32
  np.testing.assert_allclose(dataset.mean, arrays['x_train'].mean(0), rtol=1e-5)
  np.testing.assert_allclose(dataset.std, arrays['x_train'].std(0), rtol=1e-5)
  assert dataset.num_classes == 3


def test_npz_needs_a_path():
  with pytest.raises(data.DataError, match='data_path'):
    data.npz(None)


@pytest.mark.parametrize('key', ['x_train', 'y_train', 'x_test', 'y_test'])
def test_npz_names_the_missing_array(tmp_path, key):
  arrays = image_arrays()
  del arrays[key]
  with pytest.raises(data.DataError, match=rf'own\.npz has no {key};'):
    data.npz(write_npz(tmp_path, **arrays))


@pytest.mark.parametrize(
  'content',
  [
    b'hello',
    b'PK\x03\x04 this is no archive',
    b'',
  ],
)
def test_npz_names_a_file_of_another_format(tmp_path, content):
  path = tmp_path / 'own.npz'
  path.write_bytes(content)
  with pytest.raises(data.DataError, match=r'own\.npz cannot be read'):
    data.npz(str(path))


def test_npz_names_the_file_that_is_missing(tmp_path):
  with pytest.raises(data.DataError, match=r'none\.npz cannot be read'):
    data.npz(str(tmp_path / 'none.npz'))


def test_npz_names_a_file_that_is_cut_short(tmp_path):
  path = write_npz(tmp_path, **image_arrays())
  with open(path, 'r+b') as file:
    file.truncate(os.path.getsize(path) - 100)
  with pytest.raises(data.DataError, match=r'own\.npz cannot be read'):
    data.npz(path)


def test_npz_names_a_file_that_is_damaged_inside(tmp_path):
  path = tmp_path / 'own.npz'
  np.savez_compressed(path, **image_arrays())
  whole, messages = path.read_bytes(), []
  for i in range(0, len(whole), 7):
    damaged = bytearray(whole)
    damaged[i] ^= 0xFF
    path.write_bytes(damaged)
    try:
      data.npz(str(path))  # a time stamp may be damaged without harm
    except data.DataError as error:
      messages.append(str(error))
  assert len(messages) > 50
  assert all('own.npz' in message for message in messages)


def test_npz_refuses_an_npy_file(tmp_path):
  path = str(tmp_path / 'own.npy')
  np.save(path, image_arrays()['x_train'])
  with pytest.raises(data.DataError, match=r'own\.npy'):
    data.npz(path)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'x_train': np.full((40, 4), np.nan)}, 'train inputs are not all finite'),
    ({'x_test': np.full((9, 4), np.inf)}, 'test inputs are not all finite'),
    ({'y_train': np.arange(40.0) % 3}, 'train labels must be integers'),
    ({'y_test': np.zeros((9, 1), int)}, 'test labels must be integers'),
    ({'y_train': np.arange(40) % 3 - 1}, 'train labels must be 0, 1'),
    ({'y_test': np.full(9, -2)}, 'test labels must be 0, 1'),
    ({'y_train': np.zeros(39, int)}, 'train has 40 inputs but 39 labels'),
    ({'x_test': np.zeros((9, 5))}, 'test inputs have shape'),
    ({'x_train': np.zeros((40, 4), int)}, 'must be uint8 or float'),
    ({'x_train': np.zeros((0, 4)), 'y_train': np.zeros(0, int)}, 'is empty'),
    ({'x_train': np.array([None] * 40)}, 'cannot be read'),
    ({'y_train': np.array(1)}, 'train labels must be integers'),
    ({'x_train': np.array(1.0)}, 'train inputs must be'),
    ({'x_test': np.zeros((9, 4), np.uint8)}, 'test inputs have dtype uint8'),
    ({'y_train': np.arange(40) + 2**33}, 'train labels must be'),
    ({'y_train': np.arange(40) % 2 * 1000}, 'from 0 to 1000 and none is 1:'),
    ({'y_train': np.arange(40) % 3 + 1}, 'from 1 to 3 and none is 0:'),
    ({'y_test': np.arange(9)}, 'test labels hold 3, of which there is no'),
    ({'y_train': np.zeros(40, int)}, 'all train labels are 0: at least 2'),
    ({'y_train': np.eye(3, dtype=int)[np.arange(40) % 3]}, r'argmax\(1\)'),
    (
      {'y_train': np.arange(40) % 2 == 0},
      'labels must be integers .* got bool',
    ),
    ({'x_train': np.zeros((40, 4), bool)}, 'uint8 or float, got bool'),
    ({'x_train': np.zeros((40, 4), complex)}, 'uint8 or float, got complex'),
    ({'x_train': np.zeros((40, 0))}, r'inputs are empty, of shape \(40, 0\)'),
    ({'x_test': np.full((9, 4), -1e301)}, r'at most 1e\+300, got 1e\+301'),
    ({'num_classes': 2}, 'train labels must be 0 to 1, got 2'),
    ({'num_classes': 2.5}, 'num_classes must be an integer, got'),
    ({'layout': 'CHW'}, "layout must be one of NHWC, NCHW, got 'CHW'"),
    ({'layout': 3}, 'layout must be a string, got'),
  ],
)
def test_npz_names_what_is_wrong_with_its_arrays(tmp_path, changed, message):
  path = write_npz(tmp_path, **{**vector_arrays(), **changed})
  with pytest.raises(data.DataError, match=message) as caught:
    data.npz(path)
  assert path in str(caught.value)


def test_a_class_without_a_training_example_must_be_declared():
  train = data.Split(np.zeros((2, 3)), np.array([0, 1]))
  test = data.Split(np.zeros((1, 3)), np.array([4]))
  with pytest.raises(data.DataError, match='test labels hold 4, of which'):
    data.make_dataset('two', train, test)
  assert data.make_dataset('two', train, test, num_classes=5).num_classes == 5
  with pytest.raises(data.DataError, match='labels must be 0 to 3, got 4'):
    data.make_dataset('two', train, test, num_classes=4)


def test_idx_labels_that_begin_at_1_are_refused(tmp_path):
  arrays = image_arrays()
  arrays['y_train'] = arrays['y_train'] + np.uint8(1)  # as EMNIST's letters
  with pytest.raises(data.DataError, match='from 1 to 3 and none is 0') as e:
    data.idx(write_idx(tmp_path, arrays))
  assert str(tmp_path) in str(e.value)


@pytest.mark.parametrize(
  'shape', [(3, 32, 32), (1, 28, 28), (4, 8, 9), (12, 32, 32)]
)
def test_channels_first_are_refused_unless_the_layout_says_so(tmp_path, shape):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (6, *shape), np.uint8)
  own = {f'x_{part}': images for part in ('train', 'test')}
  own |= {f'y_{part}': np.arange(6) % 2 for part in ('train', 'test')}
  with pytest.raises(data.DataError, match='looks like channels first') as e:
    data.npz(write_npz(tmp_path, **own))
  assert f'images have shape {(6, *shape)}' in str(e.value)
  assert '[n, H, W, C]' in str(e.value)
  turned = data.npz(write_npz(tmp_path, **own, layout='NCHW'))
  assert turned.input_shape == (*shape[1:], shape[0])
  assert np.array_equal(turned.test.inputs[:, 1, 2, 0], images[:, 0, 1, 2])
  kept = data.npz(write_npz(tmp_path, **own, layout='NHWC'))
  assert np.array_equal(kept.train.inputs, images)


@pytest.mark.parametrize(
  'shape', [(32, 32, 3), (8, 8, 1), (3, 3, 3), (2, 4, 4), (64, 64, 12), (9, 5)]
)
def test_channels_last_are_accepted(tmp_path, shape):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(6, *shape))
  own = {f'x_{part}': images for part in ('train', 'test')}
  own |= {f'y_{part}': np.arange(6) % 2 for part in ('train', 'test')}
  wanted = shape if len(shape) == 3 else (*shape, 1)
  for said in ({}, {'layout': 'NHWC'}, {'num_classes': 4}):
    dataset = data.npz(write_npz(tmp_path, **own, **said))
    assert dataset.input_shape == wanted
    assert dataset.num_classes == said.get('num_classes', 2)


# What is not there.

BRINGS = {
  'digits': 'pip install scikit-learn',
  'idx': 'apt install dataset-fashion-mnist (Debian) brings /usr/share/',
  'npz': 'numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)',
  'cifar10': 'python -m experiments.prepare --dataset=cifar10',
  'cifar100': 'python -m experiments.prepare --dataset=cifar100',
  'fashion_mnist': 'or, on Debian, apt install dataset-fashion-mnist',
  'imagenet2012': 'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from',
  'text': 'one file or a folder with train.txt, valid.txt and test.txt',
  'characters': 'one file or a folder with train.txt, valid.txt and test.txt',
  'wikitext103': 'get https://wikitext.smerity.com/wikitext-103-v1.zip',
}


@pytest.mark.parametrize('name', data.DATASETS)
def test_missing_data_are_named_with_how_to_get_them(name, tmp_path):
  """By the data set itself, and by the check of a command's flags."""
  prepared = 'python -m' in data.origin(name)
  if prepared:
    assert "pip install 'ga_jax[tfds]'" in data.origin(name)
  for path in (str(tmp_path / 'none'), str(tmp_path) if prepared else None):
    if name == 'digits' and path is None:
      continue  # they are there
    with pytest.raises(data.DataError) as caught:
      data.DATASETS[name](path)
    assert BRINGS[name] in str(caught.value)
    assert '\n' not in str(caught.value)
  settings = settings_lib.Settings(dataset=name, data_path='/no/such')
  with pytest.raises(settings_lib.SettingError) as caught:
    check.check(settings)
  assert '--data_path=/no/such: no such file or folder; ' in str(caught.value)
  assert BRINGS[name] in str(caught.value)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(data.DataError, match='pip install scikit-learn'):
    data.digits()


# Units.


def staged(arrays, folder, holdout=0):
  """What training and a test batch see of arrays."""
  dataset = data.hold_out(data.npz(write_npz(folder, **arrays)), holdout)
  seen = data.to_float(dataset.test.inputs, dataset.mean, dataset.std)
  return np.asarray(dataset.resident[0]), np.asarray(seen)


@pytest.mark.parametrize('power', [-960, -60, -21, -1, 13, 60, 980])
def test_inputs_in_another_unit_are_normalised_to_the_same_bits(
  tmp_path, power
):
  """To the bit: a power of two multiplies without rounding."""
  arrays = vector_arrays()
  for part in ('train', 'test'):
    x = arrays[f'x_{part}']
    arrays[f'x_{part}'] = np.column_stack([x, x[:, 0] > 3, 7.1 + 0 * x[:, 1]])
  arrays['x_test'][:, -1] = 5.0  # constant in training only
  other = {
    key: np.ldexp(value, power) if key.startswith('x') else value
    for key, value in arrays.items()
  }
  for ours, theirs in zip(
    staged(other, tmp_path, 7), staged(arrays, tmp_path, 7), strict=True
  ):
    assert np.array_equal(ours, theirs)
    assert np.all(ours[:, -1] == 0)
    assert 0.5 < ours[:, :-1].std() < 1.5


def test_every_feature_may_have_a_unit_of_its_own(tmp_path):
  arrays = vector_arrays()
  units = [1e-200, 1.0, 1e-300, 1e290]
  own = arrays | {k: arrays[k] * units for k in ('x_train', 'x_test')}
  for ours, theirs in zip(
    staged(own, tmp_path), staged(arrays, tmp_path), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_a_large_offset_of_inputs_costs_no_precision(tmp_path):
  arrays = vector_arrays()
  shifted = {
    key: value + 2e6 if key.startswith('x') else value  # the spread is 2
    for key, value in arrays.items()
  }
  for ours, theirs in zip(
    staged(shifted, tmp_path), staged(arrays, tmp_path), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-7)


def test_a_channel_of_bytes_that_is_constant_counts_as_0():
  """In training: whatever it holds later."""
  train = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 2), np.uint8)
  test = train.copy()
  train[..., 1] = 77
  labels = np.arange(8) % 2
  dataset = data.make_dataset(
    'channels', data.Split(train, labels), data.Split(test, labels)
  )
  for inputs in (train, test):
    seen = data.to_float(inputs, dataset.mean, dataset.std)
    assert np.all(seen[..., 1] == 0)
    assert np.std(seen[..., 0]) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.longdouble])
def test_inputs_of_any_float_type_give_the_same_float32(tmp_path, dtype):
  arrays = vector_arrays()
  own = {
    key: value.astype(dtype) if key.startswith('x') else value
    for key, value in arrays.items()
  }
  wide = own | {k: own[k].astype(np.float64) for k in ('x_train', 'x_test')}
  for ours, theirs in zip(
    staged(own, tmp_path), staged(wide, tmp_path), strict=True
  ):
    assert ours.dtype == np.float32
    assert np.array_equal(ours, theirs)
