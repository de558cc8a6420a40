"""The common suite: every rule is a sound optax transformation."""

import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import ga_jax
from experiments.running import compilation
from ga_jax import rules
from ga_jax.server import update as update_lib
from tests import cases, method_cases

pytestmark = pytest.mark.usefixtures('quick_compiler')

every_rule = pytest.mark.parametrize('name', cases.EVERY_RULE)
# Where each rule has a program of its own to compile: the others are slow.
each_kind_of_rule = pytest.mark.parametrize('name', cases.EACH_KIND_OF_RULE)
RATE = method_cases.RATE
BY_DEFAULT = [(name, 'random') for name in cases.OF_ITS_OWN_KIND]


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
    'b': (jnp.asarray(0.5, dtype),),
  }


@functools.cache
def jitted(name):
  """A rule at rate 0.1 and its update, compiled once for all tests."""
  rule = cases.RULES[name](0.1)
  return rule, jax.jit(rule.update)


def after_one_update(name):
  """float32 parameters and the state that a rule then has."""
  params = params_of('float32')
  rule, update = jitted(name)
  _, state = update(params, rule.init(params), params, **extras(params))
  return params, state


@pytest.mark.optax_promotes
@pytest.mark.parametrize('name', method_cases.RULES)
def test_equals_the_formula_by_hand(name, x64):
  del x64
  rng = np.random.default_rng(1)
  theta = rng.normal(size=7)

  def rate(count):  # a warm-up and a decay
    return 0.02 * min(count + 1, 10) / 10 * (0.5 if count >= 20 else 1.0)

  oracle = method_cases.RULES[name].oracle(theta, rate, 0.9)
  rates = jnp.array([rate(i) for i in range(30)])
  rule = cases.RULES[name](lambda count: rates[count])
  params = jnp.asarray(theta)
  state = rule.init(params)

  @jax.jit
  def arrive(g, state, params, **extra):
    updates, state = rule.update(g, state, params, **extra)
    params = optax.apply_updates(params, updates)
    return params, state, rule.lookahead(params, state)

  ahead = rule.lookahead(params, state)
  held = {w: (0, ahead, oracle.sent()) for w in range(3)}
  for step in range(30):
    worker = int(rng.integers(0, 3))
    version, sent, oracle_sent = held[worker]
    np.testing.assert_allclose(sent, oracle_sent, rtol=1e-9, atol=1e-12)
    g = np.cos(oracle_sent * (1 + worker)) + 0.1 * rng.normal(size=7)
    staleness = step - version
    params, state, ahead = arrive(
      g,
      state,
      params,
      stale_params=sent,
      staleness=np.int32(staleness),
      worker_id=np.int32(worker),
    )
    oracle.arrive(g, oracle_sent, staleness, worker)
    np.testing.assert_allclose(params, oracle.theta, rtol=1e-9, atol=1e-12)
    held[worker] = (step + 1, ahead, oracle.sent())


STALENESSES = [0, 3, 'random']


def delays(staleness, steps):
  """The staleness of every update, as a trace could have it."""
  if staleness == 'random':
    staleness = np.random.default_rng(0).integers(0, 4, steps)
  return np.minimum(staleness, np.arange(steps)).astype(np.int32)


def trajectory(rule, gradient, start, steps):
  """Runs a rule on late gradients: `run(delays) -> params`, compiled.

  A gradient is taken at what was sent `delays` updates ago; workers take turns.
  """

  def advance(carry, x):
    params, state, history = carry  # the last four points sent, newest first
    tau, worker = x
    sent = history[tau]
    updates, state = rule.update(
      gradient(sent),
      state,
      params,
      stale_params=sent,
      staleness=tau,
      worker_id=worker,
    )
    params = optax.apply_updates(params, updates)
    newest = rule.lookahead(params, state)
    return (params, state, jnp.stack([newest, *history[:3]])), None

  @jax.jit
  def run(tau):
    state = rule.init(start)
    history = jnp.stack([rule.lookahead(start, state)] * 4)
    workers = jnp.arange(steps, dtype=jnp.int32) % cases.WORKERS
    carry, _ = jax.lax.scan(advance, (start, state, history), (tau, workers))
    return carry[0]

  return run


@functools.cache
def on_a_quadratic(name, steps):
  target, scales = jnp.array([1.0, -2.0, 0.5]), jnp.array([1.0, 0.3, 2.0])
  run = trajectory(
    cases.RULES[name](0.01),
    lambda at: scales * (at - target),
    jnp.zeros(3),
    steps,
  )
  return run, target


@every_rule
@pytest.mark.parametrize('staleness', STALENESSES)
def test_converges_on_a_quadratic(name, staleness):
  run, target = on_a_quadratic(name, 3000)
  # Weight decay moves the optimum by at most 1e-2 / 0.3 of its size. Adam's
  # steps do not shrink with the gradient: late ones end in a small cycle.
  near = 0.1 if name == 'adam' else 0.08
  np.testing.assert_allclose(run(delays(staleness, 3000)), target, atol=near)


@functools.cache
def logistic_regression():
  """A loss over three weights, and the smallest value it has."""
  rng = np.random.default_rng(5)
  x = np.concatenate([rng.normal(size=(60, 2)), np.ones((60, 1))], axis=1)
  y = np.sign(x @ [1.0, -0.5, 0.3] + rng.logistic(size=60))  # not separable

  def loss(w):
    return jnp.mean(jax.nn.softplus(-jnp.float32(y) * (jnp.float32(x) @ w)))

  w = np.zeros(3)
  for _ in range(20):  # Newton's method, by hand
    p = 1 / (1 + np.exp(y * (x @ w)))
    hessian = (x * (p * (1 - p))[:, None]).T @ x
    w = w + np.linalg.solve(hessian, (y * p) @ x)
  return loss, np.mean(np.log1p(np.exp(-y * (x @ w))))


@functools.cache
def on_a_logistic_regression(name, steps):
  loss, _ = logistic_regression()
  rule = cases.RULES[name](0.05)
  return trajectory(rule, jax.grad(loss), jnp.zeros(3), steps)


@pytest.mark.parametrize(
  ('name', 'staleness'),
  [
    pytest.param(
      name,
      staleness,
      marks=[
        *([pytest.mark.optax_promotes] if name in cases.ADAMS else []),
        *([] if (name, staleness) in BY_DEFAULT else [pytest.mark.slow]),
      ],
    )
    for name in cases.RULES
    for staleness in (0, 3, 'random')
  ],
)
def test_converges_on_a_logistic_regression(name, staleness):
  loss, smallest = logistic_regression()
  params = on_a_logistic_regression(name, 1000)(delays(staleness, 1000))
  # Starts 0.22 above; Adam's decay of 1e-2 alone leaves it 1e-3 above.
  assert float(loss(params)) < smallest + 2e-3


@every_rule
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
def test_keeps_dtype_and_tree(name, dtype):
  with jax.enable_x64(dtype == 'float64'):
    params = params_of(dtype)
    rule = cases.RULES[name](0.1)
    state = rule.init(params)

    def run(state):
      updates, new = rule.update(params, state, params, **extras(params))
      return updates, new, rule.lookahead(params, new)

    updates, new, ahead = jax.eval_shape(run, state)
    spec = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == spec
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ahead) == spec
    before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == before


@each_kind_of_rule
def test_is_finite_in_bfloat16(name):
  params = params_of('bfloat16')
  rule = cases.RULES[name](0.1)

  @jax.jit
  def run(params, state):
    updates, state = rule.update(params, state, params, **extras(params))
    return updates, state, rule.lookahead(params, state)

  state = rule.init(params)
  for _ in range(3):
    updates, state, ahead = run(params, state)
  assert np.isfinite(cases.flat((updates, state, ahead))).all()


@pytest.mark.parametrize(
  'name', ['dc_asgd_a', 'smega2', 'ormo', 'delayed_nesterov']
)
def test_sums_are_float32_for_bfloat16_parameters(name):
  # Without momentum there is no optax.trace, which keeps the parameters' dtype.
  state = registered(name, momentum=0.0).init(params_of('bfloat16'))
  assert {x.dtype.name for x in jax.tree.leaves(state)} <= {'float32', 'int32'}


@each_kind_of_rule
def test_second_call_compiles_nothing(name):
  params, state = after_one_update(name)
  _, update = jitted(name)
  before = compilation.so_far()
  for _ in range(2):
    _, state = update(params, state, params, **extras(params))
  assert compilation.so_far().since(before).programs == 0


@every_rule
def test_unknown_extra_arguments_are_tolerated(name):
  params = params_of('float32')
  rule = cases.RULES[name](0.1)
  args = (params, rule.init(params), params)

  def program(**more):
    given = extras(params) | more
    return str(jax.make_jaxpr(lambda: rule.update(*args, **given))())

  assert program(loss=1.0, nonsense='x') == program()


@each_kind_of_rule
def test_state_pickles_and_maps(name):
  _, state = after_one_update(name)
  rule, _ = jitted(name)
  again = pickle.loads(pickle.dumps(jax.device_get(state)))
  assert cases.same_tree(again, state)
  doubled = optax.tree.map_params(rule, lambda x: 2 * x, state)
  before = sum(np.abs(cases.flat(state)))
  assert jax.tree.structure(doubled) == jax.tree.structure(state)
  # Everything that is a tree like the parameters was mapped, and is not zero.
  grows = sum(np.abs(cases.flat(doubled))) - before
  assert grows > 0.1


@each_kind_of_rule
def test_the_state_can_be_saved_by_orbax(name, tmp_path):
  _, state = after_one_update(name)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', state)
    checkpointer.wait_until_finished()
    like = jax.tree.map(jnp.zeros_like, state)
    again = checkpointer.restore(tmp_path / 'state', like)
  assert cases.same_tree(again, state)


@each_kind_of_rule
def test_stands_in_an_optax_chain(name):
  params = params_of('float32')
  rule = cases.RULES[name](0.1)
  links = optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.3)
  chained, ours = optax.chain(*links, rule), ga_jax.chain(*links, rule)
  a, b = chained.init(params), ours.init(params)
  for step in range(3):
    ua, a = chained.update(params, a, params, **extras(params, step, step))
    ub, b = ours.update(params, b, params, **extras(params, step, step))
    assert cases.same_bits(ua, ub)
  norm = np.linalg.norm(cases.flat(params))
  grads = jax.tree.map(lambda p: p * jnp.float32(0.5 / norm + 0.3), params)
  first, _ = rule.update(grads, rule.init(params), params, **extras(params))
  whole, _ = chained.update(
    params, chained.init(params), params, **extras(params)
  )
  assert cases.distance(first, whole) < 1e-6


@each_kind_of_rule
def test_vmapped_updates_equal_single_ones(name):
  params = params_of('float32')
  rule, update = jitted(name)
  stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)

  @jax.jit
  @jax.vmap
  def twice(p):
    _, state = rule.update(p, rule.init(p), p, **extras(p))
    updates, _ = rule.update(p, state, p, **extras(p))
    return updates

  _, state = after_one_update(name)
  alone, _ = update(params, state, params, **extras(params))
  first = jax.tree.map(lambda x: x[0], twice(stack))
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


def takes(argument):
  """Names of the registered rules that take an argument."""
  return [
    name
    for name, make in rules.RULES.items()
    if argument in inspect.signature(make).parameters
  ]


def registered(name, rate=0.1, **arguments):
  """A registered rule, with workers where it asks for them."""
  if name in takes('num_workers'):
    arguments = {'num_workers': cases.WORKERS} | arguments
  return rules.RULES[name](rate, **arguments)


@pytest.mark.parametrize('name', takes('momentum'))
def test_a_traced_momentum_equals_a_fixed_one_zero_too(name):
  params = params_of('float32')

  def twice(momentum):
    rule = registered(name, momentum=momentum)
    _, state = rule.update(params, rule.init(params), params, **extras(params))
    updates, state = rule.update(params, state, params, **extras(params))
    return updates, rule.lookahead(params, state)

  traced = jax.jit(twice)
  for momentum in (0.0, 0.9):
    fixed = twice(momentum)
    assert cases.distance(traced(jnp.float32(momentum)), fixed) < 1e-6


@every_rule
def test_a_rule_needs_what_its_case_says(name):
  """A missing argument is a TypeError that names it."""
  params = params_of('float32')
  rule = cases.RULES[name](0.1)
  state = rule.init(params)
  for missing in extras(params):
    given = {k: v for k, v in extras(params).items() if k != missing}
    if missing in method_cases.RULES[name].needs:
      with pytest.raises(TypeError, match=missing):
        rule.update(params, state, params, **given)
    else:
      rule.update(params, state, params, **given)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: rules.asgd(-1.0), 'learning_rate must be finite and >= 0'),
    (lambda: rules.asgd(0.1, momentum=1.0), 'momentum must be'),
    (lambda: rules.asgd(0.1, weight_decay=float('nan')), 'weight_decay must'),
    (lambda: rules.ga(0.1, decay=1.0), 'decay must be finite and > 0'),
    (lambda: rules.ga(0.1, eps=0.0), 'eps must be finite and > 0'),
    (lambda: rules.ga(0.1, granularity='layer'), "'parameter' or"),
    (
      lambda: rules.dc_asgd(0.1, dc_lambda=-1.0),
      'dc_lambda must be finite and >= 0',
    ),
    (
      lambda: rules.multi_asgd(0.1, 0),
      'num_workers must be an integer of at least 1',
    ),
    (lambda: rules.multi_steps(rules.asgd(0.1), 0), 'every_k must be'),
  ],
)
def test_bad_rule_arguments_are_refused_by_name(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize(
  ('argument', 'bad'),
  [
    ('num_workers', 0),
    ('momentum', 1.0),
    ('weight_decay', -1.0),
    ('dc_lambda', -1.0),
    ('dc_decay', 1.0),
    ('staleness_exponent', -0.5),
    ('horizon', -1.0),
  ],
)
def test_every_rule_checks_its_arguments(argument, bad):
  names = takes(argument)
  assert names
  for name in names:
    with pytest.raises(ValueError, match=f'{argument} must be'):
      registered(name, **{argument: bad})


def test_every_rule_checks_its_learning_rate():
  for name in rules.RULES:
    with pytest.raises(ValueError, match='learning_rate must be'):
      registered(name, -0.1)


def gradient_at(theta):
  """Of a loss that is not quadratic."""
  scales = jnp.linspace(0.1, 2.0, 6, dtype=theta.dtype)
  return scales * theta + jnp.sin(3 * theta)


def sent_to(rule, workers):
  """What the workers that submit in turn `workers` had been sent; [steps, 6].

  Every worker works on what it was sent after its last submission; nobody's
  gradient counts as late.
  """

  def advance(carry, worker):
    params, state, held = carry
    sent = held[worker]
    updates, state = rule.update(
      gradient_at(sent),
      state,
      params,
      stale_params=sent,
      staleness=jnp.int32(0),
      worker_id=worker,
    )
    params = optax.apply_updates(params, updates)
    ahead = rule.lookahead(params, state)
    return (params, state, held.at[worker].set(ahead)), sent

  start = jnp.ones(6)
  state = rule.init(start)
  held = jnp.stack([rule.lookahead(start, state)] * cases.WORKERS)
  _, sent = jax.jit(lambda x: jax.lax.scan(advance, x, workers))(
    (start, state, held)
  )
  return sent


@functools.cache
def plain_trajectory(optimizer, steps):
  return sent_to(ga_jax.lift(optimizer), jnp.zeros(steps, jnp.int32))


@pytest.mark.optax_promotes
@pytest.mark.parametrize('name', method_cases.RULES)
def test_one_worker_is_sent_a_plain_optimisers_trajectory(name, x64):
  del x64
  rule, plain = method_cases.RULES[name].alone
  alone = jnp.zeros(60, jnp.int32)
  ours, expected = sent_to(rule, alone), plain_trajectory(plain, len(alone))
  np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_workers_are_sent_the_same_by_dana_slim_as_by_dana_zero(x64):
  del x64
  workers = np.random.default_rng(2).integers(0, 3, 200).astype(np.int32)
  slim = sent_to(rules.dana_slim(RATE, 3), workers)
  zero = sent_to(rules.dana_zero(RATE, 3), workers)
  multi = sent_to(rules.multi_asgd(RATE, 3), workers)
  np.testing.assert_allclose(slim, zero, rtol=1e-9, atol=1e-9)
  assert float(jnp.abs(slim - multi).max()) > 1e-2


def test_dana_dc_without_lambda_is_dana_zero(x64):
  del x64
  workers = np.random.default_rng(2).integers(0, 3, 50).astype(np.int32)
  zero = sent_to(rules.dana_zero(RATE, 3), workers)
  without = sent_to(rules.dana_dc(RATE, 3, dc_lambda=0.0), workers)
  assert cases.same_bits(without, zero)
  assert not cases.same_bits(sent_to(rules.dana_dc(RATE, 3), workers), zero)


def arrivals(seed, number, workers):
  """An order in which gradients arrive: `(gradient, staleness)`, int32 each.

  Gradients are numbered in the order they were read in: the first `workers` at
  version 0, one more at every version after it.
  """
  rng = np.random.default_rng(seed)
  at_work, order, staleness = list(range(workers)), [], []
  for version in range(number):
    gradient = at_work.pop(int(rng.integers(len(at_work))))
    order.append(gradient)
    staleness.append(version - max(gradient - workers + 1, 0))
    if version + workers < number:
      at_work.append(version + workers)
  return np.int32(order), np.int32(staleness)


def end_states(rule, seeds, number=40, workers=4):
  """Parameters and state after the same gradients in different orders."""
  gradients = np.random.default_rng(9).normal(size=(number, 5))

  def advance(carry, x):
    params, state = carry
    gradient, tau = x
    updates, state = rule.update(gradient, state, params, staleness=tau)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def run(order, staleness):
    start = jnp.zeros(5)
    carry = start, rule.init(start)
    xs = jnp.asarray(gradients)[order], staleness
    return jax.lax.scan(advance, carry, xs)[0]

  orders = [arrivals(seed, number, workers) for seed in seeds]
  assert len({tuple(order) for order, _ in orders}) == len(seeds)
  return [cases.flat(run(*order)) for order in orders]


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_ormo_does_not_depend_on_the_order_of_arrival(momentum, x64):
  del x64
  first, *others = end_states(rules.ormo(0.1, 4, momentum), range(5))
  for other in others:
    assert np.abs(other - first).max() < 1e-12
  first, *others = end_states(rules.asgd(0.1, 0.9), range(5))
  for other in others:
    assert np.abs(other - first).max() > 1e-3


@every_rule
def test_a_round_is_averaged_where_the_case_says_so(name):
  rule = cases.RULES[name](0.1)
  assert rule.averages == method_cases.RULES[name].averages
  if rule.averages:
    update_lib.check_rule(rule, accumulates=True)
    return
  with pytest.raises(ValueError, match='cannot be averaged'):
    update_lib.check_rule(rule, accumulates=True)
  with pytest.raises(ValueError, match='multi_steps averages'):
    rules.multi_steps(rule, 2)


def test_a_round_has_no_more_workers_than_a_rule_has_buffers():
  with pytest.raises(ValueError, match='keeps 3 momentum buffers'):
    update_lib.check_rule(cases.RULES['dana_slim'](0.1), True, num_workers=4)


@pytest.mark.parametrize('name', ['dana_slim', 'ormo'])
def test_multi_steps_averages_corrected_gradients(name):
  """What is averaged is what `correct` made, one worker's each."""
  params = params_of('float32')
  rule = registered(name)
  steps = rules.multi_steps(rule, 2)
  inner, state = rule.init(params), steps.init(params)
  corrected = []
  for worker in range(2):
    extra = extras(params, worker, worker)
    updates, state = jax.jit(steps.update)(params, state, params, **extra)
    one, inner = rule.correct(params, inner, params, **extra)
    corrected.append(one)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *corrected)
  expected, _ = rule.step(mean, inner, params)
  assert cases.distance(updates, expected) < 1e-6


@every_rule
def test_a_hidden_look_ahead_is_refused(name):
  params, rule = params_of('float32'), cases.RULES[name](0.1)
  update_lib.init(ga_jax.chain(optax.clip(1.0), rule), params)
  for wrap in (
    optax.chain(optax.clip(1.0), rule),
    optax.apply_if_finite(rule, 2),
  ):
    hidden = ga_jax.lift(wrap)
    if not rule.looks_ahead:
      update_lib.init(hidden, params)
      continue
    with pytest.raises(ValueError, match=r'ga_jax\.chain'):
      update_lib.init(hidden, params)


@each_kind_of_rule
def test_turning_complex_parameters_turns_their_updates(name):
  """What is turned by i goes the same way, turned by i."""
  rule = cases.RULES[name](0.1)

  def of(turn):
    rng = np.random.default_rng(5)

    def draw():
      parts = rng.normal(size=(2, 4)).astype(np.float32)
      return {'p': jnp.asarray(turn * np.complex64(parts[0] + 1j * parts[1]))}

    params = draw()
    state = rule.init(params)
    for _ in range(3):
      stale_params = jax.tree.map(lambda p: p - 0.1 * turn, params)
      extra = {**extras(params), 'stale_params': stale_params}
      updates, state = rule.update(draw(), state, params, **extra)
      params = optax.apply_updates(params, updates)
    return params['p']

  np.testing.assert_allclose(of(1j), 1j * of(1), rtol=1e-5)
