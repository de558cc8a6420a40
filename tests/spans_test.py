"""What workers did is read rightly out of any trace."""

import collections
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ga_jax
from ga_jax import clocks, plots, policies
from ga_jax.plots import spans as spans_lib
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.server import ledger


def test_the_numbers_of_kinds_and_actions_are_those_of_the_policies():
  for member in (*Kind, *Action):
    assert getattr(spans_lib, f'_{member.name}') == member


def recorded(*times):
  """A clock whose workers take these times, over and over."""
  return clocks.recorded(times=times)


def scheduled(policy, clock, workers, batches, **options):
  return ga_jax.schedule(
    policy, clock, num_workers=workers, num_batches=batches, **options
  )


def brief(spans, *, updates=False):
  """By worker (kind, begin, end); without the updates."""
  found = collections.defaultdict(list)
  for span in spans:
    if updates == (span.kind == 'apply'):
      found[span.worker_id].append((span.kind, span.begin, span.end))
  return dict(found)


# Small runs, by hand.


def test_workers_wait_at_a_barrier():
  trace = scheduled(policies.synchronous(), recorded([1.0], [3.0]), 2, 4)
  spans = plots.spans_of(trace.events)
  assert brief(spans) == {
    0: [
      ('compute', 0, 1),
      ('wait', 1, 3),
      ('compute', 3, 4),
      ('wait', 4, 6),
    ],
    1: [('compute', 0, 3), ('compute', 3, 6)],
  }
  assert [(s.begin, s.version) for s in spans if s.kind == 'apply'] == [
    *((3, 1), (6, 2))
  ]


def test_who_has_nothing_left_to_compute_waits_for_the_end():
  trace = scheduled(policies.asynchronous(), recorded([1.0], [5.0]), 2, 3)
  spans = plots.spans_of(trace.events)
  assert brief(spans) == {
    0: [('compute', 0, 1), ('compute', 1, 2), ('wait', 2, 5)],
    1: [('compute', 0, 5)],
  }
  stale = [(s.version, s.staleness) for s in spans if s.kind == 'compute']
  assert stale == [(0, 0), (0, 2), (1, 0)]


def test_a_revoked_computation_is_a_restart():
  trace = scheduled(policies.k_sync(2, 1), recorded([1.0], [3.0]), 2, 2)
  assert brief(plots.spans_of(trace.events)) == {
    0: [('compute', 0, 1), ('compute', 1, 2)],
    1: [('restart', 0, 1), ('wait', 1, 2)],
  }


def test_a_worker_that_dies_is_lost_and_then_away():
  clock = clocks.with_fault(
    recorded([1.0], [2.0]), worker_id=1, time=3.0, noticed_after=4.0
  )
  trace = scheduled(policies.asynchronous(), clock, 2, 10)
  spans = plots.spans_of(trace.events)
  assert brief(spans)[1] == [
    ('compute', 0, 2),
    ('lost', 2, 7),
    ('away', 7, trace.events['time'][-1]),
  ]


def test_a_stall_is_part_of_its_computation():
  clock = clocks.with_fault(
    recorded([1.0], [2.0]), worker_id=1, time=1.0, duration=4.0
  )
  trace = scheduled(policies.synchronous(), clock, 2, 2)
  assert brief(plots.spans_of(trace.events)) == {
    0: [('compute', 0, 1), ('wait', 1, 6)],
    1: [('compute', 0, 6)],
  }


# What only live runs do, told to the ledger.


def asynchronous(batches=20, depth=0):
  return ledger.Ledger(
    policies.asynchronous(), num_batches=batches, depth=depth
  )


def test_a_restart_ends_with_the_late_answer():
  book = ledger.Ledger(policies.k_sync(2, 1), num_batches=9)
  for worker in range(2):
    book.join(worker, 0.0)
  slow, fast = book.ticket(1, 0.0), book.ticket(0, 0.0)
  book.arrive(fast, 2.0)  # revokes the other one, which computes on
  book.arrive(slow, 5.0)
  again = book.ticket(1, 6.0)
  book.arrive(again, 9.0)
  spans = brief(plots.spans_of(book.trace().events))
  assert spans[1] == [
    ('restart', 0, 5),
    ('wait', 5, 6),
    ('compute', 6, 9),
  ]


def test_an_expired_lease_is_lost_until_its_late_answer():
  book = asynchronous()
  book.join(0, 0.0)
  book.join(1, 1.0)
  hangs, other = book.ticket(0, 1.0), book.ticket(1, 1.0)
  book.expire(hangs, 4.0)
  book.arrive(other, 5.0)
  book.arrive(other, 6.0)  # again
  book.arrive(other._replace(worker_id=7), 6.5)  # nobody's
  book.arrive(hangs, 7.0)
  next_one = book.ticket(1, 8.0)
  book.arrive(next_one, 9.0)
  spans = plots.spans_of(book.trace().events)
  assert brief(spans) == {
    0: [('wait', 0, 1), ('lost', 1, 7), ('wait', 7, 9)],
    1: [
      ('away', 0, 1),
      ('compute', 1, 5),
      ('wait', 5, 8),
      ('compute', 8, 9),
    ],
  }


def test_a_worker_that_is_not_heard_of_again_is_away():
  book = asynchronous()
  book.join(0, 0.0)
  book.join(1, 0.0)
  hangs, other = book.ticket(0, 0.0), book.ticket(1, 0.0)
  book.expire(hangs, 2.0)
  book.arrive(other, 5.0)
  spans = brief(plots.spans_of(book.trace().events))
  assert spans[0] == [('lost', 0, 2), ('away', 2, 5)]


def test_a_worker_that_left_is_away_until_it_is_back():
  book = asynchronous()
  book.join(0, 0.0)
  book.join(1, 0.0)
  lost, done = book.ticket(0, 1.0), book.ticket(1, 1.0)
  book.leave(0, 2.0)
  book.arrive(done, 3.0)
  book.arrive(lost, 4.0)  # refused, and it is gone
  book.join(0, 5.0)
  back = book.ticket(0, 6.0)
  book.arrive(back, 7.0)
  open_one = book.ticket(0, 8.0)
  book.leave(1, 9.0)
  spans = plots.spans_of(book.trace().events)
  assert brief(spans)[0] == [
    *(('wait', 0, 1), ('lost', 1, 2), ('away', 2, 5), ('wait', 5, 6)),
    *(('compute', 6, 7), ('wait', 7, 8), ('unfinished', 8, 9)),
  ]
  last = next(s for s in spans if s.kind == 'unfinished')
  assert (last.ticket_id, last.version) == (open_one.ticket_id, 2)
  assert brief(spans)[1] == [
    *(('wait', 0, 1), ('compute', 1, 3), ('wait', 3, 9))
  ]


def test_tickets_that_are_read_ahead_are_computed_one_after_the_other():
  book = asynchronous(depth=1)
  book.join(0, 0.0)
  first, second = book.ticket(0, 0.0), book.ticket(0, 0.0)
  book.arrive(first, 2.0)
  third = book.ticket(0, 2.0)
  book.arrive(second, 5.0)
  book.arrive(third, 6.0)
  assert brief(plots.spans_of(book.trace().events))[0] == [
    *(('compute', 0, 2), ('compute', 2, 5), ('compute', 5, 6))
  ]


def test_an_empty_trace_has_no_spans():
  assert plots.spans_of(asynchronous().trace().events) == []


# Any run.

TIMED = [
  name for name in policies.POLICIES if not policies.make(name, 2).needs_loss
]


@st.composite
def clusters(draw):
  workers = draw(st.integers(1, 5))
  clock = clocks.CLOCKS[draw(st.sampled_from(list(clocks.CLOCKS)))](
    draw(st.integers(0, 9))
  )
  if draw(st.booleans()):
    clock = clocks.with_communication(clock, latency=0.25)
  times = st.floats(0.0, 12.0)
  for worker in range(1, workers):  # worker 0 lives
    what = draw(st.sampled_from(['', '', 'dies', 'stalls']))
    if what:
      long = draw(st.floats(0.5, 6.0)) if what == 'stalls' else np.inf
      clock = clocks.with_fault(
        clock,
        worker_id=worker,
        time=draw(times),
        duration=long,
        noticed_after=draw(st.floats(0.0, 3.0)),
      )
  policy = policies.make(draw(st.sampled_from(TIMED)), workers)
  per_ticket = draw(st.integers(1, 2))
  return scheduled(
    policy,
    clock,
    workers,
    draw(st.integers(1, 40)),
    batches_per_ticket=per_ticket,
  )


def check(trace):
  """Everything that holds for the spans of any trace."""
  spans = plots.spans_of(trace.events)
  assert {span.kind for span in spans} <= set(plots.KINDS)
  assert [s.begin for s in spans] == sorted(s.begin for s in spans)
  begin, end = trace.events['time'][[0, -1]]
  rows = collections.defaultdict(list)
  for span in spans:
    if span.kind != 'apply':
      rows[span.worker_id].append(span)
  for row in rows.values():  # no overlap, and no time left out
    assert row[0].begin == begin
    assert row[-1].end == end
    for one, other in itertools.pairwise(row):
      assert one.begin <= one.end == other.begin
    for one in row:
      assert one.end > one.begin or one.ticket_id >= 0
  check_tickets(trace, spans)
  marks = [span for span in spans if span.kind == 'apply']
  closed = trace.events[trace.events['action'] == Action.APPLY]
  assert [s.version for s in marks] == list(range(1, trace.updates() + 1))
  assert [s.begin for s in marks] == closed['time'].tolist()
  assert [s.worker_id for s in marks] == closed['worker_id'].tolist()
  return spans


def check_tickets(trace, spans):
  """A ticket has one span, which tells of its end."""
  events, entered = trace.events, trace.applied()
  held = [span for span in spans if span.ticket_id >= 0]
  issued = events[events['event'] == Kind.ISSUE]['ticket_id'].tolist()
  assert sorted(span.ticket_id for span in held) == sorted(issued)
  by_ticket = {span.ticket_id: span for span in held}
  for row in events[events['event'] == Kind.ARRIVE]:
    if row['action'] == Action.REFUSE:
      continue
    span = by_ticket[row['ticket_id']]
    discarded = row['action'] == Action.DISCARD
    assert span.kind == ('discarded' if discarded else 'compute')
    assert (span.arrival < 0) == discarded
    for name in ('worker_id', 'version', 'staleness'):
      assert getattr(span, name) == row[name]
    assert span.end == row['time']
  arrivals = {s.arrival: s.ticket_id for s in held if s.arrival >= 0}
  assert [arrivals[i] for i in range(len(entered))] == (
    entered['ticket_id'].tolist()
  )


def total(spans, *kinds):
  return sum(span.end - span.begin for span in spans if span.kind in kinds)


@settings(max_examples=60, deadline=None)
@given(clusters())
@example(scheduled(policies.synchronous(), clocks.pareto(0), 5, 23))
@example(scheduled(policies.ringmaster_stops(3), clocks.pareto(0), 9, 50))
def test_spans_of_any_cluster_agree_with_its_trace(trace):
  spans = check(trace)
  used = total(spans, 'compute')
  busy = used + total(spans, 'discarded', 'restart', 'lost')
  assert used == pytest.approx((1 - trace.wasted()) * busy)
  assert not total(spans, 'unfinished')


@pytest.mark.parametrize('name', ['asynchronous', 'synchronous', 'ssp'])
def test_computing_takes_what_the_clock_says(name):
  clock = clocks.heterogeneous(3)
  trace = scheduled(policies.make(name, 4), clock, 4, 60)
  for worker in range(4):
    times = [
      span.end - span.begin
      for span in plots.spans_of(trace.events)
      if span.kind == 'compute' and span.worker_id == worker
    ]
    assert times == pytest.approx(clock.draw(worker, 0)[: len(times)].tolist())


def live_run(policy):
  """A run on threads, of workers that take 1, 4 and 9 ms for a gradient."""

  def loss_fn(params, model_state, batch, key):
    del key
    return jnp.mean((batch.mean(0) - params) ** 2), model_state

  return ga_jax.run_on_threads(
    ga_jax.Job(
      loss_fn,
      np.zeros(8, np.float32),
      lambda batch_id: np.ones((2, 8), np.float32),
      ga_jax.gap_aware(0.01),
      policies.make(policy, 3),
    ),
    num_workers=3,
    num_batches=30,
    delay_fn=lambda worker, spent: (1 + worker) ** 2 * 1e-3,
  )


@pytest.mark.slow
@pytest.mark.parametrize('policy', TIMED)
def test_spans_of_a_live_run_agree_with_its_trace(policy):
  result = live_run(policy)
  spans = check(result.trace)
  late = result.trace.events['action'] == Action.REFUSE
  assert np.any(late) or policy != 'k_sync'
  for row in result.trace.events[late]:  # nobody gets a ticket before
    mine = next(s for s in spans if s.ticket_id == row['ticket_id'])
    assert mine.kind == 'restart'
    assert mine.end == row['time']
