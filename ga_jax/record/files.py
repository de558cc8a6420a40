"""Files on disk: whole or not at all, or line by line, and their hashes."""

import contextlib
import hashlib
import json
import math
import os
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
  with replacing(path) as partial, open(partial, 'w') as file:
    json.dump(to_json(value), file, indent=2)
    file.write('\n')


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
    yield partial
    os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(partial)
    raise


def sha256(path: str) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


class JsonLines:
  """Appends one JSON object per line, flushed as it is written."""

  def __init__(self, path: str):
    self._file = open(path, 'a')  # noqa: SIM115 (closed by close)

  def write(self, row: dict[str, Any]):
    self._file.write(json.dumps(to_json(row)) + '\n')
    self._file.flush()

  def close(self):
    self._file.close()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()
