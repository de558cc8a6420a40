"""How much of the simulated time workers compute, from the events of a run."""

from collections.abc import Sequence

import numpy as np

from ga_jax.policies.parts.base import Action, Kind
from ga_jax.record import trace


class Utilisation:
  """Follows the events of a run; they may be known ahead of its computation.

  It is the part of the workers' time in which they had a ticket in hand,
  messages included; what is left they waited.
  """

  def __init__(self):
    self._fresh = []  # events that were not looked at yet
    self._out = self._there = self._applied = 0  # tickets, workers, batches
    self._busy_at_0 = self._there_at_0 = 0.0
    empty = np.zeros(0)
    self._known = empty, empty, empty  # see `_look`

  def take(self, events: Sequence):
    """More events, rows of `trace.EVENT_DTYPE`."""
    if len(events):
      self._fresh.append(np.asarray(events, trace.EVENT_DTYPE))

  def at(self, batches: int) -> float | None:
    """Until so many batches were applied; None where that is not known.

    Args:
      batches: never fewer than in the call before.
    """
    if self._fresh:
      self._look()
    applied, busy, there = self._known
    first = int(np.searchsorted(applied, batches))
    if first == len(applied):
      return None
    self._known = tuple(values[first:] for values in self._known)
    if not there[first]:
      return None
    return float(busy[first] / there[first])

  def _look(self):
    """Adds the batches applied and the workers' times at the fresh events.

    The tickets that are out at a time t were issued, so that until then workers
    were busy for Σ (end − issue) + Σ (t − issue) = Σ end − Σ issue + out t.
    """
    events = np.concatenate(self._fresh)
    self._fresh = []
    kind, action, time = events['event'], events['action'], events['time']
    over = np.isin(kind, (Kind.ARRIVE, Kind.RESTART, Kind.EXPIRE))
    over &= action != Action.REFUSE
    entered = np.isin(action, (Action.APPLY, Action.ACCUMULATE))
    entered &= kind == Kind.ARRIVE
    issued = (kind == Kind.ISSUE).astype(int) - over
    joined = (kind == Kind.JOIN).astype(int) - (kind == Kind.LEAVE)
    out = self._out + issued.cumsum()
    there = self._there + joined.cumsum()
    applied = (
      self._applied + np.where(entered, events['num_batches'], 0).cumsum()
    )
    busy_at_0 = self._busy_at_0 - (issued * time).cumsum()
    there_at_0 = self._there_at_0 - (joined * time).cumsum()
    self._out, self._there, self._applied = out[-1], there[-1], applied[-1]
    self._busy_at_0, self._there_at_0 = busy_at_0[-1], there_at_0[-1]
    new = applied, busy_at_0 + out * time, there_at_0 + there * time
    self._known = tuple(
      np.concatenate(both) for both in zip(self._known, new, strict=True)
    )
