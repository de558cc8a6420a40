"""Pickles of plain values and arrays of bytes, read without running anything.

A pickle names functions that are called while it is read; here the few that
arrays are made with are replaced by stand-ins, and every other one is refused.
"""

import io
import pickle
from typing import Any

import numpy as np


class NotPlainError(pickle.UnpicklingError):
  """A pickle of more than plain values and arrays of bytes."""


def loads(content: bytes) -> Any:
  """What a pickle of plain values and arrays of bytes holds.

  Args:
    content: of the file; strings of Python 2 are read as bytes.

  Returns:
    None, booleans, numbers, strings, bytes, uint8 arrays, and lists, tuples and
    dicts of such.

  Raises:
    NotPlainError: it names something else.
    Exception: whatever `pickle` raises where it is damaged.
  """
  return _arrays(_Reader(io.BytesIO(content), encoding='bytes').load())


class _Dtype:
  """In the place of `numpy.dtype`."""

  def __init__(self, name, align=False, copy=False):
    del align, copy
    self.name = name.decode() if isinstance(name, bytes) else name
    if self.name != 'u1':
      raise NotPlainError(f'an array of {self.name}')

  def __setstate__(self, state):
    """Byte order and fields: bytes have neither."""


class _Array:
  """In the place of `numpy.ndarray`."""

  array = None

  def __setstate__(self, state):
    _, shape, dtype, by_columns, raw = state
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
      raise NotPlainError('an array of something else than bytes')
    flat = np.frombuffer(raw, np.uint8)
    self.array = flat.reshape(shape, order='F' if by_columns else 'C')


def _reconstruct(kind, shape, dtype):
  """In the place of NumPy's, which makes an empty array to be filled."""
  del kind, shape, dtype
  return _Array()


def _encode(text, encoding):
  """In the place of `_codecs.encode`, by which Python 3 writes bytes."""
  if encoding not in ('latin1', b'latin1'):
    raise NotPlainError(f'text in the encoding {encoding}')
  return text.encode('latin1')


_STAND_INS = {
  ('numpy', 'dtype'): _Dtype,
  ('numpy', 'ndarray'): _Array,
  ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
  ('numpy._core.multiarray', '_reconstruct'): _reconstruct,
  ('_codecs', 'encode'): _encode,
}


class _Reader(pickle.Unpickler):
  def find_class(self, module, name):
    if (module, name) not in _STAND_INS:
      raise NotPlainError(f'{module}.{name}')
    return _STAND_INS[module, name]


def _arrays(value):
  """The same with arrays in the place of their stand-ins, at any depth."""
  if isinstance(value, _Array):
    return value.array
  if isinstance(value, (list, tuple)):
    return type(value)(map(_arrays, value))
  if isinstance(value, dict):
    return {key: _arrays(one) for key, one in value.items()}
  return value
