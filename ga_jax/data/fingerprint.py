"""What data are known by: what they hold, not where they lie.

A fingerprint is {part: 'SIZE-DIGEST'}, a part for each split and for what they
have in common: how many examples (tokens, files) there are, and the first 64
bits of a SHA-256. Two that are equal stand for the same data; of two that
differ the parts say what is other.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent import futures

import numpy as np

_DIGITS = 16  # hexadecimal, of the digest
_TAIL = 2**16  # bytes of a file
_THREADS = 8


def of_arrays(*arrays: np.ndarray) -> str:
  """The fingerprint of arrays with an entry per example: 'SIZE-DIGEST'.

  Shapes, dtypes and every value count.

  Args:
    *arrays: at least one; the size is that of the first one's leading axis.
  """
  digest = hashlib.sha256()
  for array in arrays:
    array = np.asarray(array)
    array = array.astype(array.dtype.newbyteorder('<'), copy=False)
    digest.update(f'{array.dtype.str} {array.shape}\n'.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return _text(len(arrays[0]), digest)


def of_texts(texts: Iterable[str]) -> str:
  """The fingerprint of texts in their order: 'SIZE-DIGEST'."""
  digest, size = hashlib.sha256(), 0
  for size, text in enumerate(texts, 1):  # noqa: B007
    data = text.encode('utf-8', 'surrogatepass')
    digest.update(f'{len(data)}\n'.encode())
    digest.update(data)
  return _text(size, digest)


def of_files(files: Iterable[tuple[str, int]]) -> str:
  """The fingerprint of large files: 'SIZE-DIGEST'.

  Names, sizes, numbers of examples and the last 64 KiB count: an ArrayRecord
  file ends with the places of all its records.

  Args:
    files: (path, examples) in their order.
  """

  def tail(path):
    with open(path, 'rb') as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - _TAIL))
      return size, hashlib.sha256(file.read()).hexdigest()

  files = list(files)
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    tails = pool.map(tail, [path for path, _ in files])
    return of_texts(
      f'{os.path.basename(path)} {examples} {size} {digest}'
      for (path, examples), (size, digest) in zip(files, tails, strict=True)
    )


def _text(size: int, digest) -> str:
  return f'{size}-{digest.hexdigest()[:_DIGITS]}'
