"""Files on disk: whole or not at all, or line by line; read with distrust.

A file may have been cut off, damaged, or made by somebody else. What reads it
here opens regular files alone, allocates no more than the file can hold, runs
nothing, and raises a `DamagedError` that names the file, whatever is in it.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import shutil
import stat
import zipfile
from typing import Any, BinaryIO

import numpy as np

from ga_jax.guards import forms

MOST_JSON = 2**28  # bytes of a file of JSON
MOST_ARRAYS = 2**36  # bytes of the arrays of a file
_DEFLATED = 1100  # bytes that a byte of a compressed file can stand for
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


class DamagedError(ValueError):
  """A file does not hold what it should; the message names it."""


def to_json(value: Any) -> Any:
  """A value as JSON knows it; what is not finite becomes null."""
  if isinstance(value, dict):
    return {str(k): to_json(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json(v) for v in value]
  if isinstance(value, (np.generic, np.ndarray)):
    return to_json(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_json(path: str, value: Any):
  """Writes a JSON file, whole or not at all."""
  write_text(path, json.dumps(to_json(value), indent=2) + '\n')


def write_text(path: str, text: str):
  """Writes a text as UTF-8, whole or not at all.

  Args:
    path: of the file.
    text: what it holds; what a command line held that is none in the locale's
      encoding is written as the bytes that it was.
  """
  with replacing(path) as partial, open(partial, 'wb') as file:
    file.write(text.encode('utf-8', 'surrogateescape'))


def write_arrays(path: str, arrays: dict[str, np.ndarray]):
  """Writes an .npz file of named arrays, whole or not at all."""
  with replacing(path) as partial, open(partial, 'wb') as file:
    np.savez_compressed(file, **arrays)


@contextlib.contextmanager
def replacing(path: str):
  """Yields a path beside `path` to write to; it replaces `path` at the end.

  Args:
    path: what is to be written.
  """
  folder, name = os.path.split(os.path.abspath(path))
  partial = os.path.join(folder, f'.{os.getpid()}.partial.{name}')
  with contextlib.suppress(FileNotFoundError):  # it may be a link elsewhere
    os.unlink(partial)
  try:
    with of_file(path):
      yield partial
      os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(partial)
    raise


@contextlib.contextmanager
def of_file(path: str):
  """Says of an OSError which file it was met at, where it does not say it.

  A full disk is met by a write, which knows no name.
  """
  try:
    yield
  except OSError as error:
    if error.filename is None:
      error.filename = path
    raise


def check_space(folder: str, needed: int):
  """Looks whether so much can be written, before it is begun.

  Args:
    folder: where.
    needed: bytes.

  Raises:
    OSError: there is less room.
  """
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise OSError(
      errno.ENOSPC,
      f'{needed / 1e6:,.1f} MB are to be written, and {free / 1e6:,.1f} MB are '
      'free',
      folder,
    )


def sha256(path: str) -> str:
  """The SHA-256 of a regular file, in hexadecimal."""
  with opened(path) as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_all(file: Any, data: bytes):
  """Adds to an unbuffered file, all or nothing.

  A disk that is nearly full takes a part of it at first.
  """
  start = file.seek(0, os.SEEK_END)
  try:
    while data:
      data = data[file.write(data) :]
  except OSError:
    file.truncate(start)
    raise


def opened(path: str) -> BinaryIO:
  """A regular file, open for reading.

  Raises:
    DamagedError: it is a link, a pipe or a device, which may say anything, or
      nothing for ever.
    OSError: it is not there, or not for us.
  """
  kind = kind_of(path)
  if kind:
    raise DamagedError(f'{path} is {kind}: only regular files are read')
  return open(path, 'rb')


def kind_of(path: str, folders: bool = False) -> str:
  """What is wrong with the kind of a file; '' where it is a regular one.

  Args:
    path: of the file, which is there.
    folders: whether a folder is fine too.

  Raises:
    OSError: it is not there.
  """
  mode = os.lstat(path).st_mode
  if stat.S_ISREG(mode) or (folders and stat.S_ISDIR(mode)):
    return ''
  if stat.S_ISLNK(mode):
    return 'a symbolic link'
  return 'a folder' if stat.S_ISDIR(mode) else 'a pipe, a socket or a device'


def read_json(
  path: str, form: forms.Form = forms.anything, *, finite: bool = True
) -> Any:
  """What a file of JSON holds.

  Args:
    path: of the file.
    form: of the value.
    finite: whether NaN and infinities are refused, as JSON does.

  Raises:
    DamagedError: it holds something else.
    OSError: it is not there, or not for us.
  """
  with opened(path) as file:
    content = file.read(MOST_JSON + 1)
  try:
    return parsed(content, form, finite=finite)
  except ValueError as error:
    raise DamagedError(f'{path} is damaged: {error}') from error


def read_json_lines(
  path: str, form: forms.Form = forms.anything
) -> tuple[list[Any], list[int]]:
  """The lines of a file of JSON lines.

  Args:
    path: of the file.
    form: of a line.

  Returns:
    (values, numbers of the lines that hold something else, the first is 1).

  Raises:
    DamagedError: it is no regular file.
    OSError: it is not there, or not for us.
  """
  values, damaged = [], []
  with opened(path) as file:
    for i, line in enumerate(file.read(MOST_JSON).splitlines(), 1):
      try:
        values.append(parsed(line, form))
      except ValueError:
        damaged.append(i)
  return values, damaged


def parsed(
  content: bytes, form: forms.Form = forms.anything, *, finite: bool = True
) -> Any:
  """A value from JSON in UTF-8; arguments and errors as `read_json`.

  Raises:
    ValueError: it is none, or of another form.
  """
  if len(content) > MOST_JSON:
    raise ValueError(f'it has more than {MOST_JSON} bytes')
  try:
    value = json.loads(content.decode(), parse_int=_integer)
    # Half a surrogate pair cannot be printed, 1e999 is no number.
    json.dumps(value, ensure_ascii=False, allow_nan=not finite).encode()
  except RecursionError as error:
    raise ValueError('its lists are too deep') from error
  form(value, '')
  return value


def _integer(text: str) -> int:
  value = int(text) if len(text) < 30 else 2**63
  if not -(2**63) <= value < 2**63:
    raise ValueError('it holds an integer of more than 64 bits')
  return value


def read_arrays(path: str) -> dict[str, np.ndarray]:
  """The named arrays of numbers or strings of an .npz file.

  Raises:
    DamagedError: it holds something else.
    OSError: it is not there, or not for us.
  """
  with opened(path) as file:
    content = file.read()
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      return _arrays(archive, len(content))
  except MemoryError as error:
    raise DamagedError(f'{path} does not fit in the memory') from error
  except Exception as error:  # zipfile and NumPy raise what damage makes of it
    raise DamagedError(f'{path} is damaged: {error}') from error


def _arrays(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
  """The arrays of an archive of so many bytes."""
  members = archive.infolist()
  if len({member.filename for member in members}) < len(members):
    raise ValueError('it holds a name twice')
  total = sum(member.file_size for member in members)
  if total > min(MOST_ARRAYS, _DEFLATED * size):
    raise ValueError(f'its arrays are said to be of {total} bytes')
  return {
    member.filename.removesuffix('.npy'): _array(archive.read(member))
    for member in members
  }


def _array(content: bytes) -> np.ndarray:
  """An array from what `numpy.save` writes, but no objects."""
  stream = io.BytesIO(content)
  version = np.lib.format.read_magic(stream)
  if version not in _HEADERS:
    raise ValueError(f'it is of version {version}')
  shape, fortran, dtype = _HEADERS[version](stream)
  start = stream.tell()
  if dtype.hasobject:
    raise ValueError('it holds objects of Python')
  if math.prod(shape) * dtype.itemsize != len(content) - start:
    raise ValueError(f'it does not hold {dtype}{list(shape)}')
  order = 'F' if fortran else 'C'
  array = np.ndarray(shape, dtype, content, start, order=order).copy(order)
  if dtype.kind == 'U':  # no code point that is none, no half of a pair
    ''.join(array.ravel().tolist()).encode()
  return array


class JsonLines:
  """Appends one JSON object per line, flushed as it is written."""

  def __init__(self, path: str):
    self._path = path
    # Unbuffered: what could not be written is not tried again by `close`.
    self._file = open(path, 'ab', buffering=0)  # noqa: SIM115

  def write(self, row: dict[str, Any]):
    line = json.dumps(to_json(row)).encode() + b'\n'
    with of_file(self._path):
      write_all(self._file, line)

  def close(self):
    self._file.close()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()
