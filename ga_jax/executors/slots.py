"""Which row of the snapshot buffer holds which version: interval colouring.

A version lives from the arrival that made it to the last arrival that was
computed at it. Known beforehand, that gives every version a row such that the
buffer has exactly as many rows as versions are ever alive at once.
"""

from typing import NamedTuple

import numpy as np

from ga_jax.policies.parts.base import Action, Kind


class Plan(NamedTuple):
  """A trace as compiled code reads it; arrays have one entry per arrival."""

  arrivals: np.ndarray  # the applied arrivals, see trace.EVENT_DTYPE
  close: np.ndarray  # bool: the round is closed after it
  reset: np.ndarray  # bool: its worker was lost since its last arrival
  read_slot: np.ndarray  # int32: the row it was computed at
  write_slot: np.ndarray  # int32: the row of the version it makes, if any
  rows: int
  left: np.ndarray  # int32 [arrivals + 1, most]: workers that left before it


def plan(trace) -> Plan:
  """Colours a trace.

  Args:
    trace: a `Trace`.

  Returns:
    A `Plan`. Version 0 is in row 0.
  """
  arrivals = trace.applied()
  close = _closes(trace.events)
  versions = arrivals['version']
  last_read = np.full(int(close.sum()) + 1, -1, np.int64)
  last_read[versions] = np.arange(len(versions))  # the last assignment wins
  read = np.zeros(len(arrivals), np.int32)
  write = np.zeros(len(arrivals), np.int32)
  slot_of, free, rows, version = {0: 0}, [], 1, 0
  for i, (wanted, closes) in enumerate(
    zip(versions.tolist(), close.tolist(), strict=True)
  ):
    read[i] = slot_of[wanted]
    if last_read[wanted] == i:
      free.append(slot_of.pop(wanted))
    if not closes:
      continue
    version += 1
    if free:
      slot = free.pop()
    else:
      slot, rows = rows, rows + 1
    write[i] = slot
    if last_read[version] > i:
      slot_of[version] = slot
    else:  # nobody reads it
      free.append(slot)
  return Plan(
    arrivals=arrivals,
    close=close,
    reset=_resets(trace.events),
    read_slot=read,
    write_slot=write,
    rows=rows,
    left=_left(trace.events),
  )


def _closes(events) -> np.ndarray:
  """Whether the round is closed after each applied arrival.

  A round that is closed without a new gradient is closed after its last one:
  nothing that is computed lies between.
  """
  action = events['action']
  entered = np.isin(action, (Action.APPLY, Action.ACCUMULATE))
  kept = events[entered | (events['event'] == Kind.CLOSE)]
  arrives = kept['event'] == Kind.ARRIVE
  close = kept['action'] == Action.APPLY
  close[:-1] |= ~arrives[1:]
  return close[arrives]


def _applied(events) -> np.ndarray:
  """The rows of the applied arrivals."""
  entered = np.isin(events['action'], (Action.APPLY, Action.ACCUMULATE))
  return np.flatnonzero(entered & (events['event'] == Kind.ARRIVE))


def _left(events) -> np.ndarray:
  """Who left before each applied arrival, and after the last one.

  Returns:
    Worker ids in the order in which they left, −1 where there are fewer than
    the most, [arrivals + 1, most].
  """
  applied = _applied(events)
  leaves = np.flatnonzero(events['event'] == Kind.LEAVE)
  before = np.searchsorted(applied, leaves)
  first = np.searchsorted(before, before)  # of those with the same arrival
  most = int(np.bincount(before).max(initial=0))
  left = np.full((len(applied) + 1, most), -1, np.int32)
  left[before, np.arange(len(leaves)) - first] = events['worker_id'][leaves]
  return left


def _resets(events) -> np.ndarray:
  """Whether an applied arrival is its worker's first since it left."""
  applied = _applied(events)
  reset = np.zeros(len(applied), bool)
  for row in np.flatnonzero(events['event'] == Kind.LEAVE):
    same = events['worker_id'][applied] == events['worker_id'][row]
    reset[np.flatnonzero(same & (applied > row))[:1]] = True
  return reset
