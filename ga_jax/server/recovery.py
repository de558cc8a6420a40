"""Brings a ledger to where a write-ahead record ends.

A record that was written row by row outlives its process. The policy is a pure
function of events, so telling a fresh (or saved) ledger the same events again
brings it to the same place, and every row it writes is compared with the
record. Only why a ticket expired stands in no row: see `follow`.

The rows of one event have one time. An event that may be taken for another, a
ticket that expires and its worker's leaving, must have a time of its own, as
`live.server` gives to each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ga_jax.policies.parts.base import Kind
from ga_jax.record import trace
from ga_jax.server import ledger

UNRECORDED = 'unrecorded'  # why a ticket expired, in `Ledger.refused`


class RecoveryError(ValueError):
  """A record or a checkpoint is of another run."""


def follow(
  book: ledger.Ledger,
  rows: Sequence[tuple],
  *,
  process: Callable[[tuple], Any],
  loss: Callable[[ledger.Ticket], float] | None = None,
):
  """Tells a ledger what happened.

  It is then where it was, with one exception: tickets that expired are counted
  in `refused` as `UNRECORDED`, whatever the cause was. Every worker that got a
  ticket was told its next batches, as in a live run: they are reserved.

  Where the record ends inside an event, the rest of the event is written now.
  Of a worker that left with one ticket the record may hold no more than that
  this ticket has expired: then it has, and the worker stays.

  Args:
    book: at the place where `rows` begin.
    rows: of the record, in the order of `trace.EVENT_DTYPE`.
    process: called with each row of the ledger, those after the end of the
      record included, before the next event is told.
    loss: `loss(ticket)`, where the policy needs it.

  Raises:
    RecoveryError: the ledger would have written other rows, or times fall;
      names the row.
  """
  start = done = book.num_rows
  end = start + len(rows)
  while done < end:
    _tell(book, rows, done - start, loss)
    for row in book.rows(done):
      if done < end:
        _check_same(done, tuple(rows[done - start]), row)
      process(row)
      done += 1


def _tell(book, rows, i, loss):
  """Tells the event that wrote the row i, its first one."""
  time, event, worker, *fields = rows[i]
  ticket = ledger.Ticket(fields[0], worker, *fields[1:5])
  number = book.num_rows
  if i and time < rows[i - 1][0]:
    raise RecoveryError(
      f'row {number} of the record: time {time} after {rows[i - 1][0]}'
    )
  try:
    if event == Kind.JOIN:
      book.join(worker, time)
    elif event == Kind.ISSUE:
      book.ticket(worker, time)
      book.reserve(worker)
    elif event == Kind.ARRIVE:
      stands = book.outstanding.get(ticket.ticket_id) == ticket
      book.arrive(ticket, time, loss(ticket) if loss and stands else None)
    elif event == Kind.LEAVE or _leaves(rows, i):
      book.leave(worker, time)
    elif event == Kind.EXPIRE:
      book.expire(ticket, time, UNRECORDED)
    elif event == Kind.CLOSE:
      book.finish(time)
  except ValueError as error:
    raise RecoveryError(f'row {number} of the record: {error}') from error
  if book.num_rows == number:
    raise RecoveryError(
      f'row {number} of the record is {tuple(rows[i])}, but this run would '
      'have written nothing: it was another run'
    )


def _check_same(number, recorded, made):
  """Raises a RecoveryError where two rows differ, as a file keeps them."""
  if recorded != np.array([made], trace.EVENT_DTYPE).tolist()[0]:
    raise RecoveryError(
      f'row {number} of the record is {recorded}, but this run would have '
      f'written {made}: it was another run'
    )


def _leaves(rows, i) -> bool:
  """Whether the ticket of row i expires because its worker leaves.

  Then the worker's other tickets, or its leaving, come next at the same time.
  """
  time, event, worker, *_ = rows[i]
  if event != Kind.EXPIRE or i + 1 == len(rows):
    return False
  other_time, other_event, other_worker, *_ = rows[i + 1]
  return (other_time, other_worker) == (time, worker) and (
    other_event in (Kind.EXPIRE, Kind.LEAVE)
  )
