"""CIFAR-10 and CIFAR-100 as they are published, or as they were prepared.

The binary and the Python version are read, in folders or in their archives,
whole or as smaller sets of the same form: all files of training hold equally
many images, a fifth of them all as many as the test has. They live on the
device as bytes.

References:
  Krizhevsky, `Learning Multiple Layers of Features from Tiny Images
  <https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf>`_, 2009; the
  files: `the CIFAR-10 dataset <https://www.cs.toronto.edu/~kriz/cifar.html>`_.
"""

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from typing import NamedTuple

import numpy as np

from ga_jax.data import base, plain_pickle, tfds_images

_SHAPE = (3, 32, 32)  # planes of red, green and blue
_BYTES = 3 * 32 * 32
_TRAIN_PER_TEST = 5


class Version(NamedTuple):
  """A form in which a set is published.

  Attributes:
    archive: its file.
    folder: that the archive holds.
    files: those of training, then that of the test.
    pickled: whether they are pickles (the Python version), not records.
  """

  archive: str
  folder: str
  files: tuple[str, ...]
  pickled: bool


# How many there are of each label of an image, in the order of a record's
# first bytes and by their names in pickles; the last one is the class.
LABELS = {
  'cifar10': {'labels': 10},
  'cifar100': {'coarse_labels': 20, 'fine_labels': 100},
}
_BATCHES = tuple(f'data_batch_{i}' for i in range(1, 6))
VERSIONS = {
  'cifar10': (
    Version(
      'cifar-10-binary.tar.gz',
      'cifar-10-batches-bin',
      (*(f'{batch}.bin' for batch in _BATCHES), 'test_batch.bin'),
      pickled=False,
    ),
    Version(
      'cifar-10-python.tar.gz',
      'cifar-10-batches-py',
      (*_BATCHES, 'test_batch'),
      pickled=True,
    ),
  ),
  'cifar100': (
    Version(
      'cifar-100-binary.tar.gz',
      'cifar-100-binary',
      ('train.bin', 'test.bin'),
      pickled=False,
    ),
    Version(
      'cifar-100-python.tar.gz',
      'cifar-100-python',
      ('train', 'test'),
      pickled=True,
    ),
  ),
}
SHA1 = {  # of published files
  'data_batch_1.bin': 'aadd24acce27caa71bf4b10992e9e7b2d74c2540',
  'data_batch_2.bin': 'c0ba65cce70568cd57b4e03e9ac8d2a5367c1795',
  'data_batch_3.bin': '1dd00a74ab1d17a6e7d73e185b69dbf31242f295',
  'data_batch_4.bin': 'aab85764eb3584312d3c7f65fd2fd016e36a258e',
  'data_batch_5.bin': '26e2849e66a845b7f1e4614ae70f4889ae604628',
  'test_batch.bin': '67eb016db431130d61cd03c7ad570b013799c88c',
}


def cifar10(path: str | None = None) -> base.Dataset:
  """50,000 training and 10,000 test images of 10 classes.

  Args:
    path: what was published (`cifar-10-binary.tar.gz`, `cifar-10-python.tar.gz`
      or their files; the folder with one of them, or an archive), or the
      data_dir in which TensorFlow Datasets prepared it; None for
      ~/tensorflow_datasets.

  Returns:
    A `Dataset` of [32, 32, 3] images.

  Raises:
    DataError: not there, or not whole; it says what is wrong.
  """
  return _dataset('cifar10', path)


def cifar100(path: str | None = None) -> base.Dataset:
  """50,000 training and 10,000 test images of 100 classes (the fine labels).

  Args:
    path: what was published (`cifar-100-binary.tar.gz`,
      `cifar-100-python.tar.gz` or their files), or a data_dir; see `cifar10`.

  Returns:
    A `Dataset` of [32, 32, 3] images.

  Raises:
    DataError: not there, or not whole; it says what is wrong.
  """
  return _dataset('cifar100', path)


def published(name: str, path: str) -> dict[str, bool]:
  """Whether files are the published ones, byte for byte.

  Args:
    name: 'cifar10'; of other sets no digests are known here.
    path: see `cifar10`.

  Returns:
    {file: whether its SHA-1 is that of the published file}.

  Raises:
    DataError: not there, or of a version whose digests are not known here.
  """
  found = _find(name, path)
  if found is None:
    wanted = ' or '.join(version.archive for version in VERSIONS[name])
    raise base.DataError(f'{path} holds neither {wanted} nor their files')
  if not SHA1.keys() >= found.files.keys():
    raise base.DataError(
      f'{found.where} cannot be verified: known are the digests of '
      f'{", ".join(SHA1)} (the binary version of CIFAR-10)'
    )
  return {
    file: hashlib.sha1(content).hexdigest() == SHA1[file]
    for file, content in found.files.items()
  }


class _Found(NamedTuple):
  """The files of a set."""

  where: str  # the folder or archive
  version: Version
  files: dict[str, bytes]  # in the version's order


def _dataset(name: str, path: str | None) -> base.Dataset:
  prepared = not path or os.path.isdir(os.path.join(path, name))
  found = None if prepared else _find(name, path)
  if found is None:
    return tfds_images.images(name, path)
  read = _pickle if found.version.pickled else _records
  splits = [
    read(os.path.join(found.where, file), content, LABELS[name])
    for file, content in found.files.items()
  ]
  *train, test = splits
  _check_numbers(found, splits)
  whole = base.Split(*map(np.concatenate, zip(*train, strict=True)))
  classes = [*LABELS[name].values()][-1]
  return base.make_dataset(name, whole, test, classes, layout='NHWC')


def _check_numbers(found: _Found, splits):
  """Files that were cut at the end of an image differ in their number."""
  *train, test = (len(split.labels) for split in splits)
  each = _TRAIN_PER_TEST / len(train)  # training file, in test files
  if any(number != each * test for number in train):
    held = zip(found.files, (*train, test), strict=True)
    raise base.DataError(
      f'{found.where} holds files that were cut: of images '
      f'{", ".join(f"{file} has {number}" for file, number in held)}, where a '
      f'training file must have {"as many as" if each == 1 else "5 times"} '
      'the test'
    )


def _find(name: str, path: str) -> _Found | None:
  """What was published at a path, read; None where nothing is."""
  if os.path.isfile(path):
    return _of_archive(name, path)
  for version in VERSIONS[name]:
    for folder in (path, os.path.join(path, version.folder)):
      paths = {file: os.path.join(folder, file) for file in version.files}
      if any(map(os.path.isfile, paths.values())):
        there = {f: p for f, p in paths.items() if os.path.isfile(p)}
        _check_whole(folder, version, there)
        return _Found(folder, version, {f: _read(p) for f, p in there.items()})
    archive = os.path.join(path, version.archive)
    if os.path.isfile(archive):
      return _of_archive(name, archive)
  return None


def _of_archive(name: str, path: str) -> _Found:
  """The files of an archive, all of which is checked."""
  try:
    with gzip.open(path) as file:
      content = file.read()  # to the end, where its checksum is
    with tarfile.open(fileobj=io.BytesIO(content), mode='r:') as tar:
      there = {
        os.path.basename(member.name): tar.extractfile(member).read()
        for member in tar
        if member.isfile()
      }
  except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
    raise base.DataError(
      f'{path} cannot be read as .tar.gz: {error}'
    ) from error
  for version in VERSIONS[name]:
    if there.keys() & set(version.files):
      _check_whole(path, version, there)
      files = {file: there[file] for file in version.files}
      return _Found(path, version, files)
  wanted = ' nor '.join(version.files[0] for version in VERSIONS[name])
  raise base.DataError(f'{path} is no archive of {name}: neither {wanted}')


def _check_whole(where: str, version: Version, there):
  missing = [file for file in version.files if file not in there]
  if missing:
    raise base.DataError(
      f'{where} has no {", ".join(missing)}; all of {version.archive} are '
      f'needed: {", ".join(version.files)}'
    )


def _read(path: str) -> bytes:
  try:
    with open(path, 'rb') as file:
      return file.read()
  except OSError as error:
    raise base.DataError(f'{path} cannot be read: {error}') from error


def _records(path: str, content: bytes, labels: dict[str, int]) -> base.Split:
  """A file of the binary version: labels, then red, green and blue."""
  size = len(labels) + _BYTES
  if not content or len(content) % size:
    raise base.DataError(
      f'{path} holds {len(content)} bytes, must hold a multiple of {size} '
      f'({len(labels)} of labels and {_BYTES} of pixels)'
    )
  rows = np.frombuffer(content, np.uint8).reshape(-1, size)
  given = dict(zip(labels, rows.T, strict=False))
  return _split(path, rows[:, len(labels) :], given, labels)


def _pickle(path: str, content: bytes, labels: dict[str, int]) -> base.Split:
  """A file of the Python version: a dict of pixels and lists of labels."""
  try:
    found = plain_pickle.loads(content)
  except plain_pickle.NotPlainError as error:
    raise base.DataError(
      f'{path} is refused: it holds {error}, where NumPy arrays of bytes and '
      'plain values are expected'
    ) from error
  except Exception as error:  # a damaged pickle may raise anything
    raise base.DataError(
      f'{path} cannot be read as a pickle: {type(error).__name__}: {error}'
    ) from error
  if isinstance(found, dict):
    found = {k.decode() if isinstance(k, bytes) else k: found[k] for k in found}
  wanted = ['data', *labels]
  if not isinstance(found, dict) or not found.keys() >= {*wanted}:
    raise base.DataError(f'{path} is no dict with {", ".join(wanted)}')
  data = found['data']
  if not isinstance(data, np.ndarray) or data.shape[1:] != (_BYTES,):
    raise base.DataError(f'{path}: data must be bytes of shape [n, {_BYTES}]')
  given = {}
  for kind in labels:
    one = found[kind]
    if not isinstance(one, list) or {*map(type, one)} - {int}:
      raise base.DataError(f'{path}: {kind} must be a list of integers')
    given[kind] = np.array(one, np.int64)
    if len(one) != len(data):
      raise base.DataError(
        f'{path} has {len(data)} images but {len(one)} {kind}'
      )
  return _split(path, data, given, labels)


def _split(path: str, pixels, given, labels: dict[str, int]) -> base.Split:
  """Images [n, 32, 32, 3] and their classes, once all labels are checked."""
  for kind, number in labels.items():
    wrong = (given[kind] < 0) | (given[kind] >= number)
    if wrong.any():
      i = int(np.argmax(wrong))
      raise base.DataError(
        f'{path}: {kind} must be 0 to {number - 1}, image {i} has '
        f'{given[kind][i]}'
      )
  images = pixels.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1)
  return base.Split(np.ascontiguousarray(images), given[kind].astype(np.int32))
