"""The ledger: every batch in exactly one applied round, whatever happens."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ga_jax
from ga_jax import clocks, ledger, policies, trace
from ga_jax.policies.base import Action, Decision, Event, Kind, Policy


def discarding(decisions):
  """A scripted policy: answers arrivals with the given decisions in turn."""

  def decide(state, event):
    if event.kind == Kind.JOIN:
      return state, Decision(start=(event.worker_id,))
    if event.kind != Kind.ARRIVE:
      return state, Decision()
    action, restart = decisions[state % len(decisions)]
    start = () if event.worker_id in restart else (event.worker_id,)
    return state + 1, Decision(action, 1.0, start, restart)

  return Policy(init=lambda: 0, decide=decide, accumulates=True)


def test_async_staleness_under_a_constant_clock_is_round_robin():
  run = ga_jax.schedule(
    policies.asynchronous(), clocks.constant(), num_workers=4, num_batches=40
  )
  run.verify()
  assert run.updates() == 40
  arrivals = run.applied()
  assert arrivals['worker_id'].tolist() == [0, 1, 2, 3] * 10
  assert arrivals['staleness'].tolist() == [0, 1, 2] + [3] * 37


def test_synchronous_rounds_are_fresh_and_the_last_one_is_closed():
  run = ga_jax.schedule(
    policies.synchronous(),
    clocks.homogeneous(0),
    num_workers=4,
    num_batches=10,
  )
  run.verify()
  assert not run.applied()['staleness'].any()
  assert run.updates() == 3  # 4, 4 and the 2 that were left
  assert run.events['event'][-1] == Kind.CLOSE


def test_ties_go_to_the_lower_worker():
  run = ga_jax.schedule(
    policies.synchronous(), clocks.constant(), num_workers=3, num_batches=9
  )
  assert run.applied()['worker_id'].tolist() == [0, 1, 2] * 3


@pytest.mark.parametrize('batches_per_ticket', [1, 3])
def test_discarded_batches_are_issued_again(batches_per_ticket):
  policy = discarding(
    [
      (Action.DISCARD, ()),
      (Action.APPLY, ()),
      (Action.ACCUMULATE, ()),
      (Action.APPLY, (0, 1)),
    ]
  )
  run = ga_jax.schedule(
    policy,
    clocks.heterogeneous(1),
    num_workers=3,
    num_batches=50,
    batches_per_ticket=batches_per_ticket,
  )
  run.verify()
  assert (run.events['action'] == Action.DISCARD).any()
  assert (run.events['event'] == Kind.RESTART).any()
  again = run.events[run.events['attempt'] > 0]
  assert len(again)
  # What came back goes first: no later batch is issued before it.
  issues = run.events[run.events['event'] == Kind.ISSUE]
  assert issues['attempt'].max() >= 1


def test_late_doubled_and_forged_answers_are_refused():
  book = ledger.Ledger(policies.asynchronous(), num_batches=4)
  book.join(0)
  ticket = book.ticket(0)
  for forged in (
    ticket._replace(ticket_id=7),
    ticket._replace(version=3),
    ticket._replace(worker_id=1),
    ticket._replace(first_batch=2),
  ):
    assert book.arrive(forged).action == Action.REFUSE
  assert book.arrive(ticket).action == Action.APPLY
  assert book.arrive(ticket).action == Action.REFUSE
  assert book.version == 1
  book.trace().verify(complete=False)


def test_a_worker_without_leave_gets_no_ticket():
  book = ledger.Ledger(policies.synchronous(), num_batches=4)
  book.join(0)
  book.join(1)
  ticket = book.ticket(0)
  assert book.ticket(0) is None  # it holds one
  book.arrive(ticket)
  assert book.ticket(0) is None  # the barrier
  book.arrive(book.ticket(1))
  assert book.ticket(0).version == 1


def test_a_worker_that_leaves_gives_its_batches_back():
  book = ledger.Ledger(policies.synchronous(), num_batches=4)
  for worker in range(3):
    book.join(worker)
  tickets = [book.ticket(worker) for worker in range(3)]
  book.arrive(tickets[0])
  book.arrive(tickets[1])
  assert book.version == 0
  assert book.leave(2) == (tickets[2],)  # closes the round of the other two
  assert book.version == 1
  again = book.ticket(0)
  assert (again.first_batch, again.attempt) == (2, 1)
  assert book.arrive(tickets[2]).action == Action.REFUSE
  book.arrive(again)
  book.arrive(book.ticket(1))
  assert book.finished
  book.trace().verify()


def test_a_policy_must_answer_an_arrival():
  policy = Policy(
    init=lambda: None,
    decide=lambda state, event: (state, Decision(start=(event.worker_id,))),
  )
  book = ledger.Ledger(policy, num_batches=1)
  book.join(0)
  ticket = book.ticket(0)
  with pytest.raises(ValueError, match='apply, accumulate or discard'):
    book.arrive(ticket)


def test_finish_refuses_while_work_is_out():
  book = ledger.Ledger(policies.asynchronous(), num_batches=2)
  book.join(0)
  with pytest.raises(ValueError, match='queued or outstanding'):
    book.finish()
  with pytest.raises(ValueError, match='already here'):
    book.join(0)


@settings(max_examples=60, deadline=None)
@given(
  policy=st.sampled_from(sorted(policies.POLICIES)),
  seed=st.integers(0, 10_000),
  workers=st.integers(1, 6),
  num_batches=st.integers(1, 60),
)
def test_exactly_once_with_stalls_joins_and_leaves(
  policy, seed, workers, num_batches
):
  rng = np.random.default_rng(seed)
  book = ledger.Ledger(policies.POLICIES[policy](), num_batches=num_batches)
  heap, now, late = [], 0.0, []
  for worker in range(workers):
    book.join(worker, now)
  joined = workers
  events = 0
  while True:
    events += 1
    assert events < 50 * num_batches + 200, 'a worker waits for ever'
    while book.ready and book.has_batches:
      worker = book.ready[0]
      duration = rng.pareto(1.1) + 0.01
      heapq.heappush(heap, (now + duration, worker, book.ticket(worker, now)))
    if not heap:
      break
    now, worker, ticket = heapq.heappop(heap)
    chance = rng.random()
    if chance < 0.05 and len(book.workers) > 1 and worker in book.workers:
      book.leave(worker, now)
      late.append(ticket)
    elif chance < 0.1:
      book.join(joined, now)
      joined += 1
      heapq.heappush(heap, (now, worker, ticket))
    else:
      book.arrive(ticket, now)
    if late and chance > 0.8:
      assert book.arrive(late.pop(), now).action == Action.REFUSE
  book.finish(now)
  assert book.finished
  book.trace().verify()


def clean_trace():
  return ga_jax.schedule(
    policies.synchronous(),
    clocks.homogeneous(0),
    num_workers=3,
    num_batches=8,
  )


@pytest.mark.parametrize(
  ('column', 'row', 'value', 'message'),
  [
    ('staleness', -2, 1, 'staleness 1'),
    ('time', -1, 0.0, 'time'),
    ('version', 3, 5, 'read version 5'),
    ('first_batch', -2, 0, 'not the answer'),
    ('ticket_id', 4, 0, 'issued twice'),
    ('action', -1, 0, 'never closed'),
  ],
)
def test_verify_finds_a_falsified_trace(column, row, value, message):
  good = clean_trace()
  good.verify()
  events = good.events.copy()
  events[column][row] = value
  with pytest.raises(trace.TraceError, match=message):
    good._replace(events=events).verify()


def test_verify_finds_missing_and_doubled_batches():
  good = clean_trace()
  with pytest.raises(trace.TraceError, match=r'never applied: \[8\]'):
    good._replace(num_batches=9).verify()
  good._replace(num_batches=9).verify(complete=False)
  events = good.events.copy()
  tickets = events['ticket_id']
  events['first_batch'][tickets == good.applied()['ticket_id'][-1]] = 0
  with pytest.raises(trace.TraceError, match='applied twice'):
    good._replace(events=events).verify(complete=False)


def test_trace_round_trip(tmp_path):
  good = clean_trace()
  path = str(tmp_path / 'trace.npz')
  good.save(path)
  again = trace.Trace.load(path)
  assert (again.events == good.events).all()
  assert again[1:] == good[1:]
  assert [p.name for p in tmp_path.iterdir()] == ['trace.npz']
  np.savez(path, something=1)
  with pytest.raises(trace.TraceError, match='no trace'):
    trace.Trace.load(path)


def test_synchronous_waits_among_those_that_are_left():
  policy = policies.synchronous()
  state = policy.init()
  for worker in range(3):
    state, _ = policy.decide(state, Event(Kind.JOIN, worker, -1, 0, 0.0, None))
  arrive = Event(Kind.ARRIVE, 0, 0, 0, 1.0, None)
  state, decision = policy.decide(state, arrive)
  assert decision.action == Action.ACCUMULATE
  assert decision.start == ()
  state, _ = policy.decide(state, Event(Kind.LEAVE, 1, -1, 0, 1.0, None))
  state, decision = policy.decide(state, arrive._replace(worker_id=2))
  assert decision.action == Action.APPLY
  assert decision.start == (0, 2)
