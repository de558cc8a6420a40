"""Fast, exact and reference executors agree; one worker is plain optax."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from ga_jax import clocks, policies, rules
from ga_jax.executors import blocks, lengths, reference
from ga_jax.policies.parts.base import Action, Decision, Kind, Policy
from tests import cases

pytestmark = pytest.mark.usefixtures('quick_compiler')

BATCHES = 192  # three blocks
PLAIN_BATCHES = 20  # nothing is compiled there

# Every rule alone; rounds with every shape of what `correct` may make of a
# gradient; every way in which a policy treats late ones.
DEFAULT = [
  *((rule, 'asynchronous') for rule in ('ga', 'dana_slim', 'ormo')),
  ('ga', 'synchronous'),
  ('ga', 'k_sync'),
]
PAIRS = [
  pytest.param(
    rule,
    policy,
    marks=[
      *([pytest.mark.optax_promotes] if rule in cases.ADAMS else []),
      *([] if (rule, policy) in DEFAULT else [pytest.mark.slow]),
    ],
    id=f'{rule}-{policy}',
  )
  for rule, policy in (
    *((rule, 'asynchronous') for rule in cases.RULES),
    *(
      (rule, 'synchronous')
      for rule in ('asgd', 'ga', 'ga_adam', 'ormo', 'dana_slim')
    ),
    *(
      ('ga', policy) for policy in ('k_sync', 'k_async', 'rennala', 'softsync')
    ),
  )
]
SINGLE = [
  (rule, policy)
  for policy in ('synchronous', 'asynchronous')
  for rule in ('ga', 'asgd', 'dana_ga')
  if (rule, policy) != ('dana_ga', 'synchronous')  # it cannot average
]


def run(rule, policy, executor, num_batches, dtype, seed=0):
  return ga_jax.simulate(
    cases.tiny_job(
      cases.rule(rule, 0.02),
      policies.make(policy, cases.WORKERS),
      dtype,
      seed=seed,
    ),
    clocks.heterogeneous(seed),
    num_workers=cases.WORKERS,
    num_batches=num_batches,
    executor=executor,
  )


def run_reference(rule, policy, trace, dtype):
  job = cases.tiny_job(
    cases.rule(rule, 0.02), policies.make(policy, cases.WORKERS), dtype
  )
  # Compiled, or each gradient takes as long as a run.
  job = dataclasses.replace(job, loss_fn=jax.jit(job.loss_fn))
  return reference.execute(job, trace)


@pytest.mark.parametrize(('rule', 'policy'), PAIRS)
def test_executors_agree_in_float64(rule, policy, x64):
  del x64
  fast = run(rule, policy, 'fast', BATCHES, np.float64)
  exact = run(rule, policy, 'exact', BATCHES, np.float64)
  fast.trace.verify()
  assert fast.executed == exact.executed == BATCHES
  assert cases.distance(fast.state.params, exact.state.params) < 1e-8
  assert cases.distance(fast.state.model_state, exact.state.model_state) < 1e-8
  for state in (fast.state, exact.state):
    assert int(state.version) == exact.trace.updates()
    assert int(state.count) == BATCHES
  assert fast.metrics.keys() == exact.metrics.keys()
  for name in exact.metrics:
    np.testing.assert_allclose(
      fast.metrics[name], exact.metrics[name], rtol=1e-7
    )
  exact = run(rule, policy, 'exact', PLAIN_BATCHES, np.float64)
  plain = run_reference(rule, policy, exact.trace, np.float64)
  assert cases.distance(exact.state.params, plain.params) < 1e-9
  assert cases.distance(exact.state.model_state, plain.model_state) < 1e-9
  np.testing.assert_allclose(exact.metrics['loss'], plain.losses, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(('rule', 'policy'), SINGLE)
def test_executors_agree_in_float32(rule, policy):
  fast = run(rule, policy, 'fast', 10, np.float32)
  exact = run(rule, policy, 'exact', 10, np.float32)
  plain = run_reference(rule, policy, exact.trace, np.float32)
  for state in (fast.state, exact.state):
    assert cases.distance(state.params, plain.params) < 1e-5
    assert cases.distance(state.model_state, plain.model_state) < 1e-5


def test_batch_norm_statistics_stay_bounded_under_staleness():
  """Adding the plain difference instead of the fold reached −9e20 here."""
  model, params, stats, loss_fn = cases.classifier('mlp_bn')
  result = ga_jax.simulate(
    ga_jax.Job(
      loss_fn,
      params,
      cases.image_batches,
      rules.asgd(1e-6),
      policies.asynchronous(),
      model_state=stats,
      stats_momentum=model.stats_momentum,
    ),
    clocks.constant(),
    num_workers=32,
    num_batches=400,
  )
  assert result.trace.applied()['staleness'].max() == 31
  layer = result.state.model_state['BatchNorm_0']
  # With parameters at rest every batch has nearly the same statistics.
  x = np.concatenate([cases.image_batches(i)[0] for i in range(20)]).reshape(
    -1, 64
  )
  hidden = x @ np.asarray(params['Dense_0']['kernel'])
  np.testing.assert_allclose(layer['mean'], hidden.mean(0), atol=0.5)
  np.testing.assert_allclose(layer['var'], hidden.var(0), rtol=0.5)


@pytest.mark.slow
def test_other_hyper_parameters_compile_nothing_again():
  blocks.compiled_block.cache_clear()

  def rule_fn(hparams):
    return rules.gap_aware(hparams['rate'], hparams['momentum'])

  finals = []
  for rate, momentum in ((0.02, 0.9), (0.01, 0.9), (0.01, 0.0)):
    result = ga_jax.simulate(
      cases.tiny_job(
        rule_fn,
        policies.asynchronous(),
        hparams={'rate': np.float32(rate), 'momentum': np.float32(momentum)},
      ),
      clocks.homogeneous(0),
      num_workers=3,
      num_batches=64,
    )
    finals.append(result.params)
    fixed = ga_jax.simulate(
      cases.tiny_job(rules.gap_aware(rate, momentum), policies.asynchronous()),
      clocks.homogeneous(0),
      num_workers=3,
      num_batches=64,
    )
    assert cases.distance(result.params, fixed.params) < 1e-4
  assert not cases.same_bits(finals[0], finals[1])
  assert not cases.same_bits(finals[1], finals[2])
  assert blocks.compiled_block.cache_info().misses == 4  # rule_fn and 3 fixed


def test_observe_stops_a_run_and_sees_its_metrics():
  for executor in ('fast', 'exact'):
    seen = []

    def observe(arrivals, state, block, seen=seen):
      seen.append((arrivals, int(state.count), len(block['loss'])))
      return arrivals >= 30

    result = ga_jax.simulate(
      cases.tiny_job(rules.asgd(0.1), policies.asynchronous()),
      clocks.homogeneous(0),
      num_workers=3,
      num_batches=100,
      executor=executor,
      block=10,
      observe=observe,
    )
    assert seen == [(10, 10, 10), (20, 20, 10), (30, 30, 10)]
    assert result.executed == len(result.metrics['loss']) == 30


@pytest.mark.parametrize('executor', ['fast', 'exact'])
def test_the_last_state_observed_is_the_final_one(executor):
  """The round that is open after the last arrival is closed before."""
  seen = []
  result = ga_jax.simulate(
    ga_jax.Job(
      lambda params, state, batch, key: (
        jnp.mean((batch - params) ** 2),
        state,
      ),
      jnp.zeros(()),
      lambda batch_id: np.ones(4, np.float32),
      rules.asgd(0.1),
      policies.k_async(5, wait_for=4),
    ),
    clocks.homogeneous(0),
    num_workers=5,
    num_batches=10,
    executor=executor,
    block=5,
    observe=lambda batches, state, block: seen.append(
      (batches, int(state.version), float(state.params))
    ),
  )
  assert result.trace.number_of(Kind.CLOSE) == 1
  assert [batches for batches, *_ in seen] == [5, 10]
  assert seen[-1][1:] == (3, float(result.params))


def test_callers_parameters_survive_donation():
  _, params, *_ = cases.tiny_problem()
  params = jax.tree.map(jnp.asarray, params)
  ga_jax.simulate(
    cases.tiny_job(rules.asgd(0.1), policies.asynchronous(), params=params),
    clocks.homogeneous(0),
    num_workers=2,
    num_batches=20,
  )
  assert np.isfinite(cases.flat(params)).all()  # not deleted


def one_convolution():
  """Like `classifier`, with one layer."""
  rng = np.random.default_rng(0)
  params = {
    'kernel': rng.normal(size=(3, 3, 1, 4), scale=0.3).astype(np.float32),
    'out': rng.normal(size=(4, 10), scale=0.3).astype(np.float32),
  }
  stats = {'mean': np.zeros(4, np.float32)}

  def loss_fn(params, model_state, batch, key):
    del key
    hidden = jax.lax.conv_general_dilated(
      batch[0],
      params['kernel'],
      (2, 2),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    hidden = jnp.tanh(hidden).mean((1, 2))  # [B, 4]
    mean = 0.9 * model_state['mean'] + 0.1 * hidden.mean(0)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      hidden @ params['out'], batch[1]
    )
    return losses.mean(), {'mean': mean}

  return None, params, stats, loss_fn


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
  'make',
  [
    one_convolution,
    pytest.param(lambda: cases.classifier('cnn_bn'), marks=pytest.mark.slow),
  ],
)
def test_convolutions_are_unrolled_on_the_cpu_and_agree(make):
  _, params, stats, loss_fn = make()
  job = ga_jax.Job(
    loss_fn,
    params,
    cases.image_batches,
    rules.gap_aware(0.05),
    policies.asynchronous(),
    model_state=stats,
    stats_momentum=0.9,
  )
  assert lengths.convolutions(job) > 0
  results = [
    ga_jax.simulate(
      job,
      clocks.homogeneous(0),
      num_workers=4,
      num_batches=4,
      executor=executor,
      block=2 if executor == 'fast' else None,
    )
    for executor in ('fast', 'exact')
  ]
  assert cases.distance(results[0].params, results[1].params) < 1e-4


def test_bad_arguments_of_simulate_are_refused_by_name():
  clock, sizes = clocks.constant(), {'num_workers': 2, 'num_batches': 4}
  job = cases.tiny_job(rules.asgd(0.1), policies.asynchronous())
  for change, message in (
    ({'executor': 'quick'}, 'executor must be one of'),
    ({'num_workers': 0}, 'num_workers must be an integer of at least 1'),
    ({'num_batches': 0}, 'num_batches'),
  ):
    with pytest.raises(ValueError, match=message):
      ga_jax.simulate(job, clock, **sizes | change)
  for momentum, message in (
    (None, 'stats_momentum must be the momentum'),
    (1.5, 'stats_momentum must be finite'),
  ):
    with pytest.raises(ValueError, match=message):
      dataclasses.replace(job, stats_momentum=momentum)
  averaged = cases.tiny_job(rules.dana_zero(0.1, 2), policies.synchronous())
  for executor in ('fast', 'exact'):
    with pytest.raises(ValueError, match='cannot be averaged'):
      ga_jax.simulate(averaged, clock, **sizes, executor=executor)


def test_a_plain_optax_chain_cannot_hide_a_gap_under_an_averaging_policy():
  hidden = optax.chain(optax.clip(1.0), rules.gap_aware(0.1))
  shown = ga_jax.chain(optax.clip(1.0), rules.gap_aware(0.1))
  trained = functools.partial(
    trained_with, policy=policies.synchronous(), num_workers=2
  )
  with pytest.raises(TypeError, match=r'ga_jax\.chain'):
    trained(hidden)
  trained(shown)


def trained_with(rule, policy, num_workers):
  """Four batches of the tiny problem."""
  job = cases.tiny_job(rule, policy)
  ga_jax.simulate(
    job, clocks.constant(), num_workers=num_workers, num_batches=4
  )


def scripted(script):
  """A policy that answers arrivals in turn: (action, weight, restart)."""

  def decide(state, event):
    if event.kind != Kind.ARRIVE:
      return state, Decision(start=(event.worker_id,))
    action, weight, restart = script[state % len(script)]
    restart = tuple(w for w in restart if w != event.worker_id)
    return state + 1, Decision(action, weight, (event.worker_id,), restart)

  return Policy(init=lambda: 0, decide=decide, accumulates=True)


def test_executors_agree_on_weights_discards_restarts_and_keys(x64):
  del x64
  policy = scripted(
    [
      (Action.ACCUMULATE, 2.0, ()),
      (Action.DISCARD, 1.0, ()),
      (Action.ACCUMULATE, 0.5, (1,)),
      (Action.APPLY, 1.0, ()),
      (Action.APPLY, 0.0, (2,)),
      (Action.ACCUMULATE, 0.0, ()),
    ]
  )

  def loss_fn(params, model_state, batch, key):
    noisy = batch + jax.random.normal(key, batch.shape)
    mean = 0.9 * model_state['m'] + 0.1 * noisy.mean()
    return jnp.mean((jnp.tanh(noisy) - params) ** 2), {'m': mean}

  def batch_fn(batch_id):
    return np.random.default_rng(batch_id).normal(size=8)

  job = ga_jax.Job(
    loss_fn,
    np.float64(0),
    batch_fn,
    rules.gap_aware(0.02),
    policy,
    model_state={'m': np.float64(0)},
    stats_momentum=0.9,
  )
  runs = [
    ga_jax.simulate(
      job,
      clocks.heterogeneous(1),
      num_workers=4,
      num_batches=61,
      executor=executor,
    )
    for executor in ('fast', 'exact')
  ]
  trace = runs[0].trace
  trace.verify()
  assert trace.applied()['attempt'].max() > 0
  plain = reference.execute(job, trace)
  for run_ in runs:
    assert cases.distance(run_.params, plain.params) < 1e-10
    assert cases.distance(run_.state.model_state, plain.model_state) < 1e-10


def test_a_hidden_look_ahead_and_missing_buffers_are_refused():
  trained = functools.partial(
    trained_with, policy=policies.asynchronous(), num_workers=3
  )
  hidden = optax.chain(optax.clip(1.0), rules.dana_zero(0.1, 3))
  with pytest.raises(ValueError, match=r'ga_jax\.chain'):
    trained(hidden)
  shown = ga_jax.chain(optax.clip(1.0), rules.dana_zero(0.1, 3))
  trained(shown)
  with pytest.raises(ValueError, match='keeps 2 momentum buffers'):
    trained(rules.dana_zero(0.1, 2))
  with pytest.raises(ValueError, match='keeps 2 momentum buffers'):
    ga_jax.Server(
      np.zeros(3),
      rules.multi_asgd(0.1, 2),
      policies.asynchronous(),
      num_workers=3,
      num_batches=4,
    )
  with pytest.raises(ValueError, match='multi_steps averages'):
    ga_jax.multi_steps(rules.dana_zero(0.1, 2), 2)
