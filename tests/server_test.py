"""The host-loop API: ticket and submit."""

import contextlib
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, policies, rules
from ga_jax.job import source
from ga_jax.policies.parts.base import Action
from ga_jax.server import ledger, snapshots
from tests import cases


def make_server(rule=None, policy=None, num_workers=2, num_batches=6):
  return ga_jax.Server(
    {'w': jnp.ones(3)},
    rule or rules.gap_aware(0.1),
    policy or policies.asynchronous(),
    num_workers=num_workers,
    num_batches=num_batches,
  )


def test_a_hand_written_loop_gives_the_simulators_bits():
  loss_fn, params, stats, batch_fn = cases.tiny_problem()
  rule = rules.dana_ga(0.05, 3)
  simulated = ga_jax.simulate(
    ga_jax.Job(
      loss_fn,
      params,
      batch_fn,
      rule,
      policies.asynchronous(),
      model_state=stats,
      stats_momentum=0.9,
    ),
    clocks.constant(),
    num_workers=3,
    num_batches=50,
    executor='exact',
  )
  server = ga_jax.Server(
    params,
    rule,
    policies.asynchronous(),
    num_workers=3,
    num_batches=50,
    model_state=stats,
    stats_momentum=0.9,
  )

  @jax.jit
  def gradient(params, model_state, batch):
    return jax.value_and_grad(loss_fn, has_aux=True)(
      params, model_state, batch, None
    )

  work = [server.ticket(worker, 0.0) for worker in range(3)]
  step = 0
  while not server.finished:
    worker, now = step % 3, 1.0 + step // 3
    step += 1
    ticket, sent, sent_stats = work[worker]
    (loss, new_stats), grads = gradient(
      sent, sent_stats, batch_fn(ticket.first_batch)
    )
    outcome = server.submit(
      ticket, grads, model_state=new_stats, loss=float(loss), time=now
    )
    assert outcome.receipt.action == Action.APPLY
    assert outcome.metrics.mean_penalty >= 1.0
    work[worker] = server.ticket(worker, now)
  server.trace().verify()
  assert (server.trace().events == simulated.trace.events).all()
  assert cases.same_bits(server.state, simulated.state)


def test_a_ticket_is_answered_once():
  server = make_server()
  work = server.ticket(0)
  grads = {'w': jnp.ones(3)}
  assert server.submit(work.ticket, grads).receipt.action == Action.APPLY
  before = server.params
  again = server.submit(work.ticket, grads)
  assert again.receipt.action == Action.REFUSE
  assert again.metrics is None
  assert cases.same_bits(before, server.params)
  assert server.version == 1


@pytest.mark.parametrize(
  ('grads', 'message'),
  [
    ({'v': jnp.ones(3)}, r"nothing for grads\['w'\]"),
    ({'w': jnp.ones(4)}, r"float32\[4\] for grads\['w'\]"),
    ({'w': jnp.ones(3, jnp.int32)}, 'int32'),
  ],
)
def test_misshapen_gradients_are_refused_and_change_nothing(grads, message):
  server = make_server()
  work = server.ticket(0)
  with pytest.raises(ValueError, match=message):
    server.submit(work.ticket, grads)
  assert server.version == 0
  assert server.submit(work.ticket, {'w': jnp.ones(3)}).receipt.action == (
    Action.APPLY
  )


def test_snapshots_are_what_was_sent():
  server = make_server(rules.asgd(0.1, momentum=0.0))
  slow, fast = server.ticket(0), server.ticket(1)
  grads = {'w': jnp.ones(3)}
  server.submit(fast.ticket, grads)
  for _ in range(3):
    work = server.ticket(1)
    server.submit(work.ticket, grads)
  np.testing.assert_array_equal(slow.params['w'], 1.0)  # untouched
  outcome = server.submit(slow.ticket, grads)
  assert outcome.receipt.staleness == 4
  np.testing.assert_allclose(outcome.metrics.gap, 0.4, rtol=1e-6)
  np.testing.assert_allclose(server.params['w'], 0.5, rtol=1e-6)


def test_synchronous_rounds_average_and_the_last_is_closed():
  server = make_server(
    rules.asgd(0.1, momentum=0.0), policies.synchronous(), 2, 3
  )
  a, b = server.ticket(0), server.ticket(1)
  server.submit(a.ticket, {'w': jnp.ones(3)})
  assert server.ticket(0) is None
  assert not server.finished
  server.submit(b.ticket, {'w': 3 * jnp.ones(3)})
  np.testing.assert_allclose(server.params['w'], 0.8, rtol=1e-6)
  c = server.ticket(1)
  assert server.ticket(0) is None  # nothing is left
  server.submit(c.ticket, {'w': jnp.ones(3)})
  assert server.finished
  np.testing.assert_allclose(server.params['w'], 0.7, rtol=1e-6)
  server.trace().verify()


def test_a_snapshot_store_frees_with_the_last_holder():
  store = snapshots.SnapshotStore()
  made = []
  for version in (0, 0, 1):
    store.hold(version, lambda v=version: made.append(v) or v)
  assert made == [0, 1]
  assert len(store) == store.peak == 2
  store.release(0)
  assert store.read(0) == 0
  store.release(0)
  with pytest.raises(KeyError, match='version 0'):
    store.read(0)
  assert len(store) == 1


def test_a_rule_and_policy_that_do_not_go_together_are_refused():
  with pytest.raises(ValueError, match='cannot be averaged'):
    make_server(rules.dana_zero(0.1, 2), policies.synchronous())
  with pytest.raises(ValueError, match='num_workers'):
    make_server(num_workers=0)


def test_a_round_follows_workers_that_come_and_go():
  server = make_server(
    rules.asgd(0.1, momentum=0.0), policies.synchronous(), 3, 4
  )
  grads = {'w': jnp.ones(3)}
  work = [server.ticket(worker) for worker in range(3)]
  server.submit(work[0].ticket, grads)
  server.submit(work[1].ticket, grads)
  assert server.version == 0
  server.remove_worker(2)  # the barrier stands among those that are left
  assert server.version == int(server.state.version) == 1
  assert server.submit(work[2].ticket, grads).receipt.action == Action.REFUSE
  with pytest.raises(ValueError, match='worker 2 is not here'):
    server.ticket(2)
  server.add_worker(3)
  work = [server.ticket(worker) for worker in (0, 3)]
  assert work[0].ticket.first_batch == 2  # what worker 2 had
  for one in work:
    server.submit(one.ticket, grads)
  assert server.finished
  server.trace().verify()


def test_statistics_of_tickets_with_several_batches_stay_bounded():
  server = ga_jax.Server(
    {'w': jnp.zeros(())},
    rules.asgd(1e-3),
    policies.asynchronous(),
    num_workers=16,
    num_batches=1600,
    model_state={'mean': jnp.zeros(())},
    stats_momentum=0.9,
    batches_per_ticket=10,
  )
  work = {w: server.ticket(w) for w in range(16)}
  while not server.finished:
    for w, one in list(work.items()):
      mean = one.model_state['mean']
      for _ in range(one.ticket.num_batches):  # every batch has the mean 5
        mean = 0.9 * mean + 0.1 * 5.0
      server.submit(one.ticket, {'w': jnp.ones(())}, model_state={'mean': mean})
      work.pop(w)
      if more := server.ticket(w):
        work[w] = more
  np.testing.assert_allclose(server.model_state['mean'], 5.0, rtol=1e-3)


def test_gradients_of_another_structure_keep_the_ticket_standing():
  server = ga_jax.Server(
    {'w': (jnp.ones(2), jnp.ones(2))},
    rules.asgd(0.1),
    policies.asynchronous(),
    num_workers=1,
    num_batches=1,
  )
  work = server.ticket(0)
  with pytest.raises(ValueError, match='structure'):
    server.submit(work.ticket, {'w': [jnp.ones(2), jnp.ones(2)]})
  outcome = server.submit(work.ticket, {'w': (jnp.ones(2), jnp.ones(2))})
  assert outcome.receipt.action == Action.APPLY


def aligned(size):
  """NumPy memory that JAX on the CPU reads in place."""
  raw = np.zeros(size * 4 + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + size * 4].view(np.float32)


@pytest.mark.parametrize('policy', ['asynchronous', 'softsync'])
def test_a_submitted_gradient_buffer_may_be_used_again(policy):
  """Every PyTorch and C++ loop does so; what was submitted is what counts."""
  size, number = 1 << 20, 8
  server = ga_jax.Server(
    {'w': jnp.zeros(size)},
    rules.gap_aware(1.0, momentum=0.0),
    {
      'asynchronous': policies.asynchronous(),
      'softsync': policies.softsync(1, 1),
    }[policy],
    num_workers=1,
    num_batches=number,
    model_state={'mean': jnp.zeros(size)},
    stats_momentum=0.0,
    allow_non_finite=True,  # so that nothing waits for a gradient
  )
  grads, mean = aligned(size), aligned(size)
  for step in range(number):
    work = server.ticket(0)
    grads[:], mean[:] = step, step
    server.submit(work.ticket, {'w': grads}, model_state={'mean': mean})
    grads[:], mean[:] = np.nan, np.nan
  assert (np.asarray(server.params['w']) == -sum(range(number))).all()
  assert (np.asarray(server.model_state['mean']) == number - 1).all()


def test_what_a_job_was_given_is_copied():
  params, resident, times = np.zeros(3), np.ones(3), [np.ones(2), np.ones(2)]
  job = ga_jax.Job(
    lambda params, model_state, batch, key: (jnp.sum(params), model_state),
    params,
    source.Source(lambda i: np.zeros(1), resident=resident),
    lambda hparams: rules.asgd(hparams),
    policies.asynchronous(),
    hparams=(hparam := np.array(0.1)),
    model_state={'mean': (mean := np.zeros(2))},
    stats_momentum=0.9,
  )
  clock = clocks.recorded(times=times)
  for array in (params, resident, *times, mean, hparam):
    array[...] = np.nan
  for tree in (job.params, job.source.resident, job.hparams, job.model_state):
    assert np.isfinite(jax.tree.leaves(tree)[0]).all()
  assert np.isfinite(clock.draw(0, 0)).all()


@pytest.mark.parametrize('bad', ['grads', 'model_state', 'loss'])
def test_submissions_that_are_not_finite_are_refused(bad):
  """As a live run does: the batch is issued again, the ticket has ended."""
  server = ga_jax.Server(
    jnp.ones(3),
    rules.asgd(0.1),
    policies.asynchronous(),
    num_workers=2,
    num_batches=2,
    model_state={'mean': jnp.zeros(3)},
    stats_momentum=0.9,
  )
  fine = {'grads': jnp.ones(3), 'model_state': {'mean': jnp.ones(3)}}
  nan = {
    'grads': jnp.array([1.0, np.nan, 1.0]),
    'model_state': {'mean': jnp.array([1.0, 1.0, np.inf])},
    'loss': float('nan'),
  }
  before = server.params
  work = server.ticket(0)
  outcome = server.submit(work.ticket, **{**fine, 'loss': 1.0, bad: nan[bad]})
  assert outcome.receipt.action == Action.REFUSE
  assert outcome.receipt.cause == 'non-finite'
  assert outcome.metrics is None
  assert cases.same_bits(before, server.params)
  assert server.version == 0
  doubled = server.submit(work.ticket, **fine)
  assert doubled.receipt.cause == 'late'
  for worker_id in (0, 1):
    work = server.ticket(worker_id)
    again = (work.ticket.first_batch, work.ticket.attempt)
    assert again == [(0, 1), (1, 0)][worker_id]
    server.submit(work.ticket, **fine)
  assert server.finished
  server.trace().verify()


def test_batches_that_are_never_finite_end_the_loop():
  server = make_server(rules.asgd(0.1), num_workers=1)
  for _ in range(ledger.MAX_ATTEMPTS - 1):
    server.submit(server.ticket(0).ticket, {'w': jnp.full(3, np.nan)})
  with pytest.raises(ledger.NotFiniteError, match='batch 0 gave no finite'):
    server.submit(server.ticket(0).ticket, {'w': jnp.full(3, np.nan)})


def test_a_loop_that_catches_the_not_finite_error_goes_on_right():
  """With barriers, whose round the expiry may close."""
  rule = rules.asgd(0.1, momentum=0.0)
  server = make_server(rule, policies.synchronous(), num_batches=6)
  refused, sent = 0, []
  for step in range(60):
    if server.finished:
      break
    for worker_id in (step % 2, 1 - step % 2):
      work = server.ticket(worker_id)
      if work is None:
        continue
      sent.append(weakref.ref(work.params['w']))
      bad = work.ticket.first_batch == 0 and refused < ledger.MAX_ATTEMPTS
      refused += bad
      value = np.nan if bad else 1.0
      with contextlib.suppress(ledger.NotFiniteError):
        server.submit(work.ticket, {'w': jnp.full(3, value)})
  assert server.finished
  assert refused == ledger.MAX_ATTEMPTS
  trace = server.trace()
  trace.verify()
  updates = trace.updates()
  assert updates == server.version == int(server.state.version)
  np.testing.assert_allclose(server.params['w'], 1 - 0.1 * updates, rtol=1e-6)
  del work
  assert all(params() is None for params in sent)  # no ticket holds them


def test_gradients_that_are_not_finite_are_applied_if_allowed():
  server = ga_jax.Server(
    {'w': jnp.ones(3)},
    rules.asgd(0.1),
    policies.asynchronous(),
    num_workers=1,
    num_batches=1,
    allow_non_finite=True,
  )
  server.submit(server.ticket(0).ticket, {'w': jnp.full(3, np.inf)})
  assert np.isneginf(server.params['w']).all()


def test_an_expired_ticket_may_close_a_round():
  """The others' gradients are applied, in parameters and record alike."""
  server = make_server(
    rules.asgd(0.1, momentum=0.0),
    policies.synchronous(),
    num_workers=2,
    num_batches=4,
  )
  one, other = server.ticket(0).ticket, server.ticket(1).ticket
  server.submit(one, {'w': jnp.ones(3)})
  server.submit(other, {'w': jnp.full(3, np.nan)})
  assert server.version == int(server.state.version)
  server.remove_worker(1)
  assert server.version == int(server.state.version) == 1
  np.testing.assert_allclose(server.params['w'], 0.9)
