"""metrics.jsonl of a run: a row per epoch, each with a check of those so far.

No digest is there before a run ends. So every row ends with 'check', the CRC-32
of its other values as JSON and of the check before it: a row that was changed,
and the one after a row that was lost, are told. Runs of before have none.
"""

import json
import os
import zlib
from typing import Any

from experiments.records import contents
from ga_jax.record import files

_CHECK = 'check'


class Rows:
  """Writes rows, flushed as they are written."""

  def __init__(self, path: str, kept: list[dict[str, Any]]):
    """Begins a file.

    Args:
      path: of the file.
      kept: rows of before, which come first.
    """
    self._check = 0
    lines = [f'{json.dumps(self._sealed(row))}\n' for row in kept]
    files.write_text(path, ''.join(lines))
    self._log = files.JsonLines(path)

  def write(self, row: dict[str, Any]):
    """Adds a row."""
    self._log.write(self._sealed(files.to_json(row)))

  def close(self):
    """Closes the file."""
    self._log.close()

  def _sealed(self, row):
    row = {name: value for name, value in row.items() if name != _CHECK}
    self._check = _check(row, self._check)
    return {**row, _CHECK: self._check}


def read(path: str) -> tuple[list[dict[str, Any]], list[int]]:
  """The rows of a file, and the numbers of the lines that are damaged.

  Args:
    path: of the file; where it is not there it has no rows.

  Raises:
    DamagedError: it is no regular file.
  """
  if not os.path.exists(path):
    return [], []
  lines, damaged = files.read_json_lines(path, contents.ROW)
  numbers = range(1, len(lines) + len(damaged) + 1)
  numbers = [i for i in numbers if i not in set(damaged)]
  if not any(_CHECK in row for row in lines):
    return lines, damaged
  rows, before = [], 0
  for number, row in zip(numbers, lines, strict=True):
    check = row.pop(_CHECK, None)
    if check == _check(row, before):
      rows.append(row)
    else:
      damaged.append(number)
    before = check or 0
  return rows, sorted(damaged)


def said(name: str, damaged: list[int]) -> str:
  """What is said of damaged lines of a file."""
  shown = ', '.join(map(str, damaged[:5])) + ' ...' * (len(damaged) > 5)
  return f'{name} has damaged lines ({shown}), which are left out'


def _check(row: dict[str, Any], before: int) -> int:
  return zlib.crc32(json.dumps(row).encode(), before)
