"""What a data set is, and how batches are drawn from it."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax.data import fingerprint, scaling
from ga_jax.guards import checks
from ga_jax.job.source import Source

LAYOUTS = ('NHWC', 'NCHW')
SPLITS = ('train', 'validation', 'test')


class DataError(ValueError):
  """A data set that cannot be read; the message says what to do."""


class Split(NamedTuple):
  """Examples and their classes."""

  inputs: np.ndarray  # [n, H, W, C] uint8, or [n, ...] of floats, as given
  labels: np.ndarray  # [n] int32


class Batch(NamedTuple):
  """Stored examples to evaluate on."""

  inputs: np.ndarray  # [B, ...]
  labels: np.ndarray  # [B] int32
  valid: np.ndarray  # [B] bool; the last batch is filled up


class Dataset(NamedTuple):
  """A classification data set in host memory.

  Attributes:
    train: what is trained on.
    validation: held out of training, empty by default.
    test: what is reported.
    num_classes: classes are 0 ... num_classes − 1.
    mean: of the training inputs, bytes in [0, 1], per channel (feature of
      vectors).
    std: likewise; infinite where they are constant, which makes them 0.
    staged: the training inputs as `source` keeps them on the device, see
      `scaling.stage`.
  """

  train: Split
  validation: Split
  test: Split
  num_classes: int
  mean: np.ndarray
  std: np.ndarray
  staged: np.ndarray

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Of one example."""
    return self.train.inputs.shape[1:]

  @property
  def resident(self):
    """What `source` keeps on the device."""
    return self.staged, self.train.labels, self.mean, self.std

  def size(self, split: str) -> int:
    """How many examples 'train', 'validation' or 'test' has."""
    return len(getattr(self, split).labels)

  def batches(self, split: str, size: int) -> Iterator[Batch]:
    """A split in order, in batches of equal size."""
    inputs, labels = getattr(self, split)
    n = len(labels)
    size = min(checks.integer('size', size, 1), n)
    for start in range(0, n, size):
      rows = np.arange(start, start + size)
      valid = rows < n
      rows = np.minimum(rows, n - 1)
      yield Batch(inputs[rows], labels[rows], valid)

  def source(self, batch_size: int, seed: int, augment: bool = False) -> Source:
    """Training batches, see `training_source`."""
    return training_source(self, batch_size, seed, augment=augment)

  def hold_out(self, size: int) -> 'Dataset':
    """The data set with a validation split, see `hold_out`."""
    return hold_out(self, size)

  def fingerprint(self) -> dict[str, str]:
    """What the data are known by: every input and label of each split.

    Returns:
      {split: 'SIZE-DIGEST'}.
    """
    return {
      split: fingerprint.of_arrays(*getattr(self, split)) for split in SPLITS
    }


def make_dataset(
  name: str,
  train: Split,
  test: Split,
  num_classes: int | None = None,
  layout: str | None = None,
) -> Dataset:
  """Checks two splits and measures their statistics.

  Args:
    name: for messages.
    train: training split.
    test: test split.
    num_classes: how many there are, seen or not; None where every one of them
      has a training example.
    layout: of images, 'NHWC' ([n, H, W, C]) or 'NCHW', which is turned into the
      former; None to refuse what looks like the latter.

  Returns:
    A `Dataset` without a validation split.

  Raises:
    DataError: empty, of unequal shapes, channels first, not finite, or labels
      out of range or with gaps.
  """
  train, test = (
    Split(*_checked(f'{name}: {part}', *split, layout))
    for part, split in (('train', train), ('test', test))
  )
  ours, theirs = train.inputs, test.inputs
  for what, same in (
    ('shape', ours.shape[1:] == theirs.shape[1:]),
    ('dtype', (ours.dtype == np.uint8) == (theirs.dtype == np.uint8)),
  ):
    if not same:
      raise DataError(
        f'{name}: test inputs have {what} {getattr(theirs, what)}, train '
        f'inputs {getattr(ours, what)}'
      )
  if num_classes is None:
    num_classes = _classes(name, train.labels, test.labels)
  num_classes = checks.integer('num_classes', num_classes, 1)
  for part, labels in (('train', train.labels), ('test', test.labels)):
    if labels.max() >= num_classes:
      raise DataError(
        f'{name}: {part} labels must be 0 to {num_classes - 1}, got '
        f'{labels.max()}'
      )
  nothing = Split(train.inputs[:0], train.labels[:0])
  return _measured(train, nothing, test, num_classes)


def hold_out(dataset: Dataset, size: int) -> Dataset:
  """Takes a validation split out of the training split.

  The examples are drawn by a fixed permutation, so they are the same in every
  run, whatever its seed.

  Args:
    dataset: without a validation split.
    size: examples to take, fewer than there are.

  Returns:
    A `Dataset`.
  """
  size = checks.integer('size', size, 0)
  if size == 0:
    return dataset
  held, kept = held_out(len(dataset.train.labels), size)
  inputs, labels = dataset.train
  return _measured(
    Split(inputs[kept], labels[kept]),
    Split(inputs[held], labels[held]),
    dataset.test,
    dataset.num_classes,
  )


def held_out(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Indices of `size` examples that are held out, and of those that are kept.

  Raises:
    DataError: `size` is not from 1 to n − 1.
  """
  if not 0 < size < n:
    raise DataError(f'cannot hold out {size} of {n} training examples')
  order = np.random.default_rng(0).permutation(n)
  return order[:size], np.sort(order[size:])


def training_source(
  dataset: Dataset, batch_size: int, seed: int, *, augment: bool = False
) -> Source:
  """Shuffled training batches as a pure function of (seed, batch_id).

  The whole split lives on the device; a host batch is a row of indices. Each
  epoch has its own permutation; what does not fill a batch is left out of that
  epoch.

  Args:
    dataset: its training split is used.
    batch_size: examples per batch, at most the size of the split.
    seed: of the permutations.
    augment: random crop (images padded by an eighth of their side: by 4 of
      CIFAR's 32, by 3 of 28) and horizontal flip. The padding is the mean
      colour, as in He et al. 2016, who subtract the mean first; code that pads
      first, like torchvision's RandomCrop, pads with black.

  Returns:
    A `Source` of batches `(inputs [B, ...] float32, labels [B] int32)`.
  """
  return Source(
    shuffled(len(dataset.train.labels), batch_size, seed),
    load_augmented if augment else load,
    dataset.resident,
  )


def shuffled(n: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
  """The examples of a batch as a pure function of its id, [batch_size] int32.

  Each epoch has its own permutation; what does not fill a batch is left out of
  that epoch.

  Raises:
    DataError: `batch_size` exceeds `n`.
  """
  batch_size = checks.integer('batch_size', batch_size, 1)
  seed = checks.integer('seed', seed, 0)
  per_epoch = n // batch_size
  if per_epoch < 1:
    raise DataError(f'batch_size {batch_size} exceeds the {n} examples')

  @functools.lru_cache(maxsize=4)
  def order(epoch):
    tag = int.from_bytes(b'epoch', 'big')  # a stream of its own
    rng = np.random.Generator(np.random.PCG64([tag, seed, epoch]))
    return rng.permutation(n).astype(np.int32)

  def batch_fn(batch_id):
    epoch, i = divmod(batch_id, per_epoch)
    return order(epoch)[i * batch_size : (i + 1) * batch_size]

  return batch_fn


def load(resident, indices, key):
  """Gathers and normalises a batch on the device."""
  del key
  inputs, labels, mean, std = resident
  return scaling.normalise(inputs[indices], mean, std), labels[indices]


def load_augmented(resident, indices, key):
  """Like `load`, with a random crop and a horizontal flip."""
  crop_key, flip_key = jax.random.split(key)
  inputs, labels, mean, std = resident
  images = scaling.normalise(inputs[indices], mean, std)  # [B, H, W, C]
  batch, height = images.shape[:2]
  pad = max(height // 8, 1)
  padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * pad + 1)

  def crop(image, corner):
    start = (corner[0], corner[1], 0)
    return jax.lax.dynamic_slice(image, start, images.shape[1:])

  images = jax.vmap(crop)(padded, corners)
  flip = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
  return jnp.where(flip, images[:, :, ::-1], images), labels[indices]


def _checked(name: str, inputs, labels, layout: str | None):
  """One split in the form in which it is stored, or a DataError."""
  inputs, labels = np.asarray(inputs), np.asarray(labels)
  if inputs.ndim < 2:
    raise DataError(f'{name} inputs must be [n, ...], got {inputs.shape}')
  if not len(inputs):
    raise DataError(f'{name} split is empty')
  if not inputs.size:
    raise DataError(f'{name} inputs are empty, of shape {inputs.shape}')
  _check_labels(name, labels, len(inputs))
  if inputs.dtype != np.uint8:
    if not np.issubdtype(inputs.dtype, np.floating):
      raise DataError(
        f'{name} inputs must be uint8 or float, got {inputs.dtype}: bytes are '
        'divided by 255, floats may have any unit'
      )
    if inputs.dtype.itemsize > 8:
      inputs = inputs.astype(np.float64)
    if not np.isfinite(inputs).all():
      raise DataError(f'{name} inputs are not all finite')
    largest = max(float(inputs.max()), -float(inputs.min()))
    if largest > scaling.LARGEST:
      raise DataError(
        f'{name} inputs must be at most {scaling.LARGEST:g}, got {largest:g}'
      )
  return _channels_last(name, inputs, layout), labels.astype(np.int32)


def _check_labels(name: str, labels: np.ndarray, number: int):
  if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
    hint = ''
    if labels.ndim == 2 and labels.shape[1] > 1:
      hint = ': of one-hot rows give argmax(1)'
    raise DataError(
      f'{name} labels must be integers of shape [n], got '
      f'{labels.dtype} {labels.shape}{hint}'
    )
  if number != len(labels):
    raise DataError(f'{name} has {number} inputs but {len(labels)} labels')
  least, most = labels.min(), labels.max()
  if least < 0 or most >= 2**31:
    raise DataError(
      f'{name} labels must be 0, 1, ..., got {least if least < 0 else most}'
    )


def _channels_last(name: str, images, layout: str | None) -> np.ndarray:
  """Images as [n, H, W, C], or a DataError where that is in doubt."""
  if layout is not None and layout not in LAYOUTS:
    raise DataError(
      f'{name}: layout must be one of {", ".join(LAYOUTS)}, got {layout!r}'
    )
  if images.ndim == 3:  # grey ones
    return images[..., None]
  if images.ndim != 4 or layout == 'NHWC':
    return images
  if layout == 'NCHW':
    return np.ascontiguousarray(np.moveaxis(images, 1, -1))
  height, width, channels = images.shape[1:]
  if channels > 4 and (height <= 4 or height != width == channels):
    raise DataError(
      f'{name} images have shape {images.shape}, which looks like channels '
      f'first, {height} of {width} x {channels} pixels: they must be '
      '[n, H, W, C] (np.moveaxis(images, 1, -1) turns them), or their layout '
      "be given, 'NCHW' or 'NHWC'"
    )
  return images


def _classes(name: str, train: np.ndarray, test: np.ndarray) -> int:
  """The number of classes where each of them has a training example."""
  seen = np.unique(train)
  if len(seen) <= seen[-1]:
    first = int(np.argmax(seen != np.arange(len(seen))))
    raise DataError(
      f'{name}: train labels must be 0, 1, ... without gaps, got '
      f'{len(seen)} different ones from {seen[0]} to {seen[-1]} and none is '
      f'{first}: number the classes from 0, or give num_classes'
    )
  if len(seen) < 2:
    raise DataError(
      f'{name}: all train labels are {seen[0]}: at least 2 classes are needed'
    )
  unseen = np.setdiff1d(test, seen)
  if len(unseen):
    raise DataError(
      f'{name}: test labels hold {unseen[0]}, of which there is no training '
      f'example (train labels are 0 to {seen[-1]}): number both splits alike, '
      'or give num_classes'
    )
  return len(seen)


def _measured(train, validation, test, num_classes: int) -> Dataset:
  mean, std = scaling.statistics(train.inputs)
  staged = scaling.stage(train.inputs, mean, std)
  return Dataset(train, validation, test, num_classes, mean, std, staged)
