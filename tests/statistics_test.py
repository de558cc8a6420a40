"""Model statistics: what a worker returns is folded by what it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, policies, rules
from ga_jax.executors import reference
from ga_jax.server import statistics
from tests import cases

BATCHES = 40


def batch_fn(batch_id):
  return np.random.default_rng([3, batch_id]).normal(5.0, 2.0, 16)


SIZES = {'num_workers': 4, 'num_batches': BATCHES}


def job_of(loss_fn, model_state, **own):
  return ga_jax.Job(
    loss_fn,
    jnp.zeros(()),
    batch_fn,
    rules.asgd(0.01),
    policies.asynchronous(),
    model_state=model_state,
    **own,
  )


def run(job, executor):
  if executor == 'threads':
    return ga_jax.run_on_threads(job, **SIZES)
  return ga_jax.simulate(
    job, clocks.heterogeneous(1), executor=executor, **SIZES
  )


def welford(state, x):
  """Count, mean and sum of squared deviations after more numbers."""
  number = x.size
  count = state['count'] + number
  delta = x.mean() - state['mean']
  before = jnp.asarray(state['count'], x.dtype)
  total = jnp.asarray(count, x.dtype)
  return {
    'count': count,
    'mean': state['mean'] + delta * number / total,
    'squares': state['squares']
    + jnp.sum((x - x.mean()) ** 2)
    + delta**2 * before * number / total,
  }


def welford_fold(returned, now, sent, num_batches):
  """Takes what the worker was sent out of what it returns; adds the rest."""
  del num_batches
  dtype = now['mean'].dtype
  was, there, both = (
    jnp.asarray(one['count'], dtype) for one in (sent, now, returned)
  )
  own = both - was
  mean = (both * returned['mean'] - was * sent['mean']) / own
  squares = (
    returned['squares']
    - sent['squares']
    - (mean - sent['mean']) ** 2 * was * own / both
  )
  total = there + own
  delta = mean - now['mean']
  return {
    'count': now['count'] + (returned['count'] - sent['count']),
    'mean': now['mean'] + delta * own / total,
    'squares': now['squares'] + squares + delta**2 * there * own / total,
  }


def counting_loss(params, model_state, batch, key):
  del key
  loss = (params - batch.mean()) ** 2
  return loss, {
    'seen': model_state['seen'] + batch.size,
    'mean': 0.9 * model_state['mean'] + 0.1 * batch.mean(),
  }


@pytest.mark.parametrize('executor', ['fast', 'exact'])
def test_counters_count_every_batch_once(executor, x64):
  """And averages stay averages, beside them."""
  del x64
  start = {'seen': np.int32(3), 'mean': np.float64(0)}
  job = job_of(counting_loss, start, stats_momentum=0.9)
  result = run(job, executor)
  assert result.metrics['staleness'].max() > 1
  state = result.state.model_state
  assert int(state['seen']) == 3 + BATCHES * 16
  assert state['seen'].dtype == np.int32
  # Each of 16 numbers weighs as in one worker's average: near the mean of 5.
  assert abs(float(state['mean']) - 5.0) < 0.5
  plain = reference.execute(job, result.trace)
  assert cases.distance(state, plain.model_state) < 1e-12


@pytest.mark.parametrize('where', ['fast', 'exact', 'threads', 'server'])
def test_a_fold_fn_gives_the_statistics_of_all_batches(where, x64):
  """Welford's, in whatever order the workers answer."""
  del x64

  def loss_fn(params, model_state, batch, key):
    del key
    return (params - batch.mean()) ** 2, welford(model_state, batch)

  start = {
    'count': np.int64(0),
    'mean': np.float64(0),
    'squares': np.float64(0),
  }
  job = job_of(loss_fn, start, fold_fn=welford_fold)
  if where == 'server':
    state = by_hand(job)
  else:
    state = run(job, where).state.model_state
  numbers = np.concatenate([batch_fn(i) for i in range(BATCHES)])
  assert int(state['count']) == numbers.size
  np.testing.assert_allclose(state['mean'], numbers.mean(), rtol=1e-12)
  np.testing.assert_allclose(
    state['squares'], numbers.size * numbers.var(), rtol=1e-11
  )


def by_hand(job):
  """A host loop whose workers answer in another order than they ask."""
  server = ga_jax.Server(
    job.params,
    job.rule,
    job.policy,
    model_state=job.model_state,
    fold_fn=job.fold_fn,
    **SIZES,
  )
  order = np.random.default_rng(0)
  work = {worker: server.ticket(worker) for worker in range(4)}
  gradient = jax.value_and_grad(job.loss_fn, has_aux=True)
  while not server.finished:
    worker = int(order.choice(sorted(work)))
    ticket, params, model_state = work.pop(worker)
    batch = batch_fn(ticket.first_batch)
    (loss, model_state), grads = gradient(params, model_state, batch, None)
    server.submit(ticket, grads, model_state=model_state, loss=float(loss))
    if more := server.ticket(worker):
      work[worker] = more
  return server.model_state


def test_one_worker_has_its_own_statistics():
  """Bit for bit, counters included."""
  start = {'seen': np.int32(0), 'mean': np.float32(0)}

  def small(batch_id):
    return batch_fn(batch_id).astype(np.float32)

  result = ga_jax.simulate(
    ga_jax.Job(
      counting_loss,
      jnp.zeros(()),
      small,
      rules.asgd(0.01),
      policies.asynchronous(),
      model_state=start,
      stats_momentum=0.9,
    ),
    clocks.constant(),
    num_workers=1,
    num_batches=5,
    executor='exact',
  )
  state = jax.tree.map(jnp.asarray, start)
  step = jax.jit(jax.value_and_grad(counting_loss, has_aux=True))
  for i in range(5):
    (_, state), _ = step(jnp.float32(0), state, small(i), None)
  assert cases.same_bits(result.state.model_state, state)


REFUSED = [
  ({'flag': np.array(True)}, r"model_state\['flag'\] is of dtype bool"),
  ({'key': jax.random.key(0)}, r"model_state\['key'\] is of dtype key"),
  ({'name': 'relu'}, r"model_state\['name'\] is no array: 'relu'"),
]


@pytest.mark.parametrize(('leaf', 'message'), REFUSED)
def test_statistics_that_cannot_be_averaged_are_refused_at_once(leaf, message):
  model_state = {'mean': np.zeros(2, np.float32), **leaf}
  with pytest.raises((TypeError, ValueError), match=message):
    statistics.fold_of(model_state, 0.9)
  with pytest.raises((TypeError, ValueError), match=message):
    ga_jax.Server(
      jnp.zeros(()),
      rules.asgd(0.1),
      policies.asynchronous(),
      num_workers=1,
      num_batches=1,
      model_state=model_state,
      stats_momentum=0.9,
    )


@pytest.mark.parametrize('executor', ['fast', 'exact', 'threads'])
@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (
      lambda s: {**s, 'seen': jnp.float32(1.0)},
      r"the loss function returns float32\[\] for model_state\['seen'\], which "
      r'is int32\[\]',
    ),
    (
      lambda s: {**s, 'more': s['mean']},
      r"the loss function returns float32\[\] for model_state\['more'\], which "
      r'is nothing',
    ),
    (
      lambda s: (s['mean'], s['seen']),
      'the loss function returns nothing for model_state',
    ),
  ],
)
def test_a_loss_that_returns_other_statistics_is_refused(
  change, said, executor
):
  def loss_fn(params, model_state, batch, key):
    del key
    return params * batch.sum(), change(model_state)

  start = {'seen': np.int32(0), 'mean': np.float32(0)}
  job = dataclasses.replace(
    job_of(loss_fn, start, stats_momentum=0.9),
    batches=lambda i: np.ones(2, np.float32),
  )
  with pytest.raises(ValueError, match=said):
    run(job, executor)


def test_a_fold_that_does_not_fit_is_refused():
  state = {'mean': np.zeros(2, np.float32)}

  def fold_of(fold_fn, momentum=None, model_state=state):
    return statistics.fold_of(model_state, momentum, fold_fn)

  with pytest.raises(ValueError, match='stats_momentum or fold_fn, not both'):
    fold_of(welford_fold, 0.9)
  with pytest.raises(TypeError, match='fold_fn must be a function'):
    fold_of('sum')
  with pytest.raises(
    ValueError, match='fold_fn returns nothing for model_state'
  ):
    fold_of(lambda returned, now, sent, num_batches: ())
  with pytest.raises(
    ValueError,
    match=r"float16\[2\] for model_state\['mean'\], which is float32",
  ):
    fold_of(
      lambda returned, now, sent, num_batches: {
        'mean': now['mean'].astype(jnp.float16)
      }
    )
  assert fold_of(welford_fold, model_state=()) is statistics.NOTHING
  assert fold_of(None, model_state={'seen': np.int32(0)}) is statistics.NOTHING
