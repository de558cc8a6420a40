"""Until when something is waited for in a live run.

A ticket has a lease until its answer comes, a member of a run that goes on has
one until it is back. What ends with a lease is the server's affair.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator

from ga_jax.server import ledger

Holder = ledger.Ticket | int  # a ticket, or the worker_id of a member


class Leases:
  """Who holds a lease, and whose is over. It reads no clock and ends nothing.

  Nobody gives a lease back: the one that it is asked for says whether what was
  waited for has come.
  """

  def __init__(self, seconds: float, waited_for: Callable[[Holder], bool]):
    """Begins with none.

    Args:
      seconds: how long each is; infinity for leases that never end.
      waited_for: whether a holder is still waited for.
    """
    self._seconds = seconds
    self._waited_for = waited_for
    self._ends = []  # heap of (time, serial, holder)
    self._serial = itertools.count()

  def begin(self, holder: Holder, now: float):
    """Gives a lease."""
    end = now + self._seconds
    if end < float('inf'):
      heapq.heappush(self._ends, (end, next(self._serial), holder))

  def first_end(self) -> float | None:
    """When the next one is over; None where nobody is waited for."""
    while self._ends:
      end, _, holder = self._ends[0]
      if self._waited_for(holder):
        return end
      heapq.heappop(self._ends)
    return None

  def over(self, now_fn: Callable[[], float]) -> Iterator[Holder]:
    """Those whose lease is over, in the order of their ends.

    Args:
      now_fn: the time, asked again before each.
    """
    while self._ends and self._ends[0][0] <= now_fn():
      _, _, holder = heapq.heappop(self._ends)
      if self._waited_for(holder):
        yield holder
