"""A user's own arrays in one .npz file."""

import zipfile
import zlib

import numpy as np

from ga_jax.data import base

_KEYS = ('x_train', 'y_train', 'x_test', 'y_test')
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
      [n, ...]; labels are integers [n] from 0.

  Returns:
    A `Dataset`.

  Raises:
    DataError: unreadable, an array is missing or of another kind.
  """
  if not path:
    raise base.DataError(f'npz needs data_path, a file with {", ".join(_KEYS)}')
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
  except base.DataError:
    raise
  except _UNREADABLE as error:
    raise base.DataError(f'{path} cannot be read as .npz: {error}') from error
  return base.make_dataset(
    path, base.Split(*arrays[:2]), base.Split(*arrays[2:])
  )
