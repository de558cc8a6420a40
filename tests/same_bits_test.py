"""What is equal bit for bit, with the compiler that users have."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from experiments.running import train
from ga_jax import clocks, policies, rules
from tests import cases, scripts


@pytest.mark.parametrize(
  'executor',  # that of a run of the scripts is the fast one
  [pytest.param('fast', marks=pytest.mark.slow), 'exact'],
)
@pytest.mark.parametrize(
  ('rule', 'policy'),
  [
    ('dana_ga', 'asynchronous'),
    pytest.param('ga', 'synchronous', marks=pytest.mark.slow),
  ],
)
def test_the_same_seed_gives_the_same_bits(rule, policy, executor):
  def run(seed):
    job = cases.tiny_job(
      cases.rule(rule, 0.02), policies.make(policy, cases.WORKERS), seed=seed
    )
    return ga_jax.simulate(
      job,
      clocks.heterogeneous(seed),
      num_workers=cases.WORKERS,
      num_batches=100,
      executor=executor,
    )

  first, again, other = map(run, (0, 0, 1))
  assert cases.same_bits(first.state, again.state)
  assert not cases.same_bits(first.state, other.state)


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
  ('model_name', 'nesterov', 'weight_decay'),
  [
    pytest.param('mlp_bn', False, 0.0, marks=pytest.mark.slow),
    ('mlp_bn', True, 1e-3),
    pytest.param('cnn_bn', True, 0.0, marks=pytest.mark.slow),
    pytest.param('cnn_bn', False, 1e-3, marks=pytest.mark.slow),
  ],
)
def test_one_worker_is_plain_optax_bit_for_bit(
  model_name, nesterov, weight_decay
):
  model, params, stats, loss_fn = cases.classifier(model_name)
  rate = optax.cosine_decay_schedule(0.05, 300)
  plain = optax.sgd(rate, 0.9, nesterov=nesterov)
  if weight_decay:
    plain = optax.chain(optax.add_decayed_weights(weight_decay), plain)
  gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))

  @jax.jit
  def update(grads, opt_state, params):
    updates, opt_state = plain.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  theta, state, opt_state, losses = params, stats, plain.init(params), []
  for i in range(200):
    (loss, state), grads = gradient(theta, state, cases.image_batches(i))
    theta, opt_state = update(grads, opt_state, theta)
    losses.append(np.asarray(loss))

  for make in (
    rules.asgd,
    rules.staleness_aware,
    rules.gap_aware,
    rules.dc_asgd,
  ):
    rule = make(rate, 0.9, nesterov=nesterov, weight_decay=weight_decay)
    both = [policies.asynchronous()]
    if make is rules.gap_aware:
      both.append(policies.synchronous())
    for policy in both:
      result = ga_jax.simulate(
        ga_jax.Job(
          loss_fn,
          params,
          cases.image_batches,
          rule,
          policy,
          model_state=stats,
          stats_momentum=model.stats_momentum,
        ),
        clocks.homogeneous(0),
        num_workers=1,
        num_batches=200,
        executor='exact',
      )
      assert cases.same_bits(result.params, theta)
      assert cases.same_bits(result.state.model_state, state)
      assert cases.same_bits(result.metrics['loss'], np.array(losses))


def drawn(seed):
  rng = np.random.default_rng(seed)
  return {
    'w': np.float32(rng.normal(size=(4, 3))),
    'layers': [np.float32(rng.normal(size=5))] * 2,
    's': np.float32(rng.normal()),
  }


@pytest.mark.parametrize('staleness', [0, None])
def test_a_fresh_gradient_is_the_wrapped_optimiser_bit_for_bit(staleness):
  ours = ga_jax.gap_aware(0.1, 0.9, nesterov=True, weight_decay=1e-2)
  plain = optax.chain(
    optax.add_decayed_weights(1e-2), optax.sgd(0.1, 0.9, nesterov=True)
  )
  a = b = drawn(0)
  sa, sb = ours.init(a), plain.init(b)
  for n in range(20):
    # Staleness 0 must be enough whatever was sent; else the gap must be 0.
    stale = drawn(n) if staleness == 0 else a
    extra = {} if staleness is None else {'staleness': jnp.int32(staleness)}
    ua, sa = jax.jit(ours.update)(a, sa, a, stale_params=stale, **extra)
    ub, sb = jax.jit(plain.update)(b, sb, b)
    a, b = optax.apply_updates(a, ua), optax.apply_updates(b, ub)
    assert cases.same_bits(a, b)


# Runs of the scripts.


@pytest.mark.usefixtures('relaxed')
def test_a_run_can_be_repeated():
  settings = scripts.settings_of(
    method='ga', workers=3, clock='heterogeneous', seed=2
  )
  first, again = train.train(settings), train.train(settings)
  assert scripts.untimed(first.summary) == scripts.untimed(again.summary)
  np.testing.assert_array_equal(
    first.result.trace.events, again.result.trace.events
  )
  assert cases.same_bits(first.result.params, again.result.params)


@pytest.mark.slow
@pytest.mark.usefixtures('relaxed')
def test_with_one_worker_the_methods_give_the_same_result():
  summaries = [
    train.train(scripts.settings_of(method=method, epochs=0.5)).summary
    for method in ('asgd', 'sa', 'ga')
  ]
  assert len({s['test_error'] for s in summaries}) == 1
  assert len({s['train_loss'] for s in summaries}) == 1


@pytest.mark.usefixtures('relaxed')
def test_the_rate_is_scaled_by_the_gradients_of_a_round():
  base = scripts.settings_of(
    method='ssgd', workers=4, epochs=1.0, learning_rate=0.02
  )
  scaled = dataclasses.replace(base, scale_lr=True)
  larger = dataclasses.replace(base, learning_rate=0.08)
  losses = [
    train.train(s).result.metrics['loss'] for s in (scaled, larger, base)
  ]
  np.testing.assert_array_equal(losses[0], losses[1])
  assert not np.array_equal(losses[0], losses[2])


@pytest.mark.usefixtures('relaxed')
def test_methods_share_schedule_and_first_batch():
  runs = [
    train.train(scripts.settings_of(method=method, workers=3)).result
    for method in ('asgd', 'sa', 'ga')
  ]
  for result in runs[1:]:
    np.testing.assert_array_equal(result.trace.events, runs[0].trace.events)
  losses = np.array([result.metrics['loss'] for result in runs])
  assert len(set(losses[:, 0])) == 1  # same parameters, same batch
  assert len(set(losses[:, -1])) == 3  # and then the methods differ
