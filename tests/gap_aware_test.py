"""Gap-Aware: the formula, its edges, and how it stands in optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from ga_jax import rules
from ga_jax.rules.parts import penalties as penalties_lib
from ga_jax.server import statistics
from ga_jax.server import update as update_lib
from tests import cases

pytestmark = pytest.mark.usefixtures('quick_compiler')


def tree(seed, dtype='float64'):
  rng = np.random.default_rng(seed)
  return {
    'w': jnp.asarray(rng.normal(size=(4, 3)), dtype),
    'layers': [jnp.asarray(rng.normal(size=5), dtype)] * 2,
    's': jnp.asarray(rng.normal(), dtype),
  }


def test_updates_of_random_trees_equal_numpy(x64):
  del x64
  momentum, rate, wd, decay, eps = 0.9, 0.05, 1e-3, 0.999, 1e-8
  opt = ga_jax.gap_aware(rate, momentum, weight_decay=wd)
  params = tree(0)
  state = opt.init(params)
  update = jax.jit(opt.update)
  theta = [np.asarray(x) for x in jax.tree.leaves(params)]
  v = [np.zeros_like(x) for x in theta]
  s = [np.zeros_like(x) for x in theta]
  for n in range(50):
    grads = tree(1000 + n)
    noise = tree(2000 + n)
    stale = jax.tree.map(lambda p, e: p + 0.1 * e, params, noise)
    updates, state = update(grads, state, params, stale_params=stale)
    params = optax.apply_updates(params, updates)
    g = [np.asarray(x) for x in jax.tree.leaves(grads)]
    gaps = [
      np.abs(a - np.asarray(b))
      for a, b in zip(theta, jax.tree.leaves(stale), strict=True)
    ]
    penalties = []
    for i in range(len(theta)):
      big_g = np.ones_like(theta[i])
      if n > 0:
        c = rate * (np.sqrt(s[i] / (1 - decay**n)) + eps)
        big_g = 1 + gaps[i] / c
      penalties.append(big_g)
      v[i] = momentum * v[i] + (g[i] + wd * theta[i]) / big_g
      s[i] = decay * s[i] + (1 - decay) * v[i] ** 2
      theta[i] = theta[i] - rate * v[i]
    for ours, hand in zip(jax.tree.leaves(params), theta, strict=True):
      np.testing.assert_allclose(ours, hand, rtol=1e-9, atol=1e-10)
    seen = ga_jax.gap_metrics(state)
    every = np.concatenate([x.ravel() for x in penalties])
    gap = np.concatenate([x.ravel() for x in gaps])
    np.testing.assert_allclose(seen.mean_penalty, every.mean(), rtol=1e-9)
    np.testing.assert_allclose(seen.max_penalty, every.max(), rtol=1e-9)
    np.testing.assert_allclose(seen.mean_gap, np.sqrt((gap**2).mean()))


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
  'make',
  [
    ga_jax.gap_aware,
    ga_jax.gap_aware_adam,
    lambda rate: ga_jax.gap_aware(rate, granularity='global'),
    lambda rate: optax.chain(ga_jax.penalize_gap(), optax.sgd(rate)),
    lambda rate: ga_jax.rules.dana_ga(rate, 2),
  ],
)
@pytest.mark.parametrize('grads_are', ['zero', 'ones'])
def test_no_nan_at_a_rate_of_zero_or_without_a_gradient(make, grads_are):
  warmup = optax.linear_schedule(0.0, 0.1, 3)
  opt = make(warmup)
  params = {'a': jnp.ones(3), 'b': jnp.zeros(())}
  grads = jax.tree.map(
    jnp.zeros_like if grads_are == 'zero' else jnp.ones_like, params
  )
  with jax.debug_nans(True), jax.debug_infs(True):
    state = opt.init(params)
    update = jax.jit(opt.update)
    for n in range(6):
      stale = jax.tree.map(lambda p: p - 0.5, params)
      updates, state = update(
        grads,
        state,
        params,
        stale_params=stale,
        staleness=jnp.int32(n % 3),
        worker_id=jnp.int32(n % 2),
      )
      params = optax.apply_updates(params, updates)
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params))


@pytest.mark.optax_promotes
def test_penalty_relaxes_when_the_learning_rate_decays():
  """C keeps the peak, so the same relative gap weighs less later on."""
  opt = ga_jax.gap_aware(optax.piecewise_constant_schedule(0.1, {50: 0.01}))
  params, state = jnp.ones(4), None
  state = opt.init(params)
  seen = []
  for n in range(100):
    rate = 0.1 if n < 50 else 0.01
    stale = params + 5 * rate  # five updates of gradient one
    updates, state = opt.update(
      jnp.ones(4), state, params, stale_params=stale, staleness=jnp.int32(5)
    )
    params = optax.apply_updates(params, updates)
    seen.append(float(ga_jax.gap_metrics(state).mean_penalty))
  assert seen[99] < 1.2 < seen[49]


@pytest.mark.optax_promotes
def test_a_parameter_without_gradient_keeps_its_decoupled_decay():
  opt = ga_jax.gap_aware_adam(0.01, weight_decay=0.1)
  params = jnp.array([1.0, 1.0])
  grads = jnp.array([1.0, 0.0])

  @jax.jit
  def arrive(params, state, stale):
    updates, state = opt.update(grads, state, params, stale_params=stale)
    return optax.apply_updates(params, updates), state

  state, history = opt.init(params), [params]
  for n in range(200):
    params, state = arrive(params, state, history[max(0, n - 4)])
    history.append(params)
  # Undisturbed decay would leave (1 − 0.001)^200 = 0.82.
  assert 0.8 < float(params[1]) < 0.97
  assert float(ga_jax.gap_metrics(state).max_penalty) < 100


@pytest.mark.optax_promotes
def test_decoupled_decay_follows_its_mask(x64):
  del x64
  params = {'w': jnp.ones(2), 'b': jnp.ones(2)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  opt = ga_jax.gap_aware_adam(
    0.1, weight_decay=0.5, weight_decay_mask={'w': True, 'b': False}
  )
  updates, _ = opt.update(zeros, opt.init(params), params, stale_params=params)
  np.testing.assert_allclose(updates['w'], -0.05)
  np.testing.assert_allclose(updates['b'], 0.0)


def test_state_is_float32_for_bfloat16_parameters():
  params = jnp.ones(3, jnp.bfloat16)
  opt = ga_jax.scale_by_gap(optax.trace(0.9), max_learning_rate=0.1)
  state = opt.init(params)
  for _ in range(20):
    _, state = opt.update(params, state, params, stale_params=params)
  assert state.second_moment.dtype == jnp.float32
  moved = float(state.second_moment[0])
  assert moved > 0.5  # in bfloat16 it would have stalled near its first values


@pytest.mark.parametrize(
  ('stale', 'leaf'),
  [
    ({'a': jnp.ones(3)}, r"\['b'\]"),
    ({'a': jnp.ones(2), 'b': jnp.ones(())}, r"\['a'\].*\(3,\).*\(2,\)"),
    ({'a': jnp.ones(3), 'b': jnp.ones(()), 'c': jnp.ones(())}, r"\['c'\]"),
  ],
)
def test_stale_parameters_of_another_tree_are_refused_by_leaf(stale, leaf):
  params = {'a': jnp.ones(3), 'b': jnp.ones(())}
  for opt in (ga_jax.gap_aware(0.1), ga_jax.rules.dc_asgd(0.1)):
    with pytest.raises(ValueError, match=leaf):
      opt.update(params, opt.init(params), params, stale_params=stale)


def test_masked_and_partition_give_the_rule_its_own_parameters():
  params = {'a': jnp.ones(3), 'b': jnp.ones(3)}
  stale = jax.tree.map(lambda p: p - 0.3, params)
  extra = {'stale_params': stale, 'staleness': jnp.int32(2)}
  alone = ga_jax.gap_aware(0.1)
  masked = optax.masked(
    ga_jax.gap_aware(0.1),
    {'a': True, 'b': False},
    mask_compatible_extra_args=True,
  )
  split = optax.partition(
    {'ga': ga_jax.gap_aware(0.1), 'sgd': optax.sgd(0.5)},
    {'a': 'ga', 'b': 'sgd'},
    mask_compatible_extra_args=True,
  )
  states = [opt.init(params) for opt in (masked, split)]
  only, state = {'a': params['a']}, alone.init({'a': params['a']})
  for _ in range(3):
    expected, state = alone.update(
      only, state, only, **extra | {'stale_params': {'a': stale['a']}}
    )
    for i, opt in enumerate((masked, split)):
      updates, states[i] = jax.jit(opt.update)(
        params, states[i], params, **extra
      )
      assert cases.distance(updates['a'], expected['a']) < 1e-6
      rest = params['b'] if opt is masked else -0.5 * params['b']
      np.testing.assert_allclose(updates['b'], rest)
  opt = optax.masked(ga_jax.gap_aware(0.1), {'a': True, 'b': False})
  state = opt.init(params)
  with pytest.raises(ValueError, match='mask_compatible_extra_args'):
    opt.update(params, state, params, **extra)


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
  ('factory', 'static'),
  [
    (ga_jax.gap_aware, ('weight_decay_mask',)),
    pytest.param(
      ga_jax.gap_aware_adam, ('weight_decay_mask',), marks=pytest.mark.slow
    ),
    (ga_jax.penalize_gap, ()),
  ],
)
def test_inject_hyperparams_gives_the_updates_of_the_rule(factory, static):
  rate = () if factory is ga_jax.penalize_gap else (0.1,)
  plain = factory(*rate)
  injected = optax.inject_hyperparams(factory, static_args=static)(*rate)
  params = tree(0, 'float32')
  a, b = plain.init(params), injected.init(params)
  for n in range(3):
    stale = jax.tree.map(lambda p: p - 0.1, params)
    ua, a = jax.jit(plain.update)(
      tree(n, 'float32'), a, params, stale_params=stale
    )
    ub, b = jax.jit(injected.update)(
      tree(n, 'float32'), b, params, stale_params=stale
    )
    assert cases.distance(ua, ub) < 1e-5
  assert jax.tree.structure(b.inner_state) == jax.tree.structure(a)
  assert cases.distance(a, b.inner_state) < 1e-5


def test_multi_steps_uses_each_mini_steps_own_stale_parameters(x64):
  del x64
  rule = ga_jax.gap_aware(0.1)
  opt = ga_jax.multi_steps(rule, every_k=2)
  params = tree(0)
  state, inner = opt.init(params), rule.init(params)
  update, correct, step = map(jax.jit, (opt.update, rule.correct, rule.step))
  for n in range(3):
    grads = [tree(10 * n + i) for i in range(2)]
    stales = [jax.tree.map(lambda p, d=d: p - d, params) for d in (0.05, 0.4)]
    first, state = update(grads[0], state, params, stale_params=stales[0])
    assert not cases.flat(first).any()
    second, state = update(grads[1], state, params, stale_params=stales[1])
    corrected = []
    for g, stale in zip(grads, stales, strict=True):
      c, inner = correct(g, inner, params, stale_params=stale)
      corrected.append(c)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *corrected)
    expected, inner = step(mean, inner, params)
    assert cases.distance(second, expected) < 1e-12
    params = optax.apply_updates(params, second)


def test_multi_steps_accumulates_bfloat16_in_float32():
  opt = ga_jax.multi_steps(optax.sgd(1.0), every_k=256)
  params = jnp.zeros(1, jnp.bfloat16)
  state = opt.init(params)
  update = jax.jit(opt.update)
  for i in range(256):
    grads = jnp.full(1, 1.0 + i / 255, jnp.bfloat16)
    updates, state = update(grads, state, params)
  np.testing.assert_allclose(float(updates[0]), -1.5, rtol=0.01)


@pytest.mark.optax_promotes
def test_multi_steps_of_one_is_the_rule_itself():
  params = tree(0, 'float32')
  rule = ga_jax.gap_aware_adam(0.1, weight_decay=0.1)
  opt = ga_jax.multi_steps(rule, every_k=1)
  a, b = rule.init(params), opt.init(params)
  update, outer = jax.jit(rule.update), jax.jit(opt.update)
  for _ in range(3):
    stale = jax.tree.map(lambda p: p - 0.1, params)
    ua, a = update(params, a, params, stale_params=stale)
    ub, b = outer(params, b, params, stale_params=stale)
    assert cases.distance(ub, ua) < 1e-6


@pytest.mark.optax_promotes
def test_penalize_gap_counts_movements_only():
  """In front of optax.MultiSteps mini-steps do not move the parameters."""
  link = ga_jax.penalize_gap()
  opt = optax.chain(link, optax.MultiSteps(optax.sgd(0.1), 3))
  params = jnp.ones(4)
  state = opt.init(params)
  for _ in range(10):
    updates, state = opt.update(jnp.ones(4), state, params, stale_params=params)
    params = optax.apply_updates(params, updates)
  assert int(state[0].count) == 3
  np.testing.assert_allclose(state[0].scale, 0.1, rtol=1e-5)


def test_penalize_gap_by_hand(x64):
  del x64
  link = ga_jax.penalize_gap(decay=0.9)
  positions = [1.0, 0.8, 0.75, 0.75, 0.2]
  state = link.init(jnp.asarray(1.0))
  m, n, scale = 0.0, 0, 0.0
  for i, position in enumerate(positions):
    g, state = link.update(
      jnp.asarray(2.0),
      state,
      jnp.asarray(position),
      stale_params=jnp.asarray(position + 0.3),
    )
    moved = position - positions[i - 1] if i else 0.0
    if moved:
      m, n = 0.9 * m + 0.1 * moved**2, n + 1
      scale = max(scale, np.sqrt(m / (1 - 0.9**n)))
    expected = 2.0 / (1 + 0.3 / scale) if n else 2.0
    np.testing.assert_allclose(g, expected, rtol=1e-12)


def test_sharded_parameters_keep_their_sharding():
  mesh = jax.make_mesh((2,), ('x',), (jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.P('x'))
  params = jax.device_put(jnp.arange(8.0), sharding)
  opt = ga_jax.gap_aware(0.1)
  state = jax.jit(opt.init)(params)
  update = jax.jit(opt.update)
  for _ in range(2):
    updates, state = update(params, state, params, stale_params=params - 0.1)
  alone = opt.init(jnp.arange(8.0))
  for _ in range(2):
    expected, alone = opt.update(
      jnp.arange(8.0),
      alone,
      jnp.arange(8.0),
      stale_params=jnp.arange(8.0) - 0.1,
    )
  assert updates.sharding.is_equivalent_to(sharding, 1)
  assert state[1].second_moment.sharding.is_equivalent_to(sharding, 1)
  assert cases.distance(updates, expected) < 1e-6


def test_gap_metrics_stay_on_the_device():
  opt = ga_jax.gap_aware(0.1)
  params = jnp.ones(3)

  @jax.jit
  def run(state):
    _, state = opt.update(params, state, params, stale_params=params)
    return ga_jax.gap_metrics(state).mean_gap

  assert float(run(opt.init(params))) == 0.0
  with pytest.raises(ValueError, match='no gap-aware link'):
    ga_jax.gap_metrics(optax.sgd(0.1).init(params))


# Several gap-aware links.

SIZES = {'body': (3, 4), 'head': (5,), 'scale': ()}
RATES = {'slow': 0.1, 'fast': 0.5}
LABELS = {'body': 'slow', 'head': 'fast', 'scale': 'slow'}
DECAY, EPS = 0.9, 1e-3


def grouped(**more):
  """GA at two rates, each for some of the leaves."""
  groups = {
    label: ga_jax.gap_aware(rate, momentum=0.0, decay=DECAY, eps=EPS)
    for label, rate in RATES.items()
  }
  return ga_jax.lift(
    optax.partition({**groups, **more}, LABELS, mask_compatible_extra_args=True)
  )


def drawn(seed):
  rng = np.random.default_rng(seed)
  return {k: rng.normal(size=size) for k, size in SIZES.items()}


def by_hand(distance, first_grads):
  """Of the second gradient, in float64: (gap², G) of every parameter.

  After one gradient g, s / (1 - Γ) is g², so C = η (|g| + ε) and
  G = 1 + |θ - θs| / C.
  """
  squares, penalties = {}, {}
  for name, label in LABELS.items():
    c = RATES[label] * (np.abs(first_grads[name]) + EPS)
    squares[name] = distance[name] ** 2
    penalties[name] = 1 + np.abs(distance[name]) / c
  return squares, penalties


def of_leaves(trees, names):
  return np.concatenate([np.ravel(trees[name]) for name in names])


def after_two(rule, distance):
  """The state after a fresh gradient, and one that is `distance` late."""
  narrow = functools.partial(jax.tree.map, jnp.float32)
  params, first, second = map(narrow, (drawn(1), drawn(2), drawn(3)))
  stale = jax.tree.map(lambda p, d: p - jnp.float32(d), params, distance)
  update, state = jax.jit(rule.update), jax.jit(rule.init)(params)
  _, state = update(first, state, params, stale_params=params)
  _, state = update(second, state, params, stale_params=stale)
  return state


def test_gap_metrics_of_groups_are_those_of_all_their_parameters():
  distance = drawn(4)
  state = after_two(grouped(), distance)
  squares, penalties = by_hand(distance, drawn(2))
  seen = ga_jax.gap_metrics(state)
  everything = of_leaves(penalties, SIZES)
  assert len(everything) == 18
  np.testing.assert_allclose(
    seen.mean_gap, np.sqrt(of_leaves(squares, SIZES).mean()), rtol=1e-6
  )
  np.testing.assert_allclose(seen.mean_penalty, everything.mean(), rtol=1e-6)
  np.testing.assert_allclose(seen.max_penalty, everything.max(), rtol=1e-5)
  groups = ga_jax.gap_metrics_by_group(state)
  assert set(groups) == set(RATES)
  for label, one in groups.items():
    own = [name for name in SIZES if LABELS[name] == label]
    np.testing.assert_allclose(
      one.mean_gap, np.sqrt(of_leaves(squares, own).mean()), rtol=1e-6
    )
    np.testing.assert_allclose(
      one.mean_penalty, of_leaves(penalties, own).mean(), rtol=1e-6
    )
    np.testing.assert_allclose(
      one.max_penalty, of_leaves(penalties, own).max(), rtol=1e-5
    )


def test_metrics_of_the_server_are_of_all_parameters():
  # The leaf that no link penalises counts as 1.
  labels = {**LABELS, 'body': 'plain'}
  groups = {
    'plain': optax.sgd(0.1),
    'slow': ga_jax.gap_aware(0.1, momentum=0.0, decay=DECAY, eps=EPS),
    'fast': rules.dynsgd(0.1),
  }
  rule = ga_jax.lift(
    optax.partition(groups, labels, mask_compatible_extra_args=True)
  )
  params, first, second = (
    jax.tree.map(jnp.float32, drawn(seed)) for seed in (1, 2, 3)
  )
  distance = drawn(4)
  zero, two = jnp.int32(0), jnp.int32(2)
  arrival = update_lib.Arrival(
    first,
    (),
    update_lib.Snapshot(params, ()),
    zero,
    zero,
    jnp.float32(1),
    zero + 1,
  )
  apply = jax.jit(
    lambda *given: update_lib.apply(rule, *given, statistics.NOTHING)
  )
  state, _ = apply(jax.jit(lambda p: update_lib.init(rule, p))(params), arrival)
  stale = jax.tree.map(lambda p, d: p - jnp.float32(d), state.params, distance)
  arrival = arrival._replace(
    grads=second, sent=update_lib.Snapshot(stale, ()), staleness=two
  )
  _, seen = apply(state, arrival)
  squares, penalties = by_hand(distance, drawn(2))
  penalties |= {'body': np.ones(SIZES['body']), 'head': np.full(5, 3.0)}
  everything = of_leaves(penalties, SIZES)
  np.testing.assert_allclose(seen.mean_penalty, everything.mean(), rtol=1e-6)
  np.testing.assert_allclose(seen.max_penalty, everything.max(), rtol=1e-5)
  np.testing.assert_allclose(
    seen.gap, np.sqrt(of_leaves(squares, SIZES).mean()), rtol=1e-5
  )


def test_penalties_of_chained_links_multiply_and_are_numbered():
  rule = ga_jax.chain(
    ga_jax.penalize_gap(decay=DECAY),
    ga_jax.gap_aware(0.1, momentum=0.0, decay=DECAY, eps=EPS),
  )
  state = after_two(rule, drawn(4))
  groups = ga_jax.gap_metrics_by_group(state)
  assert list(groups) == ['0', '1']
  seen = ga_jax.gap_metrics(state)
  first, second = groups.values()
  product = float(first.mean_penalty) * float(second.mean_penalty)
  assert float(seen.mean_penalty) == pytest.approx(product, rel=1e-6)
  assert float(seen.mean_gap) == pytest.approx(float(first.mean_gap), rel=1e-6)


def test_the_names_of_groups_are_their_place_in_the_rule():
  inner = optax.partition(
    {'a': ga_jax.gap_aware(0.1), 'b': optax.sgd(0.1)},
    {'body': 'a', 'head': 'a', 'scale': 'b'},
    mask_compatible_extra_args=True,
  )
  outer = optax.partition(
    {
      'inner': inner,
      'twice': optax.chain(ga_jax.penalize_gap(), ga_jax.gap_aware(0.1)),
    },
    {'body': 'inner', 'head': 'twice', 'scale': 'inner'},
    mask_compatible_extra_args=True,
  )
  state = outer.init(jax.tree.map(jnp.float32, drawn(0)))
  assert set(ga_jax.gap_metrics_by_group(state)) == {
    'inner/a',
    'twice/0',
    'twice/1',
  }
  assert set(ga_jax.gap_metrics_by_group(ga_jax.gap_aware(1.0).init(1.0))) == {
    '0'
  }


def test_gap_metrics_refuse_links_that_do_not_say_what_they_divide():
  own = ga_jax.GapMetrics(
    jnp.ones([]), penalties_lib.Penalty(jnp.ones([]), jnp.ones([]))
  )
  with pytest.raises(ValueError, match='ask gap_metrics_by_group'):
    ga_jax.gap_metrics((own, ga_jax.gap_aware(0.1).init(jnp.ones(2))))
  assert ga_jax.gap_metrics((own,)) is own
