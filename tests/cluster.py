"""Plays ledgers in tests: with scripted losses, with accidents, and watched."""

import heapq
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ga_jax import clocks
from ga_jax.policies.parts import saved as saved_lib
from ga_jax.policies.parts.base import Action, Decision, Event, Kind, Policy
from ga_jax.server import ledger

NEWCOMERS = 3  # workers that may join in the course of a run


class Step(NamedTuple):
  """One decision."""

  event: Event
  decision: Decision
  state: object  # of the policy, after it


def watched(policy: Policy) -> tuple[Policy, list[Step]]:
  """A policy whose decisions are written down, and each is taken twice.

  The second is taken from a saved state and must be the same; the state that a
  decision is taken from must hold plain values and stay as it was.
  """
  steps = []

  def decide(state, event):
    saved = json.dumps(saved_lib.to_saved(state, policy.init()))
    after, decision = policy.decide(state, event)
    loaded = saved_lib.from_saved(json.loads(saved), policy.init())
    assert (loaded, type(loaded)) == (state, type(state))
    assert policy.decide(loaded, event) == (after, decision)
    assert_plain(after)
    steps.append(Step(event, decision, after))
    return after, decision

  return policy._replace(decide=decide), steps


def assert_plain(value):
  """A value of Python's own types, all the way down."""
  if isinstance(value, tuple | frozenset):
    for part in value:
      assert_plain(part)
  elif isinstance(value, dict):
    assert_plain(tuple(value.items()))
  else:
    assert type(value) in (int, float, type(None)), type(value)


def stalling(seed: int) -> clocks.Clock:
  """Different machines, and now and then a task that takes very long."""

  def draw(worker_id, chunk):
    rng = np.random.default_rng([seed, worker_id, chunk])
    times = (1 + worker_id % 3) * rng.gamma(4.0, 0.25, clocks.base.CHUNK)
    return np.where(rng.random(clocks.base.CHUNK) < 0.05, 100.0, times)

  return clocks.Clock(draw=draw, mean=1.0)


def play(
  policy: Policy,
  clock: clocks.Clock,
  *,
  num_workers: int,
  num_batches: int,
  batches_per_ticket: int = 1,
  streams: int = 0,
  loss_fn: Callable[[ledger.Ticket], float] = lambda ticket: 1.0,
  accidents: np.random.Generator | None = None,
) -> ledger.Ledger:
  """Plays a run to its end and checks that no worker waits for ever.

  Args:
    policy: whom the server waits for.
    clock: how long tasks take.
    num_workers: workers, all there from time 0.
    num_batches: batches to apply.
    batches_per_ticket: consecutive batches per ticket.
    streams: see `Ledger`.
    loss_fn: `loss_fn(ticket) -> loss`, called once per answer.
    accidents: workers leave, join and come back, and answers come too late, by
      these draws.

  Returns:
    The finished ledger.
  """
  book = ledger.Ledger(
    policy,
    num_batches=num_batches,
    batches_per_ticket=batches_per_ticket,
    streams=streams,
  )
  next_time = clocks.task_times(clock)
  heap, now = [], 0.0
  waits = {}  # by idle worker, arrivals since
  ever = num_workers
  for worker_id in range(num_workers):
    book.join(worker_id, now)
  while True:
    while book.ready and book.has_batches:
      worker_id = book.ready[0]
      assert worker_id in book.workers
      assert all(t.worker_id != worker_id for t in book.outstanding.values())
      ticket = book.ticket(worker_id, now)
      assert book.ticket(worker_id, now) is None  # one at a time
      duration = sum(next_time(worker_id) for _ in range(ticket.num_batches))
      heapq.heappush(heap, (now + duration, worker_id, ticket))
    busy = {ticket.worker_id for ticket in book.outstanding.values()}
    idle = book.workers - busy - set(book.ready)
    waits = {w: waits.get(w, 0) for w in idle}
    assert all(number <= 8 * ever for number in waits.values())
    assert ticket.ticket_id < 50 * num_batches + 200
    if not heap:
      break
    now, _, ticket = heapq.heappop(heap)
    if accidents is not None:
      ever = _accident(book, now, accidents, ever, num_workers + NEWCOMERS)
    stands = ticket.ticket_id in book.outstanding
    if stands or (accidents is not None and accidents.random() < 0.5):
      receipt = book.arrive(ticket, now, loss_fn(ticket))
      assert (receipt.action != Action.REFUSE) == stands
      waits = {w: number + stands for w, number in waits.items()}
  book.finish(now)
  assert book.finished
  return book


def _accident(book, now, rng, ever, most) -> int:
  """Sometimes a worker leaves, comes back or is new."""
  chance = rng.random()
  if chance < 0.06 and len(book.workers) > 1:
    book.leave(int(rng.choice(sorted(book.workers))), now)
  elif chance < 0.12:
    gone = sorted(set(range(ever)) - book.workers)
    if gone:
      book.join(int(rng.choice(gone)), now)
    elif ever < most:
      book.join(ever, now)
      ever += 1
  return ever


def round_sizes(run) -> np.ndarray:
  """Gradients per closed round; the last one may be smaller than it should."""
  events = run.events
  closes = np.cumsum(events['action'] == Action.APPLY)
  entered = (events['event'] == Kind.ARRIVE) & np.isin(
    events['action'], (Action.APPLY, Action.ACCUMULATE)
  )
  # An APPLY that is an arrival belongs to the round that it closes.
  number = closes - (events['action'] == Action.APPLY)
  return np.bincount(number[entered])
