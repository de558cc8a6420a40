"""The ledger: tickets, refusals, and a trace that can be checked."""

import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, ledger, policies, trace
from ga_jax.policies.base import Action, Decision, Event, Kind, Policy
from tests import cluster


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


def test_a_policy_that_needs_it_is_told_of_tickets():
  heard = []

  def decide(state, event):
    heard.append(event)
    if event.kind == Kind.ISSUE:  # whatever it decides is ignored
      return state, Decision(Action.APPLY, 1.0, (7,), (0,))
    return policies.asynchronous().decide(state, event)

  policy = policies.asynchronous()._replace(decide=decide)
  for needs_issue in (False, True):
    heard.clear()
    book = ledger.Ledger(
      policy._replace(needs_issue=needs_issue), num_batches=2
    )
    book.join(3, 0.5)
    book.arrive(book.ticket(3, 1.0), 2.0)
    ticket = book.ticket(3, 2.5)
    assert book.outstanding == {1: ticket}
    assert not book.ready
    issues = [event for event in heard if event.kind == Kind.ISSUE]
    assert issues == needs_issue * [
      Event(Kind.ISSUE, 3, 0, 0, 1.0, None),
      Event(Kind.ISSUE, 3, 1, 0, 2.5, None),
    ]
    assert len(heard) == 2 + len(issues)


def test_a_worker_is_let_start_once():
  def decide(state, event):
    del event
    return state, Decision(start=(1, 0, 1), restart=(1, 2))

  book = ledger.Ledger(Policy(lambda: None, decide), num_batches=9)
  for worker in range(2):
    book.join(worker)
    assert list(book.ready) == [1, 0, 2]


def test_rows_are_those_of_the_trace():
  book = cluster.play(
    policies.k_sync(4), clocks.heterogeneous(0), num_workers=4, num_batches=30
  )
  events = book.trace().events
  assert book.num_rows == len(events)
  assert book.rows() == events.tolist()
  assert book.rows(17) == events[17:].tolist()
  assert book.rows(book.num_rows) == []


def test_finish_refuses_while_work_is_out():
  book = ledger.Ledger(policies.asynchronous(), num_batches=2)
  book.join(0)
  with pytest.raises(ValueError, match='queued or outstanding'):
    book.finish()
  with pytest.raises(ValueError, match='already here'):
    book.join(0)


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
