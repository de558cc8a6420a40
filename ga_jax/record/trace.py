"""The trace: everything that happened, enough to compute the run again."""

import os
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ga_jax.guards import exclusive, locks
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.record import audit, files

EVENT_DTYPE = np.dtype(
  [
    ('time', 'f8'),  # seconds, or units of the simulated clock
    ('event', 'i1'),  # policies.Kind
    ('worker_id', 'i4'),  # -1 where no worker is concerned
    ('ticket_id', 'i8'),  # -1 where no ticket is
    ('version', 'i4'),  # the version the ticket was read at
    ('first_batch', 'i8'),
    ('num_batches', 'i4'),
    ('attempt', 'i4'),  # how often these batches had been issued before
    ('action', 'i1'),  # policies.Action
    ('weight', 'f4'),  # in the round's weighted mean
    ('staleness', 'i4'),  # server version at the event − version read
  ]
)
_ROWS = 1024  # that are tuples at one time: a tuple takes six times the bytes


# In the file of a `TraceWriter`. The check is that of all rows so far.
ROW_DTYPE = np.dtype([*EVENT_DTYPE.descr, ('check', 'u4')])


class TraceError(ValueError):
  """A trace that contradicts itself."""


class Trace(NamedTuple):
  """The record of one run.

  Attributes:
    events: structured array of `EVENT_DTYPE`, in order of time.
    num_workers: workers that the run was set up for.
    num_batches: batches to be applied, ids 0 to num_batches − 1.
  """

  events: np.ndarray
  num_workers: int
  num_batches: int

  def save(self, path: str):
    """Writes an .npz file, whole or not at all."""
    files.write_arrays(
      path,
      {
        'events': self.events,
        'num_workers': np.asarray(self.num_workers),
        'num_batches': np.asarray(self.num_batches),
      },
    )

  @classmethod
  def load(cls, path: str) -> 'Trace':
    """Reads what `save` wrote.

    Raises:
      TraceError: the file is no trace.
    """
    try:
      data = files.read_arrays(path)
    except files.DamagedError as error:
      why = error.__cause__ or error
      raise TraceError(f'{path} cannot be read: {why}') from error
    if set(data) != {'events', 'num_workers', 'num_batches'}:
      raise TraceError(f'{path} holds {list(data)}, which is no trace')
    numbers = data['num_workers'], data['num_batches']
    if any(n.shape != () or n.dtype.kind not in 'iu' for n in numbers):
      raise TraceError(f'{path} does not say how many workers and batches')
    trace = cls(data['events'], *map(int, numbers))
    if trace.events.dtype != EVENT_DTYPE or trace.events.ndim != 1:
      raise TraceError(f'{path} has columns {trace.events.dtype}')
    return trace

  def rows(self) -> Iterator[tuple]:
    """The events one by one, tuples in the order of `EVENT_DTYPE`'s fields."""
    for start in range(0, len(self.events), _ROWS):
      yield from self.events[start : start + _ROWS].tolist()

  def applied(self) -> np.ndarray:
    """The arrivals that entered a round, in order; structured array."""
    events = self.events
    entered = np.isin(events['action'], (Action.APPLY, Action.ACCUMULATE))
    return events[(events['event'] == Kind.ARRIVE) & entered]

  def until(self, arrivals: int, updates: int) -> 'Trace':
    """What was done, of a schedule that was not computed to its end.

    Args:
      arrivals: how many of those that enter a round were computed.
      updates: how many rounds were closed.

    Returns:
      The trace up to the last one of both; all of it where they are all.
    """
    entered = np.isin(
      self.events['action'], (Action.APPLY, Action.ACCUMULATE)
    ) & (self.events['event'] == Kind.ARRIVE)
    ends = []
    for done, rows in (
      (arrivals, np.flatnonzero(entered)),
      (updates, np.flatnonzero(self.events['action'] == Action.APPLY)),
    ):
      ends.append((len(rows) > done, int(rows[done - 1]) + 1 if done else 0))
    if not any(more for more, _ in ends):
      return self
    return self._replace(events=self.events[: max(end for _, end in ends)])

  def updates(self) -> int:
    """Number of closed rounds."""
    return int(np.sum(self.events['action'] == Action.APPLY))

  def number_of(self, kind: Kind) -> int:
    """Number of events of a kind."""
    return int(np.sum(self.events['event'] == kind))

  def wasted(self) -> float:
    """Wasted work: the part of the workers' busy time that was for nothing.

    A worker is busy from the issue of a ticket to its end; the time of tickets
    whose gradient entered no round is wasted (discarded, refused, revoked).
    """
    events = self.events
    issued = events[events['event'] == Kind.ISSUE]
    begun = dict(
      zip(issued['ticket_id'].tolist(), issued['time'].tolist(), strict=True)
    )
    ends = events[
      np.isin(events['event'], (Kind.ARRIVE, Kind.RESTART, Kind.EXPIRE))
      & (events['action'] != Action.REFUSE)
    ]
    busy = ends['time'] - [begun[t] for t in ends['ticket_id'].tolist()]
    used = np.isin(ends['action'], (Action.APPLY, Action.ACCUMULATE))
    total = float(np.sum(busy))
    return float(np.sum(busy[~used])) / total if total else 0.0

  def verify(self, complete: bool = True):
    """Checks the trace against itself.

    Every column is in its range. Times never fall, workers act between joining
    and leaving, tickets are issued in order, of batches that nobody holds and
    with the number of their attempts, versions are read at the server's own,
    staleness is server version minus version read, every arrival answers an
    outstanding ticket once with that ticket's own fields, no batch is in two
    applied rounds, and at the end of a complete run every batch is in exactly
    one and no round is open. `audit` says what cannot be told.

    Args:
      complete: False for a run that was stopped before its end.

    Raises:
      TraceError: naming the first row, or the batches, that are wrong.
    """
    wrong = audit.wrong_row(self.events, self.num_workers, self.num_batches)
    if wrong:
      raise TraceError(wrong)
    if not complete:
      return
    missing = audit.missing_batches(self.events, self.num_batches)
    if missing:
      more = ' ...' if len(missing) > 5 else ''
      raise TraceError(f'batches never applied: {missing[:5]}{more}')
    if audit.round_open(self.events):
      raise TraceError('the last round was never closed')


class TraceWriter(exclusive.Exclusive):
  """Writes rows down as they happen, to a file or to memory.

  The file holds rows of `ROW_DTYPE`. What `write` was told survives the
  process, what came before a `flush` survives the machine too. Nobody else can
  open the record until it is closed. Several threads may write; rows of one
  `write` stay together.

  Attributes:
    path: the file, or None.
    num_rows: so far.
    check: of the rows in the file, 0 where there are none; see `read_rows`.
  """

  def __init__(self, path: str | None = None, num_rows: int | None = 0):
    """Opens a record.

    Args:
      path: the file; None keeps the rows in memory.
      num_rows: rows of an earlier process to keep, the rest is cut off; None
        changes nothing before `keep` says how many.

    Raises:
      OccupiedError: another process has it open.
    """
    self.path = path
    self.num_rows = self.check = 0
    self._rows = bytearray()
    self._file = self._owned = None  # the lock on the file
    super().__init__()
    if path is not None:
      self._owned = locks.Lock(path)
      self._file = open(path, 'ab', buffering=0)  # noqa: SIM115
    if num_rows is not None:
      self.keep(num_rows)

  @exclusive.locked
  def keep(self, num_rows: int):
    """Keeps so many rows of an earlier process and cuts off the rest."""
    self.num_rows = num_rows
    if self._file is not None:
      self._file.truncate(num_rows * ROW_DTYPE.itemsize)
      checks = np.fromfile(self.path, ROW_DTYPE)['check'][-1:]
      self.check = int(checks.sum())

  @exclusive.locked
  def write(self, rows: list[tuple]):
    """Adds rows, tuples in the order of `EVENT_DTYPE`'s fields."""
    written = np.array(rows, EVENT_DTYPE).tobytes()
    if self._file is None:
      self._rows += written
    else:
      check, sealed = _sealed(written, self.check)
      with files.of_file(self.path):
        files.write_all(self._file, sealed)
      self.check = check
    self.num_rows += len(rows)

  @exclusive.locked
  def flush(self):
    """Waits until what was written is on the disk.

    Raises:
      LostError: the file was removed or replaced.
    """
    if self._file is not None:
      os.fsync(self._file.fileno())
      self._owned.check()

  @exclusive.locked
  def trace(self, num_workers: int, num_batches: int) -> Trace:
    """The record so far."""
    if self._file is None:
      events = np.frombuffer(self._rows, EVENT_DTYPE).copy()
    else:
      events = _events(np.fromfile(self.path, ROW_DTYPE))
    return Trace(events, num_workers, num_batches)

  @exclusive.locked
  def close(self):
    """Closes the file; the rows stay."""
    if self._file is not None:
      self._file.close()
      self._owned.release()


def read_rows(
  path: str,
  start: int = 0,
  check: int | None = None,
  warn: Callable[[str], None] | None = None,
) -> list[tuple]:
  """The whole rows in a `TraceWriter`'s file, which may not be there.

  What a machine that lost its power leaves at the end of a file, bytes that are
  0, is left out, and the row where they begin. So is what follows a damaged
  row, and the row itself.

  Args:
    path: the file.
    start: how many rows to leave out at its beginning.
    check: what the `TraceWriter` had after them.
    warn: told in one line of what is left out; by default it is printed to
      stderr.

  Raises:
    TraceError: there are fewer than `start`, or others, or none can be read.
  """
  data = b''
  if os.path.exists(path):
    try:
      with files.opened(path) as file:
        data = file.read()
    except files.DamagedError as error:
      raise TraceError(str(error)) from error
  size = len(data)
  written = len(data.rstrip(b'\0'))
  if len(data) - written >= ROW_DTYPE.itemsize:  # no row is 0 throughout
    data = data[:written]
  number = len(data) // ROW_DTYPE.itemsize
  if number < start:
    raise TraceError(f'{path} holds {number} rows, not {start}')
  rows = np.frombuffer(data, ROW_DTYPE, number)
  events = _events(rows)
  _, sealed = _sealed(events.tobytes(), 0)
  wanted = np.frombuffer(sealed, ROW_DTYPE)['check']
  whole = int(np.argmin(np.append(wanted == rows['check'], False)))
  if whole < min(number, max(start, 1)):
    raise TraceError(
      f'row {whole} of {path} is damaged, or of an older version'
    )
  if start and check not in (None, rows['check'][start - 1]):
    raise TraceError(f'{path} holds other rows than {start} that were written')
  if whole * ROW_DTYPE.itemsize < size:
    (warn or _print_to_stderr)(
      f'row {whole} of {path} is damaged or cut off: it is left out, with what '
      'follows it'
    )
  return events[start:whole].tolist()


def _events(rows: np.ndarray) -> np.ndarray:
  """Rows of a file without their checks."""
  events = np.empty(len(rows), EVENT_DTYPE)
  for name in EVENT_DTYPE.names:
    events[name] = rows[name]
  return events


def _sealed(rows: bytes, check: int) -> tuple[int, bytes]:
  """Rows of `EVENT_DTYPE` as a file has them, after some with a check."""
  size, pieces = EVENT_DTYPE.itemsize, []
  for start in range(0, len(rows), size):
    row = rows[start : start + size]
    check = zlib.crc32(row, check)
    pieces += [row, check.to_bytes(4, sys.byteorder)]
  return check, b''.join(pieces)


def _print_to_stderr(message: str):
  print(message, file=sys.stderr)
