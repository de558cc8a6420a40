"""metrics.jsonl of a run: a row per epoch, each with its number and a check.

No digest is there before a run ends. So every row ends with 'check': its
number, the first is 1, and the CRC-32 of that and of its other values as JSON.
A row that was changed, or lost between others, is told. Runs of before have
none.
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
    self._number = 0
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
    self._number += 1
    return {**row, _CHECK: _check(self._number, row)}


def read(path: str) -> tuple[list[dict[str, Any]], list[int]]:
  """The rows of a file, and the numbers of those that are damaged or lost.

  Args:
    path: of the file; where it is not there it has no rows.

  Raises:
    DamagedError: it is no regular file.
  """
  if not os.path.exists(path):
    return [], []
  lines, damaged = files.read_json_lines(path, contents.ROW)
  if not any(_CHECK in row for row in lines):
    return lines, damaged
  rows = {}
  for row in lines:
    check = row.pop(_CHECK, '')
    number = check.partition('-')[0]
    if number.isdecimal() and check == _check(int(number), row):
      rows[int(number)] = row
  last = max([len(lines) + len(damaged), *rows])
  wrong = [number for number in range(1, last + 1) if number not in rows]
  return [rows[number] for number in sorted(rows)], wrong


def said(name: str, damaged: list[int]) -> str:
  """What is said of damaged rows of a file."""
  shown = ', '.join(map(str, damaged[:5])) + ' ...' * (len(damaged) > 5)
  return f'{name} has rows that are damaged or lost ({shown}): left out'


def _check(number: int, row: dict[str, Any]) -> str:
  return f'{number}-{zlib.crc32(f"{number} {json.dumps(row)}".encode()):08x}'
