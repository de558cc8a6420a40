"""A folder of files in MNIST's own IDX format, gzipped or not.

MNIST, Fashion-MNIST (Debian's package dataset-fashion-mnist), EMNIST and KMNIST
come so.

References:
  LeCun, Cortes, Burges, `The MNIST database
  <http://yann.lecun.com/exdb/mnist/>`_, 1998.
"""

import gzip
import os
import struct
import zlib

import numpy as np

from ga_jax.data import base, origins

_FILES = {
  'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
  'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}


def idx(path: str | None) -> base.Dataset:
  """Reads train-images-idx3-ubyte[.gz] and its three companions.

  Args:
    path: the folder.

  Returns:
    A `Dataset` of [H, W, 1] images.

  Raises:
    DataError: a file is missing, cut short or in another format, or labels are
      not numbered from 0 without gaps (EMNIST's letters are from 1).
  """
  if not path or not os.path.isdir(path):
    raise base.DataError(
      f'idx needs data_path, a folder with {_FILES["train"][0]}[.gz] and its '
      f'companions, got {path!r}: {origins.of("idx")}'
    )
  splits = {}
  for part, (images, labels) in _FILES.items():
    splits[part] = base.Split(
      read_idx(_find(path, images), 3), read_idx(_find(path, labels), 1)
    )
  return base.make_dataset(path, splits['train'], splits['test'])


def read_idx(path: str, ndim: int) -> np.ndarray:
  """Reads one IDX file of unsigned bytes.

  Args:
    path: the file; decompressed where it ends in .gz.
    ndim: number of dimensions it must have.

  Returns:
    A uint8 array.

  Raises:
    DataError: unreadable, not IDX of unsigned bytes, or cut short.
  """
  try:
    with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as file:
      data = file.read()
  except (OSError, EOFError, zlib.error) as error:
    raise base.DataError(f'{path} cannot be read: {error}') from error
  header = 4 + 4 * ndim
  if len(data) < header or data[:4] != bytes((0, 0, 8, ndim)):
    raise base.DataError(
      f'{path} is not an IDX file of unsigned bytes in {ndim} dimensions'
    )
  shape = struct.unpack(f'>{ndim}I', data[4:header])
  if len(data) - header != int(np.prod(shape, dtype=np.int64)):
    raise base.DataError(
      f'{path} should hold {shape} bytes, holds {len(data) - header}'
    )
  return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _find(folder: str, name: str) -> str:
  # Some mirrors write the last hyphen as a dot.
  for stem in (name, name.replace('-idx', '.idx')):
    for ending in ('', '.gz'):
      path = os.path.join(folder, stem + ending)
      if os.path.exists(path):
        return path
  raise base.DataError(
    f'{folder} has no {name} and no {name}.gz: {origins.of("idx")}'
  )
