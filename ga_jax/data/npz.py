"""A user's own arrays in one .npz file."""

import os
import zipfile
import zlib

import numpy as np

from ga_jax.data import base, origins

_KEYS = ('x_train', 'y_train', 'x_test', 'y_test')
_SAID = {'num_classes': 'iu', 'layout': 'U'}  # and the kinds of their dtypes
_UNREADABLE = (  # what NumPy raises for files that are damaged
  OSError,
  EOFError,
  ValueError,
  NotImplementedError,
  zipfile.BadZipFile,
  zlib.error,
)


def npz(path: str | None) -> base.Dataset:
  """Reads x_train, y_train, x_test and y_test.

  Args:
    path: the file. Inputs are uint8 images [n, H, W] or [n, H, W, C], or floats
      [n, ...] in any unit; labels are integers [n] from 0 without gaps. Where
      there are classes without a training example the file says how many there
      are, as `num_classes`; where the shape of images leaves it open it says
      which axis is which, as `layout`, 'NHWC' or 'NCHW'.

  Returns:
    A `Dataset`.

  Raises:
    DataError: unreadable, an array is missing or of another kind.
  """
  if not path:
    raise base.DataError(
      f'npz needs data_path, a file of arrays: {origins.of("npz")}'
    )
  if not os.path.exists(path):
    raise base.DataError(
      f'{path} cannot be read, no such file: {origins.of("npz")}'
    )
  try:
    data = np.load(path)
    if not isinstance(data, np.lib.npyio.NpzFile):
      raise base.DataError(f'{path} holds one array; it must be an .npz file')
    with data:
      missing = [key for key in _KEYS if key not in data.files]
      if missing:
        raise base.DataError(
          f'{path} has no {", ".join(missing)}; it holds {data.files}'
        )
      arrays = [data[key] for key in _KEYS]
      said = {key: data[key] for key in _SAID if key in data.files}
  except base.DataError:
    raise
  except _UNREADABLE as error:
    raise base.DataError(f'{path} cannot be read as .npz: {error}') from error
  return base.make_dataset(
    path,
    base.Split(*arrays[:2]),
    base.Split(*arrays[2:]),
    **{key: _said(path, key, value) for key, value in said.items()},
  )


def _said(path: str, key: str, value: np.ndarray) -> int | str:
  """What a file says of its arrays."""
  if value.ndim or value.dtype.kind not in _SAID[key]:
    what = 'an integer' if key == 'num_classes' else 'a string'
    raise base.DataError(f'{path}: {key} must be {what}, got {value!r}')
  return value.item()
