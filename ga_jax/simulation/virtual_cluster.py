"""The simulated cluster: who finishes when, on a virtual clock.

Ties in time go to the lower worker id; at one time answers come before new
tickets. A worker whose ticket is revoked begins again at once.
"""

import collections
import heapq
import math
from collections.abc import Callable, Iterator

from ga_jax import clocks
from ga_jax.guards import checks
from ga_jax.policies.parts import base as policies
from ga_jax.policies.parts.base import Policy
from ga_jax.record import trace as trace_lib
from ga_jax.server import ledger

_ARRIVES, _LEAVES = 0, 1


def play(
  policy: Policy,
  clock: clocks.Clock,
  *,
  num_workers: int,
  num_batches: int,
  batches_per_ticket: int = 1,
  overlaps: bool = False,
  streams: int = 0,
  loss_fn: Callable[[ledger.Ticket], float] | None = None,
) -> Iterator[ledger.Ledger]:
  """Plays a run, event by event.

  Args:
    policy: whom the server waits for.
    clock: how long tasks take, and who stalls or dies.
    num_workers: workers, all there from time 0.
    num_batches: batches to apply.
    batches_per_ticket: consecutive batches per ticket; the last may hold fewer.
    overlaps: whether messages are hidden behind the computation.
    streams: see `Ledger`.
    loss_fn: `loss_fn(ticket) -> loss`, where the policy needs it.

  Yields:
    The ledger, after every answer and the tickets that followed from it.

  Raises:
    ValueError: the policy needs losses and there is no `loss_fn`, or all
      workers died before every batch was applied.
    TooLargeError: there is no memory for the record of such a run.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  batches_per_ticket = checks.integer(
    'batches_per_ticket', batches_per_ticket, 1
  )
  _check(policy, clock, loss_fn)
  book = ledger.Ledger(
    policy,
    num_batches=num_batches,
    batches_per_ticket=batches_per_ticket,
    streams=streams,
  )
  machines = _Machines(clock, num_workers, overlaps)
  ledger.check_record(num_workers, book.num_batches, batches_per_ticket)
  heap, now = machines.departures(), 0.0
  for worker_id in range(num_workers):
    book.join(worker_id, now)
  while True:
    _issue(book, machines, heap, now)
    yield book
    if book.done:
      break
    if not heap:
      raise ValueError(
        f'at time {now:g} batches are left and nobody computes: all workers '
        'died, or the policy lets none start'
      )
    now, worker_id, what, ticket = heapq.heappop(heap)
    if what == _LEAVES:
      book.leave(worker_id, now)
    elif ticket.ticket_id in book.outstanding:  # not revoked meanwhile
      book.arrive(ticket, now, loss_fn(ticket) if policy.needs_loss else None)
  if book.finish(now):
    yield book


def _check(policy: Policy, clock: clocks.Clock, loss_fn):
  """Raises where a run cannot be played."""
  policies.check(policy)
  if not isinstance(clock, clocks.Clock):
    raise TypeError(
      'clock must be a Clock, such as ga_jax.clocks.homogeneous(seed=0), got '
      f'{clock!r}'
    )
  if policy.needs_loss and loss_fn is None:
    raise ValueError('this policy needs losses and cannot be scheduled alone')


def _issue(book: ledger.Ledger, machines: '_Machines', heap, now: float):
  """Gives tickets to all that may start; their ends go into the heap."""
  while (worker_id := machines.first_alive(book.ready, now)) is not None:
    ticket = book.ticket(worker_id, now)
    if ticket is None:  # no batch is left
      return
    end = machines.end(worker_id, now, ticket.num_batches)
    if end < math.inf:
      heapq.heappush(heap, (end, worker_id, _ARRIVES, ticket))


def schedule(
  policy: Policy,
  clock: clocks.Clock,
  *,
  num_workers: int,
  num_batches: int,
  batches_per_ticket: int = 1,
  overlaps: bool = False,
  streams: int = 0,
) -> trace_lib.Trace:
  """Plays a cluster without computing anything.

  Args:
    policy: whom the server waits for; it must not need losses.
    clock: how long tasks take, and who stalls or dies.
    num_workers: workers, all there from time 0.
    num_batches: batches to apply.
    batches_per_ticket: consecutive batches per ticket; the last may hold fewer.
    overlaps: whether messages are hidden behind the computation.
    streams: see `Ledger`.

  Returns:
    The complete `Trace`; times are in the clock's units.

  Raises:
    ValueError: see `play`.
  """
  events = play(
    policy,
    clock,
    num_workers=num_workers,
    num_batches=num_batches,
    batches_per_ticket=batches_per_ticket,
    overlaps=overlaps,
    streams=streams,
  )
  book = collections.deque(events, maxlen=1).pop()
  return book.trace(num_workers)


class _Machines:
  """What the clock says of the workers."""

  def __init__(self, clock: clocks.Clock, num_workers: int, overlaps: bool):
    faults = [f for f in clock.faults if f.worker_id < num_workers]
    self._next_time = clocks.task_times(clock)
    self._overhead = clock.overhead
    self._overlaps = overlaps
    self._deaths = [f for f in faults if math.isinf(f.duration)]
    self._died_at = {f.worker_id: f.time for f in self._deaths}
    self._faults = {
      worker_id: tuple(f for f in faults if f.worker_id == worker_id)
      for worker_id in {f.worker_id for f in faults}
    }

  def departures(self):
    """A heap of when the server hears of deaths."""
    heap = [
      (f.time + f.noticed_after, f.worker_id, _LEAVES, None)
      for f in self._deaths
    ]
    heapq.heapify(heap)
    return heap

  def first_alive(self, ready, now: float) -> int | None:
    """Of those that may start the first one that can."""
    if not self._died_at:
      return ready[0] if ready else None
    alive = (w for w in ready if self._died_at.get(w, math.inf) > now)
    return next(alive, None)

  def end(self, worker_id: int, now: float, num_batches: int) -> float:
    """When a ticket that is issued now is answered; infinite for never."""
    if num_batches == 1:
      duration = self._next_time(worker_id)
    else:
      duration = sum(self._next_time(worker_id) for _ in range(num_batches))
    if self._overlaps:
      duration = max(duration, self._overhead)
    else:
      duration += self._overhead
    if worker_id not in self._faults:
      return now + duration
    return clocks.finish_time(self._faults[worker_id], now, duration)
