"""The ledger: tickets, batches and versions, and the policy that rules them.

It is the host's half of the server: it knows who holds which batches, asks the
policy what to do, and writes down everything. It holds no arrays and no clock;
times are told to it. Every batch is handed out until it is in exactly one
applied round: what is discarded, revoked or lost goes back to the head of the
queue with attempt + 1.
"""

import collections
import itertools
from typing import Any, NamedTuple

import numpy as np

from ga_jax.guards import checks, exclusive, memory
from ga_jax.policies.parts import saved as states_lib
from ga_jax.policies.parts.base import Action, Decision, Event, Kind, Policy
from ga_jax.record import trace as trace_lib
from ga_jax.server import saved_ledger
from ga_jax.server import streams as streams_lib

_WIDTH = len(trace_lib.EVENT_DTYPE.names)
MAX_ATTEMPTS = 5  # of batches whose gradient is not finite


class NotFiniteError(FloatingPointError):
  """The same batches gave no finite gradient again and again."""


# A row of the record at the end of a run: its cells, and itself in the trace.
_ROW_BYTES = 8 * _WIDTH + trace_lib.EVENT_DTYPE.itemsize
_LARGEST = 2**31 - 1  # of a batch, a version and a worker: they are int32


def check_record(
  num_workers: int, num_batches: int = 0, batches_per_ticket: int = 1
):
  """Looks whether the record of a run fits into memory.

  Args:
    num_workers: workers, each of which joins.
    num_batches: batches, whose tickets are issued and answered.
    batches_per_ticket: of them.

  Raises:
    TooLargeError: it does not, for so many workers, or so many batches.
  """
  rows = {
    'num_workers': (num_workers, num_workers),
    'num_batches': (num_batches, 2 * -(-num_batches // batches_per_ticket)),
  }
  for name, (value, number) in rows.items():
    memory.check(name, value, number * _ROW_BYTES, 'the record of the run')


def check_worker_id(worker_id: int) -> int:
  """A worker's id; a ValueError where it is none that a trace can hold."""
  return checks.integer('worker_id', worker_id, 0, _LARGEST)


def _check_tickets(
  policy: Policy, batches_per_ticket: int, depth: int, streams: int
):
  """Raises a ValueError where a policy or streams need simpler tickets."""
  if depth and not policy.pipelines:
    raise ValueError(
      f'pipeline_depth must be 0 with this policy, got {depth}: it makes '
      'workers wait for each other, or restarts them'
    )
  if streams and batches_per_ticket > 1:
    raise ValueError(
      'streams must be 0 with tickets of several batches, got '
      f'{streams} with batches_per_ticket={batches_per_ticket}'
    )


class Ticket(NamedTuple):
  """The right to compute some batches at a version, and to answer once."""

  ticket_id: int
  worker_id: int
  version: int
  first_batch: int
  num_batches: int
  attempt: int


class Receipt(NamedTuple):
  """What became of a submission.

  Attributes:
    action: APPLY, ACCUMULATE, DISCARD or REFUSE.
    weight: in its round's weighted mean.
    staleness: server updates since the ticket was issued.
    revoked: tickets that the policy took back because of it.
    cause: why it was refused, a key of `Ledger.refused`; '' where it was not.
  """

  action: Action
  weight: float
  staleness: int
  revoked: tuple[Ticket, ...] = ()
  cause: str = ''


class Ledger(exclusive.Exclusive):
  """Host bookkeeping of one run.

  Several threads may call it: each method is one step, and whole.
  """

  def __init__(
    self,
    policy: Policy,
    *,
    num_batches: int,
    batches_per_ticket: int = 1,
    depth: int = 0,
    streams: int = 0,
  ):
    """Opens a ledger.

    Args:
      policy: decides on every event.
      num_batches: batches to apply, from 1 to 2³¹ − 1; their ids count from 0.
      batches_per_ticket: how many consecutive batches a ticket holds; the last
        ticket of a run may hold fewer.
      depth: tickets that a worker may hold beside the one it computes; a policy
        that makes workers wait, or restarts them, allows none.
      streams: S where batches are segments of S streams, see `streams`; 0 where
        any worker may compute any batch.

    Raises:
      ValueError: an argument is out of its range, or the policy allows no
        depth, or streams are to be issued several batches at a time.
    """
    num_batches = checks.integer('num_batches', num_batches, 1, _LARGEST)
    batches_per_ticket = checks.integer(
      'batches_per_ticket', batches_per_ticket, 1
    )
    depth = checks.integer('pipeline_depth', depth, 0)
    streams = checks.integer('streams', streams, 0)
    _check_tickets(policy, batches_per_ticket, depth, streams)
    self.version = 0
    self.num_batches = num_batches
    self.refused = collections.Counter()  # by cause
    self.ready = collections.deque()  # workers the policy lets start
    self.workers = set()
    self._policy = policy
    self._policy_state = policy.init()
    self._per_ticket = batches_per_ticket
    self._next_batch = 0
    self._next_ticket = 0
    self._returned = collections.deque()  # (first, number, attempt)
    # With streams they hold what is left, and nothing is reserved.
    self._streams = (
      streams_lib.Streams(streams, num_batches) if streams else None
    )
    self._reserved = {}  # worker_id -> (first, number, attempt)
    self._outstanding = {}  # ticket_id -> Ticket, in the order of their issue
    self._revoked = set()  # ids of tickets that were taken back
    self._depth = depth
    self._in_round = 0  # gradients in the open round
    self._cells = []  # the trace row by row, flat: _WIDTH values each
    self._forgotten = 0  # rows that were there before them
    self._not_finite = collections.Counter()  # first_batch -> answers
    super().__init__()

  @property
  def has_batches(self) -> bool:
    """Whether a ticket could be issued now."""
    if self._streams:
      return self._streams.left > 0
    fresh = self._next_batch < self.num_batches
    return fresh or bool(self._returned) or bool(self._reserved)

  @property
  @exclusive.locked
  def done(self) -> bool:
    """Whether every batch is in a round (the last one may still be open)."""
    return not self._outstanding and not self.has_batches

  @property
  @exclusive.locked
  def finished(self) -> bool:
    """Whether every batch is in a closed round."""
    return self.done and not self._in_round

  @property
  def outstanding(self) -> dict[int, Ticket]:
    """Tickets that wait for an answer, by ticket_id."""
    return self._outstanding

  @exclusive.locked
  def join(self, worker_id: int, time: float = 0.0):
    """A worker comes in; the policy says when it may start."""
    worker_id = check_worker_id(worker_id)
    if worker_id in self.workers:
      raise ValueError(f'worker {worker_id} is already here')
    self.workers.add(worker_id)
    self._record(time, Kind.JOIN, worker_id)
    self._consult(Event(Kind.JOIN, worker_id, -1, 0, time, None))
    self.ready.extend([worker_id] * self._depth)

  @exclusive.locked
  def leave(self, worker_id: int, time: float = 0.0) -> tuple[Ticket, ...]:
    """A worker goes; its batches are issued again.

    Returns:
      The tickets that ended with it.
    """
    if worker_id not in self.workers:
      raise ValueError(f'worker {worker_id} is not here')
    self.workers.remove(worker_id)
    while worker_id in self.ready:
      self.ready.remove(worker_id)
    if worker_id in self._reserved:
      self._returned.appendleft(self._reserved.pop(worker_id))
    if self._streams:
      self._streams.leave(worker_id)
    ended = self._revoke((worker_id,), time, Kind.EXPIRE)
    self._record(time, Kind.LEAVE, worker_id)
    revoked, _ = self._consult(Event(Kind.LEAVE, worker_id, -1, 0, time, None))
    return ended + revoked

  @exclusive.locked
  def expire(
    self, ticket: Ticket, time: float = 0.0, cause: str = 'lease'
  ) -> tuple[Ticket, ...]:
    """Takes a ticket back: its lease ran out, or its answer was no use.

    Args:
      ticket: an outstanding ticket.
      time: now.
      cause: what is counted in `refused`.

    Returns:
      The tickets that ended with it.

    Raises:
      ValueError: the ticket is not outstanding.
    """
    if self._outstanding.pop(ticket.ticket_id, None) != ticket:
      raise ValueError(f'{ticket} is not outstanding')
    self.refused[cause] += 1
    self._end(ticket, time, Kind.EXPIRE)
    revoked, _ = self._consult(
      Event(Kind.EXPIRE, ticket.worker_id, -1, 0, time, None)
    )
    return (ticket, *revoked)

  @exclusive.locked
  def count_not_finite(self, ticket: Ticket):
    """Counts an answer that was not finite, once its ticket has expired.

    Raises:
      NotFiniteError: it was the last of `MAX_ATTEMPTS` for these batches.
    """
    self._not_finite[ticket.first_batch] += 1
    if self._not_finite[ticket.first_batch] == MAX_ATTEMPTS:
      raise NotFiniteError(
        f'batch {ticket.first_batch} gave no finite gradient in '
        f'{MAX_ATTEMPTS} attempts, the last at version {ticket.version}'
      )

  @exclusive.locked
  def reserve(self, worker_id: int) -> tuple[int, int, int] | None:
    """Says which batches a worker's next ticket will most likely hold.

    They can be prepared while the worker still computes. Another worker takes
    them where nothing else is left.

    Returns:
      (first_batch, num_batches, attempt), or None where there are none.
    """
    if self._streams:
      return self._streams.next(worker_id)
    if worker_id not in self._reserved:
      batches = self._take(worker_id)
      if batches is None:
        return None
      self._reserved[worker_id] = batches
    return self._reserved[worker_id]

  def _take(self, worker_id):
    """The next batches that nobody holds: (first, number, attempt) or None."""
    if self._streams:
      return self._streams.take(worker_id)
    if self._returned:
      return self._returned.popleft()
    if self._next_batch == self.num_batches:
      return None
    first = self._next_batch
    number = min(self._per_ticket, self.num_batches - first)
    self._next_batch += number
    return first, number, 0

  @exclusive.locked
  def ticket(self, worker_id: int, time: float = 0.0) -> Ticket | None:
    """Gives a worker its next ticket.

    Returns:
      A `Ticket`, or None where the policy makes the worker wait or no batch is
      left to hand out.
    """
    if not self.has_batches or worker_id not in self.ready:
      return None
    if self.ready[0] == worker_id:
      self.ready.popleft()
    else:
      self.ready.remove(worker_id)
    batches = self._reserved.pop(worker_id, None) or self._take(worker_id)
    first, number, attempt = batches or self._reserved.popitem()[1]
    ticket = Ticket(
      self._next_ticket, worker_id, self.version, first, number, attempt
    )
    self._next_ticket += 1
    self._outstanding[ticket.ticket_id] = ticket
    self._record(time, Kind.ISSUE, worker_id, ticket)
    return ticket

  @exclusive.locked
  def arrive(
    self, ticket: Ticket, time: float = 0.0, loss: float | None = None
  ) -> Receipt:
    """A worker answers a ticket.

    Args:
      ticket: the ticket it answers.
      time: of the arrival, not before any earlier event.
      loss: of its batches; required where the policy needs it.

    Returns:
      A `Receipt`. An answer to no outstanding ticket is refused and changes
      nothing but the record.
    """
    if self._outstanding.get(ticket.ticket_id) != ticket:
      cause = self._why_not(ticket)
      self.refused[cause] += 1
      self._record(
        time, Kind.ARRIVE, ticket.worker_id, ticket, Action.REFUSE, 0.0
      )
      staleness = self.version - ticket.version
      return Receipt(Action.REFUSE, 0.0, staleness, cause=cause)
    if loss is None and self._policy.needs_loss:
      raise ValueError('this policy needs the loss of every submission')
    del self._outstanding[ticket.ticket_id]
    staleness = self.version - ticket.version
    event = Event(
      Kind.ARRIVE, ticket.worker_id, ticket.version, staleness, time, loss
    )
    revoked, decision = self._consult(event, ticket)
    return Receipt(decision.action, decision.weight, staleness, revoked)

  def _why_not(self, ticket: Ticket) -> str:
    """Why an answer is refused."""
    known = 0 <= ticket.ticket_id < self._next_ticket
    if not known or ticket.ticket_id in self._outstanding:
      return 'forged'
    return 'late' if ticket.ticket_id in self._revoked else 'doubled'

  @exclusive.locked
  def finish(self, time: float = 0.0) -> bool:
    """Closes the round that is still open at the end.

    Returns:
      Whether one was open.

    Raises:
      ValueError: batches are still queued or being computed.
    """
    if not self.done:
      raise ValueError('batches are still queued or outstanding')
    if not self._in_round:
      return False
    self._close(time)
    return True

  @property
  def num_rows(self) -> int:
    """How many rows the record has so far."""
    return self._forgotten + len(self._cells) // _WIDTH

  @exclusive.locked
  def rows(self, start: int = 0) -> list[tuple]:
    """The record from a row on.

    Args:
      start: index of the first row, none of them forgotten.

    Returns:
      A tuple per row, in the order of `trace.EVENT_DTYPE`'s fields.
    """
    cells = iter(self._cells[(start - self._forgotten) * _WIDTH :])
    return list(zip(*[cells] * _WIDTH, strict=True))

  @exclusive.locked
  def forget_rows(self):
    """Lets go of the rows so far, which were written down elsewhere."""
    self._forgotten = self.num_rows
    self._cells = []

  @exclusive.locked
  def save(self) -> dict[str, Any]:
    """Everything but the rows so far, as JSON knows it.

    Raises:
      TypeError: the policy's state cannot be saved.
    """
    state = states_lib.to_saved(self._policy_state, self._policy.init())
    return {
      'num_batches': self.num_batches,
      'per_ticket': self._per_ticket,
      'depth': self._depth,
      'version': self.version,
      'rows': self.num_rows,
      'next_batch': self._next_batch,
      'next_ticket': self._next_ticket,
      'in_round': self._in_round,
      'refused': dict(self.refused),
      'ready': list(self.ready),
      'workers': sorted(self.workers),
      'returned': [list(batches) for batches in self._returned],
      'reserved': [[one, *batches] for one, batches in self._reserved.items()],
      'outstanding': [list(ticket) for ticket in self._outstanding.values()],
      'revoked': sorted(self._revoked),
      'not_finite': [list(pair) for pair in self._not_finite.items()],
      'streams': self._streams.save() if self._streams else None,
      'policy_state': state,
    }

  @exclusive.locked
  def restore(self, saved: dict[str, Any]):
    """Goes on where `save` was called, with the rows before forgotten.

    Args:
      saved: what it returned, from a file that may hold anything.

    Raises:
      FormError: it is of another run, or of none.
    """
    saved_ledger.check(
      saved,
      num_batches=self.num_batches,
      per_ticket=self._per_ticket,
      depth=self._depth,
      has_streams=self._streams is not None,
    )
    if self._streams:
      self._streams.restore(saved['streams'])
    self._policy_state = states_lib.from_saved(
      saved['policy_state'], self._policy.init()
    )
    self.version, self._in_round = saved['version'], saved['in_round']
    self._next_batch = saved['next_batch']
    self._next_ticket = saved['next_ticket']
    self.refused = collections.Counter(saved['refused'])
    self.ready = collections.deque(saved['ready'])
    self.workers = set(saved['workers'])
    self._returned = collections.deque(map(tuple, saved['returned']))
    self._reserved = {one: tuple(rest) for one, *rest in saved['reserved']}
    tickets = itertools.starmap(Ticket, saved['outstanding'])
    self._outstanding = {ticket.ticket_id: ticket for ticket in tickets}
    self._revoked = set(saved['revoked'])
    self._not_finite = collections.Counter(dict(saved['not_finite']))
    self._cells, self._forgotten = [], saved['rows']

  @exclusive.locked
  def trace(self, num_workers: int | None = None) -> trace_lib.Trace:
    """The record so far; nothing of it may have been forgotten.

    Args:
      num_workers: workers have the ids 0 to num_workers − 1; by default as many
        as it takes for those that ever joined.
    """
    events = np.empty(self.num_rows, trace_lib.EVENT_DTYPE)
    for i, name in enumerate(trace_lib.EVENT_DTYPE.names):
      events[name] = self._cells[i::_WIDTH]
    if num_workers is None:
      joined = events['worker_id'][events['event'] == Kind.JOIN]
      num_workers = int(max(joined, default=-1)) + 1
    num_workers = checks.integer('num_workers', num_workers, 0)
    return trace_lib.Trace(
      events=events,
      num_workers=num_workers,
      num_batches=self.num_batches,
    )

  def _consult(
    self, event: Event, ticket: Ticket | None = None
  ) -> tuple[tuple[Ticket, ...], Decision]:
    """Asks the policy and carries out its decision."""
    self._policy_state, decision = self._policy.decide(
      self._policy_state, event
    )
    action, weight, start, restart, max_staleness = decision
    if ticket is not None:
      self._record(
        event.time, Kind.ARRIVE, event.worker_id, ticket, action, weight
      )
      if action == Action.DISCARD:
        self._give_back(ticket)
      elif action == Action.NONE:
        raise ValueError(
          'a policy must apply, accumulate or discard a gradient'
        )
      else:
        self._in_round += 1
        if action == Action.APPLY:
          self.version += 1
          self._in_round = 0
    elif action == Action.APPLY and self._in_round:
      self._close(event.time)
    if max_staleness is not None:
      restart += self._staler(max_staleness)
    revoked = self._revoke(restart, event.time, Kind.RESTART) if restart else ()
    wanted = dict.fromkeys(start + restart)
    if self.ready and not self._depth:
      there = set(self.ready)
      wanted = [worker_id for worker_id in wanted if worker_id not in there]
    self.ready.extend(wanted)
    return revoked, decision

  def _staler(self, max_staleness) -> tuple[int, ...]:
    """Workers that compute at versions older than that, the oldest first."""
    oldest = self.version - max_staleness
    late = itertools.takewhile(
      lambda ticket: ticket.version < oldest, self._outstanding.values()
    )
    return tuple(ticket.worker_id for ticket in late)

  def _close(self, time):
    self._record(time, Kind.CLOSE, -1, None, Action.APPLY)
    self.version += 1
    self._in_round = 0

  def _revoke(self, workers, time, kind) -> tuple[Ticket, ...]:
    workers = set(workers)
    ended = tuple(
      t for t in self._outstanding.values() if t.worker_id in workers
    )
    for ticket in reversed(ended):  # the head of the queue keeps their order
      del self._outstanding[ticket.ticket_id]
      self._end(ticket, time, kind)
    return ended

  def _end(self, ticket, time, kind):
    self._revoked.add(ticket.ticket_id)
    self._record(time, kind, ticket.worker_id, ticket)
    self._give_back(ticket)

  def _give_back(self, ticket):
    if self._streams:
      self._streams.give_back(ticket.first_batch, ticket.attempt + 1)
      return
    self._returned.appendleft(
      (ticket.first_batch, ticket.num_batches, ticket.attempt + 1)
    )

  def _record(
    self, time, kind, worker_id, ticket=None, action=Action.NONE, weight=1.0
  ):
    if ticket is None:
      ticket_id, version, first, number, attempt = -1, self.version, -1, 0, 0
    else:
      ticket_id, _, version, first, number, attempt = ticket
    self._cells += (
      time,
      kind,
      worker_id,
      ticket_id,
      version,
      first,
      number,
      attempt,
      action,
      weight,
      self.version - version,
    )
