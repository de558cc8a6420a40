"""The common suite: every rule is a sound optax transformation."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from ga_jax import rules
from tests import cases
from tests.oracles import rules as oracles

every_rule = pytest.mark.parametrize('name', cases.EVERY_RULE)

ORACLES = {
  'asgd': (oracles.ASGD, {'wd': 1e-3}),
  'nag_asgd': (oracles.ASGD, {'nesterov': True}),
  'sa': (oracles.SA, {'wd': 1e-3}),
  'ga': (oracles.GA, {'wd': 1e-3}),
  'ga_nesterov': (oracles.GA, {'nesterov': True}),
  'ga_global': (oracles.GAGlobal, {}),
  'ga_adam': (oracles.GAAdam, {'wd': 1e-2}),
  'multi_asgd': (oracles.MultiASGD, {}),
  'dana_zero': (oracles.DANAZero, {'wd': 1e-3}),
  'dana_ga': (oracles.DANAGA, {'wd': 1e-3}),
  'dc_asgd': (oracles.DCASGD, {'wd': 1e-3}),
}


def extras(params, staleness=2, worker_id=1):
  return {
    'stale_params': jax.tree.map(
      lambda p: p - jnp.asarray(0.01, p.dtype), params
    ),
    'staleness': jnp.int32(staleness),
    'worker_id': jnp.int32(worker_id),
  }


def params_of(dtype):
  rng = np.random.default_rng(3)
  return {
    'a': jnp.asarray(rng.normal(size=(3, 2)), dtype),
    'b': (jnp.asarray(rng.normal(size=4), dtype), jnp.asarray(0.5, dtype)),
  }


@pytest.mark.optax_promotes
@pytest.mark.parametrize('name', ORACLES)
def test_equals_the_formula_by_hand(name, x64):
  del x64
  rng = np.random.default_rng(1)
  theta = rng.normal(size=7)

  def rate(count):  # a warm-up and a decay
    return 0.02 * min(count + 1, 10) / 10 * (0.5 if count >= 20 else 1.0)

  make_oracle, arguments = ORACLES[name]
  oracle = make_oracle(theta, rate, 0.9, **arguments)
  rates = jnp.array([rate(i) for i in range(30)])
  rule = cases.RULES[name](lambda count: rates[count])
  params = jnp.asarray(theta)
  state = rule.init(params)
  update = jax.jit(rule.update)
  lookahead = jax.jit(rule.lookahead)
  held = {w: (0, lookahead(params, state), oracle.sent()) for w in range(3)}
  for step in range(30):
    worker = int(rng.integers(0, 3))
    version, sent, oracle_sent = held[worker]
    np.testing.assert_allclose(sent, oracle_sent, rtol=1e-9, atol=1e-12)
    g = np.cos(oracle_sent * (1 + worker)) + 0.1 * rng.normal(size=7)
    staleness = step - version
    updates, state = update(
      jnp.asarray(g),
      state,
      params,
      stale_params=sent,
      staleness=jnp.int32(staleness),
      worker_id=jnp.int32(worker),
    )
    params = optax.apply_updates(params, updates)
    oracle.arrive(g, oracle_sent, staleness, worker)
    np.testing.assert_allclose(params, oracle.theta, rtol=1e-9, atol=1e-12)
    held[worker] = (step + 1, lookahead(params, state), oracle.sent())


@every_rule
@pytest.mark.parametrize('staleness', [0, 3, 'random'])
def test_converges_on_a_quadratic(name, staleness):
  rule = cases.RULES[name](0.01)
  target = jnp.array([1.0, -2.0, 0.5])
  scales = jnp.array([1.0, 0.3, 2.0])
  steps = 3000
  if staleness == 'random':
    tau = np.random.default_rng(0).integers(0, 4, steps)
  else:
    tau = np.full(steps, staleness)
  tau = np.minimum(tau, np.arange(steps)).astype(np.int32)

  def advance(carry, x):
    params, state, history = carry  # the last four points sent, newest first
    tau, worker = x
    sent = history[tau]
    updates, state = rule.update(
      scales * (sent - target),
      state,
      params,
      stale_params=sent,
      staleness=tau,
      worker_id=worker,
    )
    params = optax.apply_updates(params, updates)
    newest = rule.lookahead(params, state)
    return (params, state, jnp.stack([newest, *history[:3]])), None

  params = jnp.zeros(3)
  start = (params, rule.init(params), jnp.zeros((4, 3)))
  workers = (np.arange(steps) % 3).astype(np.int32)
  (params, _, _), _ = jax.lax.scan(advance, start, (tau, workers))
  # Weight decay moves the optimum by at most 1e-2 / 0.3 of its size.
  np.testing.assert_allclose(params, target, atol=0.08)


@every_rule
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
def test_keeps_dtype_and_tree(name, dtype):
  with jax.enable_x64(dtype == 'float64'):
    params = params_of(dtype)
    rule = cases.RULES[name](0.1)
    state = rule.init(params)
    updates, new = rule.update(params, state, params, **extras(params))
    updates, new = rule.update(params, new, params, **extras(params))
    spec = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == spec
    ahead = rule.lookahead(params, new)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ahead) == spec
    before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == before
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(updates))


@every_rule
def test_second_call_compiles_nothing(name):
  params = params_of('float32')
  rule = cases.RULES[name](0.1)
  update = jax.jit(rule.update)
  state = rule.init(params)
  for _ in range(3):
    _, state = update(params, state, params, **extras(params))
  assert update._cache_size() == 1


@every_rule
def test_unknown_extra_arguments_are_tolerated(name):
  params = params_of('float32')
  rule = cases.RULES[name](0.1)
  args = (params, rule.init(params), params)
  plain, _ = rule.update(*args, **extras(params))
  more, _ = rule.update(*args, **extras(params), loss=1.0, nonsense='x')
  assert cases.same_bits(plain, more)


@every_rule
def test_state_pickles_and_maps(name):
  params = params_of('float32')
  rule = cases.RULES[name](0.1)
  _, state = rule.update(params, rule.init(params), params, **extras(params))
  again = pickle.loads(pickle.dumps(jax.device_get(state)))
  assert cases.same_bits(state, again)
  doubled = optax.tree.map_params(rule, lambda x: 2 * x, state)
  before = sum(np.abs(cases.flat(state)))
  assert jax.tree.structure(doubled) == jax.tree.structure(state)
  # Everything that is a tree like the parameters was mapped, and is not zero.
  grows = sum(np.abs(cases.flat(doubled))) - before
  assert grows > 0.1


@every_rule
def test_stands_in_an_optax_chain(name):
  params = params_of('float32')
  rule = cases.RULES[name](0.1)
  chained = optax.chain(optax.clip_by_global_norm(0.5), rule)
  ours = ga_jax.chain(optax.clip_by_global_norm(0.5), rule)
  a, b = chained.init(params), ours.init(params)
  for step in range(3):
    ua, a = chained.update(params, a, params, **extras(params, step, step))
    ub, b = ours.update(params, b, params, **extras(params, step, step))
    assert cases.same_bits(ua, ub)
  clipped, _ = optax.clip_by_global_norm(0.5).update(params, optax.EmptyState())
  first, _ = rule.update(clipped, rule.init(params), params, **extras(params))
  whole, _ = chained.update(
    params, chained.init(params), params, **extras(params)
  )
  assert cases.same_bits(first, whole)


@every_rule
def test_vmaps(name):
  params = params_of('float32')
  rule = cases.RULES[name](0.1)
  stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
  state = jax.vmap(rule.init)(stack)

  def update(p, s):
    return rule.update(p, s, p, **extras(p))

  updates, state = jax.vmap(update)(stack, state)
  updates, _ = jax.vmap(update)(stack, state)
  _, alone = rule.update(params, rule.init(params), params, **extras(params))
  alone, _ = rule.update(params, alone, params, **extras(params))
  first = jax.tree.map(lambda x: x[0], updates)
  assert cases.distance(first, alone) < 1e-6


@every_rule
def test_schedule_follows_the_count_it_is_given(name):
  params = params_of('float32')

  def schedule(count):
    return jnp.where(count < 10, 0.1, 0.01)

  rule = cases.RULES[name](schedule)
  state = rule.init(params)
  early, _ = rule.update(
    params, state, params, **extras(params, 0), count=jnp.int32(0)
  )
  late, _ = rule.update(
    params, state, params, **extras(params, 0), count=jnp.int32(10)
  )
  np.testing.assert_allclose(
    cases.flat(late), 0.1 * cases.flat(early), rtol=1e-5
  )


@pytest.mark.parametrize(
  ('name', 'missing'),
  [
    ('sa', 'staleness'),
    ('ga', 'stale_params'),
    ('ga_global', 'stale_params'),
    ('ga_adam', 'stale_params'),
    ('penalize_gap', 'stale_params'),
    ('dc_asgd', 'stale_params'),
    ('multi_asgd', 'worker_id'),
    ('dana_zero', 'worker_id'),
    ('dana_ga', 'worker_id'),
    ('dana_ga', 'staleness'),
    ('dana_ga', 'stale_params'),
  ],
)
def test_a_missing_argument_is_a_type_error(name, missing):
  params = params_of('float32')
  rule = cases.RULES[name](0.1)
  given = extras(params)
  del given[missing]
  with pytest.raises(TypeError, match=missing):
    rule.update(params, rule.init(params), params, **given)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: rules.asgd(-1.0), 'learning_rate must be finite and >= 0'),
    (lambda: rules.asgd(0.1, momentum=1.0), 'momentum must be'),
    (lambda: rules.asgd(0.1, weight_decay=float('nan')), 'weight_decay must'),
    (lambda: rules.gap_aware(0.1, decay=1.0), 'decay must be finite and > 0'),
    (lambda: rules.gap_aware(0.1, eps=0.0), 'eps must be finite and > 0'),
    (lambda: rules.gap_aware(0.1, granularity='layer'), "'parameter' or"),
    (
      lambda: rules.dc_asgd(0.1, dc_lambda=-1.0),
      'dc_lambda must be finite and >= 0',
    ),
    (lambda: rules.multi_asgd(0.1, 0), 'num_workers must be at least 1'),
    (lambda: rules.multi_steps(rules.asgd(0.1), 0), 'every_k must be'),
  ],
)
def test_arguments_are_checked(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_one_worker_is_sent_nesterovs_trajectory_by_dana_zero(x64):
  del x64
  scales = jnp.linspace(0.1, 2.0, 6)
  rule, plain = rules.dana_zero(0.05, 1), optax.sgd(0.05, 0.9, nesterov=True)
  params = sent = theta = jnp.ones(6)
  state, plain_state = rule.init(params), plain.init(theta)
  for _ in range(50):
    updates, state = rule.update(
      scales * sent, state, params, worker_id=jnp.int32(0)
    )
    params = optax.apply_updates(params, updates)
    sent = rule.lookahead(params, state)
    updates, plain_state = plain.update(scales * theta, plain_state)
    theta = optax.apply_updates(theta, updates)
    np.testing.assert_allclose(sent, theta, rtol=1e-12)
  assert float(jnp.abs(params - theta).max()) > 1e-6  # the server's is another
