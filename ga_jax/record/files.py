"""Files on disk: whole or not at all, or line by line, and their hashes."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from typing import Any

import numpy as np


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
  """The SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as file:
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
