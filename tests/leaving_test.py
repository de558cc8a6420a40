"""Workers that leave or die, and what a rule kept of them."""

import functools
import inspect

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from ga_jax import clocks, policies, rules
from ga_jax.executors import exact, reference
from ga_jax.policies.parts.base import Kind
from ga_jax.rules.parts import optimizer
from tests import cases, method_cases

WORKERS = 4
OPTIMUM, CURVATURE = np.array([1.0, -2.0, 0.5]), np.array([1.0, 0.5, 2.0])
BY_DEFAULT = ('ga', 'dana_zero')
# Rules that keep something per worker.
PER_WORKER = [
  name for name in rules.RULES if 'worker_id' in method_cases.RULES[name].needs
]


def loss_fn(params, model_state, batch, key):
  """A quadratic without noise."""
  del batch, key
  apart = params['p'] - OPTIMUM
  return 0.5 * jnp.sum(CURVATURE * apart**2), model_state


def job_of(rule, policy=policies.asynchronous()):  # noqa: B008
  params = {'p': jnp.zeros(3)}
  return ga_jax.Job(loss_fn, params, lambda i: np.zeros(1), rule, policy)


@functools.cache
def rule_of(name):
  make = rules.RULES[name]
  knows = 'num_workers' in inspect.signature(make).parameters
  return make(0.01, **({'num_workers': WORKERS} if knows else {}))


def half_die(at=10.0):
  """A clock on which half of the workers die."""
  clock = clocks.homogeneous(0)
  for worker_id in range(WORKERS // 2):
    clock = clocks.with_fault(
      clock, worker_id=worker_id, time=at, noticed_after=1.0
    )
  return clock


def simulated(name, clock, executor='fast', num_batches=2000):
  return ga_jax.simulate(
    job_of(rule_of(name)),
    clock,
    num_workers=WORKERS,
    num_batches=num_batches,
    executor=executor,
  )


def marked(names):
  """Names as parameters of a test; what others cover is slow."""
  return [
    pytest.param(
      name,
      marks=[pytest.mark.slow] * (name not in BY_DEFAULT)
      + [pytest.mark.optax_promotes] * (name in cases.ADAMS),
    )
    for name in names
  ]


@pytest.mark.parametrize('name', marked(rules.RULES))
def test_a_run_that_loses_half_of_its_workers_reaches_the_optimum(name, x64):
  """At the optimum, as without."""
  del x64
  result = simulated(name, half_die())
  assert result.trace.number_of(Kind.LEAVE) == WORKERS // 2
  whole = simulated(name, clocks.homogeneous(0))
  for params in (whole.params['p'], result.params['p']):
    assert np.linalg.norm(params - OPTIMUM) < 3e-3


def test_the_rules_with_a_state_per_worker_are_listed():
  params = {'p': jnp.zeros(3)}
  keeping = [
    name
    for name in rules.RULES
    if optimizer.per_worker(rule_of(name).init(params))
  ]
  assert keeping == PER_WORKER
  assert 'dana_zero' in keeping


@pytest.mark.parametrize('name', marked(PER_WORKER))
def test_a_worker_that_left_is_out_of_every_executors_state(name, x64):
  """The buffers of those that left are 0, and the sum is that of the rest."""
  del x64
  fast = simulated(name, half_die(), num_batches=61)  # leaves after the last
  whole = simulated(name, half_die(), 'exact', num_batches=61)
  job = job_of(rule_of(name))
  plain = reference.execute(job, fast.trace)
  for state in (fast.state, whole.state):
    assert cases.distance(state.params, plain.params) < 1e-12
    assert cases.distance(state.opt_state, plain.opt_state) < 1e-12
    (kept,) = optimizer.per_worker(state.opt_state)
    left, there = np.split(np.asarray(kept.traces['p']), 2)
    assert not left.any()
    assert there.all()
    if kept.total is not None:
      np.testing.assert_allclose(kept.total['p'], there.sum(0), rtol=1e-12)


def test_workers_may_leave_before_the_first_and_after_the_last_gradient(x64):
  del x64
  rule, end = rule_of('dana_zero'), simulated('dana_zero', half_die(0.0))
  server = hand_driven(rule, [2, 3, 2], then_leave=[3])
  (kept,) = optimizer.per_worker(server.state.opt_state)
  assert [bool(row.any()) for row in np.asarray(kept.traces['p'])] == [
    *(False, False, True, False)
  ]
  assert np.linalg.norm(end.params['p'] - OPTIMUM) < 1e-3
  job = job_of(rule)
  state, _, _ = exact.execute(job, server.trace())
  assert cases.same_bits(state, server.state)


def hand_driven(rule, order, then_leave):
  """A server whose workers answer in this order, and then leave."""
  server = ga_jax.Server(
    {'p': jnp.zeros(3)},
    rule,
    policies.asynchronous(),
    num_workers=WORKERS,
    num_batches=20,
  )
  for worker_id in (0, 1):
    server.remove_worker(worker_id)
  for worker_id in order:
    ticket, params, _ = server.ticket(worker_id)
    grads = {'p': CURVATURE * (params['p'] - OPTIMUM)}
    server.submit(ticket, grads, loss=1.0)
  for worker_id in then_leave:
    server.remove_worker(worker_id)
  return server


def test_a_worker_that_comes_back_begins_anew(x64):
  del x64
  server = hand_driven(rule_of('multi_asgd'), [2, 3, 2], then_leave=[2])
  server.add_worker(2)
  ticket, params, _ = server.ticket(2)
  grads = {'p': jnp.ones(3)}
  server.submit(ticket, grads, loss=1.0)
  (kept,) = optimizer.per_worker(server.state.opt_state)
  assert np.asarray(kept.traces['p'])[2].tolist() == [1.0, 1.0, 1.0]
  moved = np.asarray(server.params['p']) - np.asarray(params['p'])
  np.testing.assert_allclose(moved, -0.01)


def test_a_version_stays_as_it_was_sent_when_a_worker_leaves(x64):
  """A version is what it was when it was made; the next one has forgotten."""
  del x64
  server = hand_driven(rule_of('dana_zero'), [2, 3], then_leave=[])
  before = server.ticket(2).params['p']
  server.remove_worker(3)
  server.add_worker(3)
  again = server.ticket(3)
  assert np.array_equal(before, again.params['p'])
  server.submit(again.ticket, {'p': jnp.zeros(3)}, loss=1.0)
  momentum = optimizer.per_worker(server.state.opt_state)[0].traces['p'][2]
  np.testing.assert_allclose(
    server.ticket(3).params['p'],
    server.params['p'] - 0.01 * 0.9 * momentum,
  )


def test_an_optax_chain_does_not_hide_who_left(x64):
  """optax.chain knows nothing of workers; its state does."""
  del x64
  wrapped = optax.chain(optax.clip(1e9), rules.multi_asgd(0.01, WORKERS))
  server = hand_driven(wrapped, [2, 3, 2], then_leave=[2])
  (kept,) = optimizer.per_worker(server.state.opt_state)
  assert not np.asarray(kept.traces['p'])[2].any()


def test_an_optax_chain_does_not_hide_the_number_of_buffers():
  wrapped = optax.chain(optax.clip(1e9), rules.multi_asgd(0.01, WORKERS))
  params = {'p': jnp.zeros(3)}
  with pytest.raises(ValueError, match=r'4 momentum buffers.*num_workers=5'):
    ga_jax.Server(
      params, wrapped, policies.asynchronous(), num_workers=5, num_batches=9
    )
  with pytest.raises(ValueError, match='cannot be averaged'):
    ga_jax.Server(
      params, wrapped, policies.softsync(2), num_workers=4, num_batches=9
    )


def test_shards_forget_a_worker_that_left(x64):
  del x64
  name = 'dana_zero'
  trace = simulated(name, half_die(), num_batches=61).trace
  job = job_of(rule_of(name))
  whole, _, _ = exact.execute(job, trace)
  pieces, _, _ = exact.execute(job, trace, shards=2)
  assert len(pieces.opt_state) == 2  # by shard
  assert cases.distance(pieces.params, whole.params) < 1e-12
