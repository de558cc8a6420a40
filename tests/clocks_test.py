"""Clocks: their distributions, and the same draws for every method."""

import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, policies
from ga_jax.executors import slots
from ga_jax.policies.parts.base import Kind
from ga_jax.record import trace
from ga_jax.server import ledger, snapshots
from tests import cluster


def draws(clock, workers, chunks):
  return np.array(
    [
      np.concatenate([clock.draw(w, c) for c in range(chunks)])
      for w in range(workers)
    ]
  )


def test_the_homogeneous_clock_has_its_mean_spread_and_tail():
  times = draws(clocks.homogeneous(0, mean=128.0), 20, 100)
  assert abs(times.mean() / 128 - 1) < 0.002
  assert abs(times.std() / 12.8 - 1) < 0.02
  # P(t > 1.25 mean) = 0.94 %; three standard errors of 128,000 draws.
  assert abs((times > 160).mean() - 0.0094) < 0.001


def test_the_heterogeneous_clock_has_its_spread_of_machines():
  clock = clocks.heterogeneous(0)
  machines = np.array([clock.draw(w, 0).mean() for w in range(4000)])
  assert abs(machines.mean() - 1) < 0.03
  assert abs(machines.std() - 0.6) < 0.03
  assert abs((machines > 1.25).mean() - 0.2796) < 0.022  # three standard errors
  one = draws(clock, 1, 50)[0]
  assert abs(one.std() / one.mean() - 0.1) < 0.005


def test_the_exponential_clock_has_its_mean_spread_and_tail():
  times = draws(clocks.exponential(0, mean=3.0), 20, 100)
  assert abs(times.mean() / 3 - 1) < 0.01
  assert abs(times.std() / 3 - 1) < 0.015
  assert abs((times > 6).mean() - np.exp(-2)) < 0.003


def test_the_pareto_clock_has_its_mean_minimum_and_tail():
  times = draws(clocks.pareto(0, mean=3.0), 20, 100)
  assert abs(times.mean() / 3 - 1) < 0.02
  assert 1.8 <= times.min() < 1.8002  # mean (a − 1) / a
  assert abs((times > 3.75).mean() - 0.1596) < 0.0031
  assert abs((times > 18).mean() - 0.1**2.5) < 0.0005
  heavy = draws(clocks.pareto(0, tail=1.1), 20, 100)
  assert abs((heavy > 10 / 11).mean() - 0.1**1.1) < 0.0023


def test_recorded_times_are_replayed_in_order():
  clock = clocks.recorded(times=[[1.0, 2.0, 3.0], [5.0]])
  assert clock.mean == 11 / 4
  for chunk in range(3):
    tasks = np.arange(64 * chunk, 64 * (chunk + 1))
    assert (clock.draw(0, chunk) == 1 + tasks % 3).all()
    assert (clock.draw(1, chunk) == 5).all()
  assert (clock.draw(2, 1) == clock.draw(0, 1)).all()
  sparse = clocks.recorded(times={7: [5.0], 2: [1.0, 2.0]})
  assert sparse.draw(7, 0)[0] == 5
  assert sparse.draw(1, 0)[0] == 5  # the second of two
  assert sparse.draw(4, 0)[1] == 2


@pytest.mark.parametrize('policy', ['asynchronous', 'k_async', 'ssp'])
@pytest.mark.parametrize('batches_per_ticket', [1, 2])
def test_recorded_times_give_the_events_of_the_run(policy, batches_per_ticket):
  def run(clock):
    return ga_jax.schedule(
      policies.make(policy, 4),
      clock,
      num_workers=4,
      num_batches=80,
      batches_per_ticket=batches_per_ticket,
    ).events

  messages = clocks.with_communication(clocks.heterogeneous(3), latency=0.25)
  events = run(messages)
  again = run(clocks.recorded(times=clocks.recorded_times(events)))
  np.testing.assert_allclose(again['time'], events['time'])
  events['time'] = again['time']
  assert (again == events).all()


def test_recorded_times_leave_out_doubled_lost_and_forged_answers():
  book = ledger.Ledger(policies.asynchronous(), num_batches=9)
  for worker in range(3):
    book.join(worker)
  tickets = [book.ticket(worker, 1.0) for worker in range(3)]
  book.leave(0, 2.0)
  book.arrive(tickets[1], 3.0)
  book.arrive(tickets[1], 4.0)  # doubled
  book.arrive(tickets[0], 5.0)  # too late, but it took that long
  book.arrive(tickets[2]._replace(worker_id=1), 6.0)  # forged
  times = clocks.recorded_times(book.trace().events)
  assert {worker: list(t) for worker, t in times.items()} == {0: [4], 1: [2]}


def test_draws_are_a_function_of_seed_worker_and_task():
  for make in (
    clocks.homogeneous,
    clocks.heterogeneous,
    clocks.exponential,
    clocks.pareto,
  ):
    clock, again, other = make(3), make(3), make(4)
    late = again.draw(5, 7)  # not in order
    for chunk in range(8):
      early = clock.draw(5, chunk)
    assert (early == late).all()
    assert (clock.draw(6, 7) != late).all()
    assert (other.draw(5, 7) != late).all()


def test_task_times_do_not_depend_on_the_policy():
  def task_times(policy):
    run = ga_jax.schedule(
      policy, clocks.heterogeneous(2), num_workers=4, num_batches=60
    )
    issue = run.events[run.events['event'] == Kind.ISSUE]
    issued = dict(zip(issue['ticket_id'], issue['time'], strict=True))
    times = {w: [] for w in range(4)}
    for row in run.applied():
      times[row['worker_id']].append(row['time'] - issued[row['ticket_id']])
    return times

  a = task_times(policies.asynchronous())
  b = task_times(policies.synchronous())
  for worker in range(4):
    shared = min(len(a[worker]), len(b[worker]))
    np.testing.assert_allclose(a[worker][:shared], b[worker][:shared])


def test_communication_adds_two_messages_per_ticket():
  clock = clocks.with_communication(
    clocks.constant(mean=1.0),
    latency=0.25,
    bandwidth=100.0,
    pull_bytes=30,
    push_bytes=70,
  )
  run = ga_jax.schedule(
    policies.asynchronous(), clock, num_workers=1, num_batches=3
  )
  np.testing.assert_allclose(run.applied()['time'], [2.5, 5.0, 7.5])


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: clocks.homogeneous(0, mean=0.0), 'mean must be finite and > 0'),
    (lambda: clocks.homogeneous(0, variation=-1.0), 'variation must be'),
    (lambda: clocks.heterogeneous(0, machine_variation=0), 'machine_variation'),
    (lambda: clocks.constant(mean=float('inf')), 'mean must be finite and > 0'),
    (lambda: clocks.exponential(0, mean=0), 'mean must be finite and > 0'),
    (lambda: clocks.pareto(0, mean=-1), 'mean must be finite and > 0'),
    (lambda: clocks.pareto(0, tail=1), 'tail must be finite and > 1'),
    (lambda: clocks.pareto(0, tail=float('inf')), 'tail must be finite'),
    (lambda: clocks.recorded(times=[]), 'times must hold at least one'),
    (lambda: clocks.recorded(times=[[1.0], []]), r'worker 1 has \[\]'),
    (lambda: clocks.recorded(times={4: [0.0]}), 'worker 4 has'),
    (lambda: clocks.recorded(times=[[1.0, np.nan]]), 'worker 0 has'),
    (lambda: clocks.recorded(times=[[1.0, -1.0]]), 'worker 0 has'),
    (lambda: clocks.recorded(times=[1.0, 2.0]), 'one sequence per worker'),
    (
      lambda: clocks.recorded_times(np.empty(0, trace.EVENT_DTYPE)),
      'events must hold a ticket',
    ),
    (
      lambda: clocks.with_communication(clocks.constant(), latency=-1),
      'latency must be',
    ),
    (
      lambda: clocks.with_communication(clocks.constant(), bandwidth=0),
      'bandwidth must be',
    ),
  ],
)
def test_bad_clock_arguments_are_refused_by_name(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def heavy_tailed(seed):
  """A clock without a mean."""
  return clocks.Clock(
    draw=lambda worker, chunk: (
      np.random.default_rng([seed, worker, chunk]).pareto(0.7, 64) + 0.01
    ),
    mean=1.0,
  )


@pytest.mark.parametrize('policy', sorted(policies.POLICIES))
@pytest.mark.parametrize(
  'make', [heavy_tailed, clocks.homogeneous, clocks.heterogeneous]
)
def test_live_snapshots_never_exceed_workers_plus_one(policy, make):
  for workers in (1, 5, 16):
    run = cluster.play(
      policies.make(policy, workers),
      make(1),
      num_workers=workers,
      num_batches=300,
      loss_fn=lambda ticket: 1 / (1 + ticket.first_batch),
    ).trace()
    store = snapshots.SnapshotStore()
    for event in run.events:
      if event['event'] == Kind.ISSUE:
        store.hold(int(event['version']), object)
      elif event['event'] in (Kind.ARRIVE, Kind.RESTART):
        store.release(int(event['version']))
    assert len(store) == 0
    assert store.peak <= workers + 1
    plan = slots.plan(run)
    assert plan.rows <= workers + 1
    # Play the plan: a row must still hold the version that is read from it.
    version, content = 0, {0: 0}
    for i, row in enumerate(plan.arrivals):
      assert content[plan.read_slot[i]] == row['version']
      if plan.close[i]:
        version += 1
        content[plan.write_slot[i]] = version
    assert version == run.updates()
