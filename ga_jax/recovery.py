"""Brings a ledger to where a write-ahead record ends.

A record that was written row by row outlives its process. The policy is a pure
function of events, so telling a fresh (or saved) ledger the same events again
brings it to the same place, and every row it writes is compared with the
record.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ga_jax import ledger, trace
from ga_jax.policies.base import Kind


class RecoveryError(ValueError):
  """The record is not what this ledger would have written."""


def follow(
  book: ledger.Ledger,
  rows: Sequence[tuple],
  *,
  process: Callable[[tuple], Any],
  loss: Callable[[ledger.Ticket], float] | None = None,
  reserves: bool = True,
):
  """Tells a ledger what happened.

  Args:
    book: at the place where `rows` begin.
    rows: of the record, in the order of `trace.EVENT_DTYPE`; they may end in
      the middle of what one event wrote.
    process: called with each row of the ledger, those after the end of the
      record included, before the next event is told.
    loss: `loss(ticket)`, where the policy needs it.
    reserves: whether a worker that got a ticket was told its next batches.

  Raises:
    RecoveryError: the ledger would have written other rows.
  """
  start = done = book.num_rows
  while done - start < len(rows):
    _tell(book, rows[done - start :], loss, reserves)
    for row in book.rows(done):
      if done - start < len(rows):
        _check_same(done, tuple(rows[done - start]), row)
      process(row)
      done += 1


def _tell(book, rows, loss, reserves):
  """Tells the event that wrote the first of these rows."""
  time, event, worker, *fields = rows[0]
  ticket = ledger.Ticket(fields[0], worker, *fields[1:5])
  before = book.num_rows
  try:
    if event == Kind.JOIN:
      book.join(worker, time)
    elif event == Kind.ISSUE:
      book.ticket(worker, time)
      if reserves:
        book.reserve(worker)
    elif event == Kind.ARRIVE:
      stands = book.outstanding.get(ticket.ticket_id) == ticket
      book.arrive(ticket, time, loss(ticket) if loss and stands else None)
    elif event == Kind.LEAVE or _leaves(rows):
      book.leave(worker, time)
    elif event == Kind.EXPIRE:
      book.expire(ticket, time)
    elif event == Kind.CLOSE:
      book.finish(time)
  except ValueError as error:
    raise RecoveryError(f'row {before} of the record: {error}') from error
  if book.num_rows == before:
    raise RecoveryError(
      f'row {before} of the record is {tuple(rows[0])}, but this run would '
      'have written nothing: it was another run'
    )


def _check_same(number, recorded, made):
  """Raises a RecoveryError where two rows differ, as a file keeps them."""
  if recorded != np.array([made], trace.EVENT_DTYPE).tolist()[0]:
    raise RecoveryError(
      f'row {number} of the record is {recorded}, but this run would have '
      f'written {made}: it was another run'
    )


def _leaves(rows) -> bool:
  """Whether tickets expire here because their worker leaves."""
  time, _, worker, *_ = rows[0]
  for row in rows:
    if row[0] != time or row[2] != worker or row[1] != Kind.EXPIRE:
      return (*row[:3],) == (time, Kind.LEAVE, worker)
  return False
