"""The ledger: tickets, refusals, and a trace that can be checked."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ga_jax
from ga_jax import clocks, policies
from ga_jax.policies.parts.base import Action, Decision, Kind, Policy
from ga_jax.record import trace
from ga_jax.server import ledger, recovery
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


def test_a_worker_that_must_wait_gets_no_ticket():
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


def test_tickets_that_are_too_stale_are_revoked():
  def decide(state, event):
    if event.kind == Kind.JOIN:
      return state, Decision(start=(event.worker_id,))
    return state, Decision(Action.APPLY, 1.0, (event.worker_id,), (), 1)

  book = ledger.Ledger(Policy(lambda: None, decide), num_batches=9)
  for worker in range(4):
    book.join(worker)
  last, first, second, quick = (book.ticket(w) for w in (3, 1, 2, 0))
  assert book.arrive(quick).revoked == ()  # all others are of version 0 = 1 − 1
  receipt = book.arrive(book.ticket(0))
  assert receipt.action == Action.APPLY
  assert receipt.revoked == (last, first, second)
  assert not book.outstanding
  assert list(book.ready) == [0, 3, 1, 2]
  again = book.ticket(3)
  assert again[2:] == (2, last.first_batch, 1, 1)
  assert book.arrive(first).cause == 'late'
  assert book.arrive(again).revoked == ()


def test_a_worker_named_twice_is_ready_once():
  def decide(state, event):
    del event
    return state, Decision(start=(1, 0, 1), restart=(1, 2))

  book = ledger.Ledger(Policy(lambda: None, decide), num_batches=9)
  for worker in range(2):
    book.join(worker)
    assert list(book.ready) == [1, 0, 2]


def test_the_ledgers_rows_are_those_of_its_trace():
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
    ('ticket_id', 4, 0, 'ticket 1 is the next to be issued'),
    ('action', -1, 0, 'action 0 is none of this event'),
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
  with pytest.raises(trace.TraceError, match='never closed'):
    good._replace(events=good.events[:-1]).verify()
  events = good.events.copy()
  tickets = events['ticket_id']
  events['first_batch'][tickets == good.applied()['ticket_id'][-1]] = 0
  with pytest.raises(trace.TraceError, match='batch 0 is issued twice'):
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


# --- streams ----------------------------------------------------------------


def check_streams(run, streams):
  """Each issue is the first batch of its stream that nobody computes, and the
  stream is the worker's last one as long as that has any.

  Returns:
    How many issues did not continue the worker's stream.
  """
  left = [set(range(s, run.num_batches, streams)) for s in range(streams)]
  held, moved = {}, 0
  for row in run.events:
    worker, batch = int(row['worker_id']), int(row['first_batch'])
    lost = row['event'] in (Kind.RESTART, Kind.EXPIRE)
    if lost or row['action'] == Action.DISCARD:
      left[batch % streams].add(batch)
    elif row['event'] == Kind.LEAVE:
      held.pop(worker, None)
    elif row['event'] == Kind.ISSUE:
      stream = batch % streams
      assert batch == min(left[stream])
      before = held.get(worker)
      assert before in (None, stream) or not left[before]
      moved += before not in (None, stream)
      held[worker] = stream
      left[stream].remove(batch)
  return moved


@settings(max_examples=60, deadline=None)
@given(
  name=st.sampled_from(sorted(policies.POLICIES)),
  seed=st.integers(0, 2**16),
  num_workers=st.integers(1, 6),
  streams=st.integers(1, 8),
  num_batches=st.integers(1, 60),
)
def test_streams_are_read_in_order_and_every_batch_once(
  name, seed, num_workers, streams, num_batches
):
  """Whoever waits for whom, with workers that stall, leave, join and return."""
  rng = np.random.default_rng(seed)
  book = cluster.play(
    policies.make(name, num_workers),
    cluster.stalling(seed),
    num_workers=num_workers,
    num_batches=num_batches,
    streams=streams,
    loss_fn=lambda ticket: rng.random(),
    accidents=rng,
  )
  run = book.trace(num_workers + cluster.NEWCOMERS)
  run.verify()
  check_streams(run, streams)


def test_each_worker_reads_its_own_stream_to_its_end():
  run = ga_jax.schedule(
    policies.asynchronous(),
    clocks.heterogeneous(3),
    num_workers=4,
    num_batches=202,
    streams=4,
  )
  run.verify()
  assert check_streams(run, 4) > 0  # the fast ones take over from the slow
  issues = run.events[run.events['event'] == Kind.ISSUE]
  done = collections.Counter()
  for row in issues:
    own = int(row['worker_id'])
    if done[own] < len(range(own, 202, 4)):
      assert row['first_batch'] == own + 4 * done[own]
    done[int(row['first_batch']) % 4] += 1


def streams_of_first_tickets(book, workers):
  for worker in workers:
    book.join(worker)
  return [book.ticket(worker).first_batch for worker in workers]


def test_a_worker_takes_the_stream_that_fewest_hold_then_most_is_left():
  book = ledger.Ledger(policies.asynchronous(), num_batches=17, streams=5)
  # 5 finds its own stream taken; of the others 1 has as much left as any.
  assert streams_of_first_tickets(book, [0, 5, 4, 3]) == [0, 1, 4, 3]
  book.arrive(book.outstanding[0])
  assert book.reserve(0) == (5, 1, 0)
  book.leave(5)  # 1 comes back, before 6
  book.join(1)
  assert book.ticket(1)[3:] == (1, 1, 1)
  book.join(2)
  assert book.ticket(2).first_batch == 2


def test_a_discarded_batch_goes_to_the_worker_of_its_stream():
  policy = discarding([(Action.DISCARD, ()), (Action.APPLY, ())])
  book = ledger.Ledger(policy, num_batches=8, streams=2)
  assert streams_of_first_tickets(book, [0, 1]) == [0, 1]
  book.arrive(book.outstanding[1])  # discarded
  assert book.ticket(1)[3:] == (1, 1, 1)
  book.arrive(book.outstanding[0])
  assert book.ticket(0)[3:] == (2, 1, 0)


def test_a_ledger_with_streams_is_saved_and_follows_its_record():
  def fresh():
    return ledger.Ledger(policies.asynchronous(), num_batches=30, streams=3)

  book, saves, rng = fresh(), {}, np.random.default_rng(0)
  for worker in range(4):
    book.join(worker, float(book.num_rows))
  while not book.done:
    time = float(book.num_rows)
    if book.ready and book.has_batches and rng.random() < 0.6:
      worker = book.ready[int(rng.integers(len(book.ready)))]
      book.ticket(worker, time)
      expected = book.reserve(worker)
      assert expected is None or expected == book.reserve(worker)
    elif book.outstanding:
      some = list(book.outstanding.values())
      ticket = some[int(rng.integers(len(some)))]
      if rng.random() < 0.2:
        book.expire(ticket, time)
      else:
        book.arrive(ticket, time)
    saves[book.num_rows] = book.save()
  rows = book.rows()
  check_streams(book.trace(), 3)
  for begin, saved in saves.items():
    again = fresh()
    again.restore(saved)
    recovery.follow(again, rows[begin:], process=lambda row: None)
    assert again.done
    assert again.save()['streams'] == book.save()['streams']


@pytest.mark.parametrize(
  ('streams', 'message'),
  [
    (-1, 'streams must be an integer of at least 0, got -1'),
    (2, 'streams must be 0 with tickets of several batches, got 2 with'),
  ],
)
def test_streams_with_tickets_of_several_batches_are_refused(streams, message):
  with pytest.raises(ValueError, match=message):
    ledger.Ledger(
      policies.asynchronous(),
      num_batches=4,
      batches_per_ticket=2,
      streams=streams,
    )
