"""Policies: what each one promises, and what all of them do."""

import math
import os
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ga_jax
from ga_jax import clocks, policies
from ga_jax.policies.parts.base import Action, Decision, Event, Kind
from ga_jax.record import trace
from ga_jax.server import ledger
from tests import cluster, method_cases

ODD_LOSSES = (
  *(math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300, 1e-300, 5e-324),
  *(1.7e308, -1.7e308),
)


def schedule(policy, clock=None, num_workers=4, num_batches=200, **options):
  run = ga_jax.schedule(
    policy,
    clock or clocks.heterogeneous(1),
    num_workers=num_workers,
    num_batches=num_batches,
    **options,
  )
  run.verify()
  return run


def kinds(run, kind):
  return run.events[run.events['event'] == kind]


def actions(run, action):
  return run.events[run.events['action'] == action]


def same_rows(a, b):
  return len(a.events) == len(b.events) and (a.events == b.events).all()


# --- all of them ------------------------------------------------------------


@pytest.mark.parametrize('name', sorted(policies.POLICIES))
@settings(max_examples=50, deadline=None)
@given(
  seed=st.integers(0, 10_000),
  num_workers=st.integers(1, 6),
  num_batches=st.integers(1, 100),
  batches_per_ticket=st.integers(1, 3),
)
def test_every_batch_counts_once_with_stalls_deaths_and_joins(
  name, seed, num_workers, num_batches, batches_per_ticket
):
  rng = np.random.default_rng(seed)
  policy, steps = cluster.watched(
    policies.make(
      name, num_workers, **method_cases.drawn(name, num_workers, rng)
    )
  )

  def loss_fn(ticket):
    if rng.random() < 0.3:
      return rng.choice(ODD_LOSSES)
    return rng.random() / (1 + ticket.first_batch)

  book = cluster.play(
    policy,
    cluster.stalling(seed),
    num_workers=num_workers,
    num_batches=num_batches,
    batches_per_ticket=batches_per_ticket,
    loss_fn=loss_fn,
    accidents=rng,
  )
  run = book.trace()
  run.verify()
  assert run.updates() == book.version
  if not policy.accumulates:
    assert cluster.round_sizes(run).max() == 1
  # The policy was told what the trace says.
  told = [
    (step.event.kind, *step.event[1:5], step.decision.action)
    for step in steps
    if step.event.kind == Kind.ARRIVE
  ]
  rows = kinds(run, Kind.ARRIVE)
  rows = rows[rows['action'] != Action.REFUSE]
  fields = ['event', 'worker_id', 'version', 'staleness', 'time', 'action']
  assert told == rows[fields].tolist()
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'trace.npz')
    run.save(path)
    again = trace.Trace.load(path)
  assert same_rows(again, run)
  assert again[1:] == run[1:]


@pytest.mark.parametrize('name', sorted(policies.POLICIES))
def test_one_worker_waits_for_nobody(name):
  def run(name):
    policy, _ = cluster.watched(policies.make(name, 1))
    assert not policy.accumulates or name == 'synchronous'
    book = cluster.play(
      policy, clocks.homogeneous(3), num_workers=1, num_batches=20
    )
    return book.trace()

  assert same_rows(run(name), run('asynchronous'))


@pytest.mark.parametrize('name', sorted(policies.POLICIES))
def test_a_lease_that_expires_is_awaited_by_nobody(name):
  policy, steps = cluster.watched(policies.make(name, 3))
  state, version = policy.init(), 0

  def tell(kind, worker_id, read=-1):
    nonlocal state, version
    staleness = version - read if kind == Kind.ARRIVE else 0
    loss = 1.0 if kind == Kind.ARRIVE else None
    event = Event(kind, worker_id, read, staleness, 0.0, loss)
    state, decision = policy.decide(state, event)
    version += decision.action == Action.APPLY
    started.update(decision.start + decision.restart)
    return decision

  started = set()
  for worker_id in range(3):
    tell(Kind.JOIN, worker_id)
  assert started == {0, 1, 2}
  started.clear()
  tell(Kind.EXPIRE, 2)
  assert started == {2}  # when it asks
  for _ in range(8):  # the others never wait for it
    started.clear()
    for worker_id in range(2):
      tell(Kind.ARRIVE, worker_id, version)
    assert started >= {0, 1}
  # It comes back late: its gradient counts or it starts again, but no barrier
  # closes without it from here on.
  tell(Kind.LEAVE, 0)
  started.clear()
  tell(Kind.ARRIVE, 2, version)
  waits = 2 not in started
  tell(Kind.ARRIVE, 1, version)
  assert 1 in started
  assert 2 in started
  if name == 'synchronous':
    assert waits
  assert len(steps) > 20


@pytest.mark.parametrize('name', ['synchronous', 'backup_workers', 'k_sync'])
def test_a_worker_back_too_late_starts_again_and_is_awaited(name):
  policy = policies.make(name, 2)
  wait_for = 2 if name == 'synchronous' else 1
  state = policy.init()
  for kind, worker_id in (
    *((Kind.JOIN, 0), (Kind.JOIN, 1), (Kind.EXPIRE, 1)),
    *((Kind.ARRIVE, 0), (Kind.ARRIVE, 0)),  # two updates by the other
  ):
    state, decision = policy.decide(
      state, Event(kind, worker_id, 0, 0, 0.0, None)
    )
  assert decision.action == Action.APPLY
  late = Event(Kind.ARRIVE, 1, 0, 2, 1.0, None)
  state, decision = policy.decide(state, late)
  assert decision == Decision(Action.DISCARD, 0.0, (1,))
  state, decision = policy.decide(state, Event(Kind.ARRIVE, 0, 2, 0, 2.0, None))
  if wait_for == 2:
    assert decision == Decision(Action.ACCUMULATE)
  else:
    restart = (1,) if name == 'k_sync' else ()
    assert decision == Decision(Action.APPLY, 1.0, (0,), restart)


@pytest.mark.parametrize('name', sorted(policies.POLICIES))
def test_the_helper_plays_what_the_simulator_schedules(name):
  policy = policies.make(name, 5)
  settings = {'num_workers': 5, 'num_batches': 60, 'batches_per_ticket': 2}
  played = cluster.play(policy, clocks.heterogeneous(2), **settings)
  if policy.needs_loss:
    with pytest.raises(ValueError, match='needs losses'):
      ga_jax.schedule(policy, clocks.heterogeneous(2), **settings)
  else:
    run = ga_jax.schedule(policy, clocks.heterogeneous(2), **settings)
    assert same_rows(played.trace(), run)


@pytest.mark.parametrize('name', ['backup_workers', 'k_sync', 'k_async'])
def test_rounds_close_with_fewer_workers_than_they_wait_for(name):
  book = ledger.Ledger(policies.make(name, 4), num_batches=8)
  wait_for = {'backup_workers': 3, 'k_sync': 2, 'k_async': 2}[name]
  for worker_id in range(4):
    book.join(worker_id)
  tickets = [book.ticket(worker_id) for worker_id in range(4)]
  for worker_id in range(wait_for - 1):
    assert book.arrive(tickets[worker_id]).action == Action.ACCUMULATE
  for worker_id in range(wait_for - 1, 4):
    assert book.version == 0
    book.leave(worker_id)
  assert book.version == 1  # with the last that could still come
  assert sorted(book.ready) == list(range(wait_for - 1))
  for _ in range(2):
    running = [book.ticket(worker_id) for worker_id in range(wait_for - 1)]
    for ticket in running:
      book.arrive(ticket)
  assert book.version == 3
  book.trace().verify(complete=False)


def test_the_gradient_of_a_worker_that_left_counts():
  book = ledger.Ledger(policies.k_async(4, wait_for=3), num_batches=8)
  for worker_id in range(4):
    book.join(worker_id)
  tickets = [book.ticket(worker_id) for worker_id in range(4)]
  book.arrive(tickets[0])
  book.leave(0)
  assert book.arrive(tickets[1]).action == Action.ACCUMULATE
  assert book.arrive(tickets[2]).action == Action.APPLY
  assert list(book.ready) == [1, 2]


# --- how they are built -----------------------------------------------------


def test_make_passes_on_what_a_policy_reads():
  for name in policies.POLICIES:
    assert isinstance(policies.make(name, 4), policies.Policy)
  book = cluster.play(
    policies.make('k_sync', 4, wait_for=3),
    clocks.constant(),
    num_workers=4,
    num_batches=12,
  )
  assert book.version == 4


@pytest.mark.parametrize(
  ('name', 'num_workers', 'parameters', 'message'),
  [
    ('nobody', 4, {}, 'policy must be one of .*nobody'),
    ('ssp', 4, {'wait_for': 1}, '^wait_for is no .* ssp, .* max_staleness$'),
    ('asynchronous', 4, {'backups': 1}, '^backups is no .* reads none$'),
    (
      'softsync',
      4,
      {'softsync_n': 9},
      '^softsync_n .* 1 to num_workers=4, got',
    ),
    ('softsync', 0, {}, '^num_workers must be an integer of at least 1, got 0'),
    ('softsync', 4, {'softsync_n': 1.5}, r'^softsync_n .*, got 1\.5'),
    ('k_sync', 4, {'wait_for': 5}, '^wait_for must be an integer from 1'),
    ('k_async', 4, {'wait_for': 0}, '^wait_for must be an integer from 1'),
    ('backup_workers', 4, {'backups': 4}, '0 to num_workers-1=3, got 4$'),
    ('ssp', 4, {'max_staleness': -1}, '^max_staleness must be'),
    ('gba', 4, {'max_staleness': True}, '^max_staleness must be'),
    ('adasync', 4, {'adasync_k0': 5}, '^adasync_k0 must be'),
    ('abs', 4, {'abs_k0': 0}, '^abs_k0 must be'),
    ('abs', 4, {'abs_factor': math.inf}, '^abs_factor must be finite and > 0'),
    ('fedbuff', 4, {'buffer_size': 0}, '^buffer_size must be'),
    ('ringmaster', 4, {'max_delay': 0}, '^max_delay must be'),
    ('ringmaster_stops', 4, {'max_delay': 0}, '^max_delay must be'),
    ('rennala', 4, {'batch_gradients': 0}, '^batch_gradients must be'),
  ],
)
def test_bad_policy_parameters_are_refused_by_name(
  name, num_workers, parameters, message
):
  with pytest.raises(ValueError, match=message):
    policies.make(name, num_workers, **parameters)


# --- barriers ---------------------------------------------------------------


def test_synchronous_rounds_are_fresh_and_the_last_one_is_closed():
  run = schedule(policies.synchronous(), num_batches=10)
  assert not run.applied()['staleness'].any()
  assert cluster.round_sizes(run).tolist() == [4, 4, 2]
  assert run.events['event'][-1] == Kind.CLOSE


def test_synchronous_waits_among_those_that_are_left():
  policy = policies.synchronous()
  state = policy.init()
  for worker in range(3):
    state, _ = policy.decide(state, Event(Kind.JOIN, worker, -1, 0, 0.0, None))
  arrive = Event(Kind.ARRIVE, 0, 0, 0, 1.0, None)
  state, decision = policy.decide(state, arrive)
  assert decision == Decision(Action.ACCUMULATE)
  state, _ = policy.decide(state, Event(Kind.LEAVE, 1, -1, 0, 1.0, None))
  state, decision = policy.decide(state, arrive._replace(worker_id=2))
  assert decision.action == Action.APPLY
  assert decision.start == (0, 2)


@pytest.mark.parametrize('num_workers', [1, 2, 5])
@pytest.mark.parametrize('batches_per_ticket', [1, 3])
def test_waiting_for_all_is_synchronous_and_for_one_asynchronous(
  num_workers, batches_per_ticket
):
  def run(name, **parameters):
    return schedule(
      policies.make(name, num_workers, **parameters),
      num_workers=num_workers,
      batches_per_ticket=batches_per_ticket,
    )

  synchronous, asynchronous = run('synchronous'), run('asynchronous')
  for name in ('k_sync', 'k_async'):
    assert same_rows(run(name, wait_for=num_workers), synchronous)
  assert same_rows(run('backup_workers', backups=0), synchronous)
  assert same_rows(run('k_async', wait_for=1), asynchronous)
  assert same_rows(run('softsync', softsync_n=num_workers), asynchronous)
  assert same_rows(run('fedbuff', buffer_size=1), asynchronous)
  assert same_rows(run('ringmaster', max_delay=1000), asynchronous)
  assert same_rows(run('ringmaster_stops', max_delay=1000), asynchronous)
  assert same_rows(run('ssp', max_staleness=1000), asynchronous)
  collected = run('softsync')
  assert same_rows(run('gba', max_staleness=1000), collected)
  assert same_rows(run('fedbuff', buffer_size=num_workers), collected)


@pytest.mark.parametrize('backups', [1, 2, 4])
def test_backup_workers_take_the_first_of_each_round(backups):
  run = schedule(policies.backup_workers(5, backups), num_workers=5)
  assert (cluster.round_sizes(run)[:-1] == 5 - backups).all()
  assert not run.applied()['staleness'].any()
  discarded = actions(run, Action.DISCARD)
  assert len(discarded)
  assert (discarded['staleness'] > 0).all()
  assert not discarded['weight'].any()
  assert_issued_again(run, discarded)


def assert_issued_again(run, rows):
  """Each row's batches have a later ticket, one attempt on."""
  issued = kinds(run, Kind.ISSUE)[['first_batch', 'attempt']].tolist()
  again = [(r['first_batch'], r['attempt'] + 1) for r in rows]
  assert set(again) <= set(issued)


@pytest.mark.parametrize('wait_for', [1, 3, 4])
def test_k_sync_cancels_what_k_async_lets_run(wait_for):
  fresh = schedule(policies.k_sync(5, wait_for), num_workers=5)
  assert not fresh.applied()['staleness'].any()
  assert (cluster.round_sizes(fresh)[:-1] == wait_for).all()
  restarted = kinds(fresh, Kind.RESTART)
  # Whoever had not arrived, after every round but those at the very end.
  assert len(restarted) > (5 - wait_for) * (fresh.updates() - 5)
  assert_issued_again(fresh, restarted)
  stale = schedule(policies.k_async(5, wait_for), num_workers=5)
  assert (cluster.round_sizes(stale)[:-1] == wait_for).all()
  assert stale.applied()['staleness'].any()
  assert not len(kinds(stale, Kind.RESTART))
  assert kinds(stale, Kind.ISSUE)['attempt'].max() == 0


# --- no barrier -------------------------------------------------------------


def test_softsync_has_the_staleness_of_the_paper():
  # n = 1: τ in {0, 1, 2}, 0.97 on average; n = N: N − 1.
  run = schedule(
    policies.softsync(30, 1), clocks.homogeneous(0), 30, num_batches=9000
  )
  steady = run.applied()['staleness'][1000:]
  assert set(steady.tolist()) == {0, 1, 2}
  assert abs(steady.mean() - 0.97) < 0.03
  assert (cluster.round_sizes(run) == 30).all()
  run = schedule(
    policies.softsync(30, 30), clocks.homogeneous(0), 30, num_batches=9000
  )
  assert abs(run.applied()['staleness'][1000:].mean() - 29) < 0.1
  run = schedule(policies.softsync(30, 4), num_workers=30, num_batches=700)
  assert (cluster.round_sizes(run) == 7).all()  # ⌊30 / 4⌋


@pytest.mark.parametrize('size', [1, 3, 20])
def test_fedbuff_rounds_hold_k_of_any_staleness(size):
  run = schedule(policies.fedbuff(4, size))
  assert (cluster.round_sizes(run)[:-1] == size).all()
  assert run.applied()['staleness'].any()
  assert not len(actions(run, Action.DISCARD))


@pytest.mark.parametrize('max_staleness', [0, 1, 3])
def test_gba_fills_the_global_batch_without_what_is_too_old(max_staleness):
  run = schedule(
    policies.gba(6, max_staleness), clocks.pareto(0, tail=1.2), num_workers=6
  )
  assert (cluster.round_sizes(run)[:-1] == 6).all()
  assert run.applied()['staleness'].max() == max_staleness
  discarded = actions(run, Action.DISCARD)
  assert discarded['staleness'].min() == max_staleness + 1
  assert_issued_again(run, discarded)


@pytest.mark.parametrize('batch_gradients', [None, 1, 5])
def test_rennala_never_applies_a_stale_gradient(batch_gradients):
  run = schedule(policies.rennala(4, batch_gradients))
  assert not run.applied()['staleness'].any()
  assert (cluster.round_sizes(run)[:-1] == (batch_gradients or 4)).all()
  discarded = actions(run, Action.DISCARD)
  assert len(discarded)
  assert (discarded['staleness'] > 0).all()
  assert not discarded['weight'].any()
  assert_issued_again(run, discarded)


@pytest.mark.parametrize('max_delay', [1, 2, 6])
def test_ringmaster_applies_no_delay_of_r(max_delay):
  clock = clocks.heterogeneous(5)
  ignores = schedule(policies.ringmaster(6, max_delay), clock, 6)
  assert ignores.applied()['staleness'].max() == max_delay - 1
  discarded = actions(ignores, Action.DISCARD)
  assert discarded['staleness'].min() >= max_delay
  stops = schedule(policies.ringmaster_stops(6, max_delay), clock, 6)
  assert stops.applied()['staleness'].max() == max_delay - 1
  assert not len(actions(stops, Action.DISCARD))
  # At once: a ticket is revoked by the update that makes it R late, and its
  # worker reads that very version, as long as there are batches.
  restarted = kinds(stops, Kind.RESTART)
  assert (restarted['staleness'] == max_delay).all()
  issued = kinds(stops, Kind.ISSUE)
  fields = ['worker_id', 'version', 'time']
  again = set(issued[fields].tolist())
  restarted = restarted[
    restarted['time'] < issued['time'][issued['first_batch'] == 199][0]
  ]
  assert len(restarted)
  for worker_id, version, time in restarted[fields].tolist():
    assert (worker_id, version + max_delay, time) in again


@pytest.mark.parametrize('max_staleness', [0, 1, 3])
def test_ssp_bounds_the_lead_over_the_slowest(max_staleness):
  run = schedule(policies.ssp(max_staleness))
  completed, leads = dict.fromkeys(range(4), 0), []
  for row in run.events:
    if row['event'] == Kind.ISSUE:
      lead = completed[row['worker_id']] - min(completed.values())
      leads.append(lead)
    elif row['event'] == Kind.ARRIVE:
      completed[row['worker_id']] += 1
  assert max(leads) == max_staleness
  assert run.updates() == 200  # each applied at once
  if max_staleness == 0:
    assert set(completed.values()) == {50}


def test_ssp_bounds_the_lead_while_workers_come_and_go():
  book = ledger.Ledger(policies.ssp(1), num_batches=50)

  def steps(worker_id, number):
    for _ in range(number):
      ticket = book.ticket(worker_id)
      assert ticket is not None, worker_id
      book.arrive(ticket)

  for worker_id in range(3):
    book.join(worker_id)
  steps(0, 2)
  steps(1, 2)
  assert book.ticket(0) is None
  book.leave(2)  # the slowest one: the others may go on
  steps(0, 2)
  assert book.ticket(0) is None
  book.join(2)  # from the minimum, 2 steps of worker 1
  steps(2, 2)
  assert book.ticket(2) is None
  steps(1, 1)
  steps(0, 1)
  steps(2, 1)
  book.trace().verify(complete=False)


# --- as the loss falls ------------------------------------------------------


def falling(ticket):
  """From 1 to 1/25 and no further."""
  return 1 / (1 + min(ticket.first_batch, 240) / 10)


def play_watched(policy, loss_fn, num_workers=8, num_batches=600):
  policy, steps = cluster.watched(policy)
  book = cluster.play(
    policy,
    clocks.pareto(1, tail=1.2),
    num_workers=num_workers,
    num_batches=num_batches,
    loss_fn=loss_fn,
  )
  book.trace().verify()
  return book.trace(), steps


def waited_for(steps):
  """K_t after each closed round."""
  return [s.state.wait_for for s in steps if s.decision.action == Action.APPLY]


def test_adasync_waits_for_more_as_the_loss_falls():
  run, steps = play_watched(policies.adasync(8, 2), falling)
  k = waited_for(steps)
  sizes = cluster.round_sizes(run)
  assert sizes[0] == 2
  assert sizes[1:-1].tolist() == k[: len(sizes) - 2]
  # K_0 √25 = 10 is more than there are.
  assert k[-1] == max(k) == 8
  rising, steps = play_watched(
    policies.adasync(8, 3), lambda ticket: 1 + ticket.first_batch
  )
  assert waited_for(steps)[-1] == 1
  assert cluster.round_sizes(rising)[0] == 3
  # By hand: F̄ = 4, then 0.9 · 4 + 0.1 · (−6) = 3, ⌈2 √(4/3)⌉ = 3.
  losses = iter([4.0, -6.0])
  run, steps = play_watched(
    policies.adasync(8, 2), lambda ticket: next(losses, 3.0), 8, 5
  )
  assert cluster.round_sizes(run).tolist() == [2, 3]
  assert waited_for(steps) == [3, 3]


def test_adasync_keeps_its_number_while_losses_are_equal():
  for loss in (0.3, 1 / 3, 1e-320, 1.7e308):
    _, steps = play_watched(policies.adasync(8, 3), lambda t, x=loss: x, 8, 200)
    assert set(waited_for(steps)) == {3}


@pytest.mark.parametrize('factor', [0.3, 1.0, 2.0])
def test_abs_bounds_the_staleness_ever_tighter(factor):
  rng = np.random.default_rng(0)

  def loss_fn(ticket):
    """Falls first, rises then, with noise."""
    course = falling(ticket) if ticket.first_batch < 400 else 1.0
    return course * rng.uniform(0.5, 2)

  policy = policies.abs(8, 2, factor)
  run, steps = play_watched(policy, loss_fn)
  k = waited_for(steps)
  assert k == sorted(k)
  assert k[0] < k[-1] <= 8
  bound, version = math.ceil(factor * 8 / 2), 0
  told = [step for step in steps if step.event.kind == Kind.ARRIVE]
  reads, restarts = {}, 0
  for row in run.events[run.events['event'] != Kind.JOIN]:
    ticket_id, event = int(row['ticket_id']), row['event']
    if event == Kind.ISSUE:
      reads[ticket_id] = row['version']
    elif event == Kind.RESTART:
      assert version - reads.pop(ticket_id) > bound
      restarts += 1
    elif event == Kind.ARRIVE:
      # Whoever was too late for the last update was restarted by it.
      assert all(version - read <= bound for read in reads.values())
      assert row['staleness'] <= bound  # τ_max^t of its round
      del reads[ticket_id]
      step = told.pop(0)
      assert step.decision.restart == ()
      if row['action'] == Action.APPLY:
        version += 1
        bound = math.ceil(factor * 8 / step.state.wait_for)
        assert step.decision.max_staleness == step.state.max_staleness == bound
      else:
        assert step.decision.max_staleness is None
  assert not told
  assert restarts
  assert not len(actions(run, Action.DISCARD))


@pytest.mark.parametrize('make', [policies.adasync, policies.POLICIES['abs']])
def test_odd_losses_neither_fail_nor_block_adaptive_policies(make):
  for first in ODD_LOSSES:
    for later in ODD_LOSSES:
      losses = iter([first])
      _, steps = play_watched(
        make(3, 2), lambda t, i=losses, b=later: next(i, b), 3, 30
      )
      k = waited_for(steps)
      assert set(k) <= {1, 2, 3}
      if not math.isfinite(first) and not math.isfinite(later):
        assert set(k) == {2}  # nothing is known of the loss
      if first == 1e300 and later in (0.0, -1.0, 1e-300):
        assert k[-1] >= 2
      if 0 < first < 1 and later == -1.0:
        assert k[-1] == 3  # below 0: as good as can be
