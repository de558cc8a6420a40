"""Update kernels, interpreted on the CPU: the numbers of the formula."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.bench import updates
from ga_jax import rules
from ga_jax.kernels import fused, mosaic
from ga_jax.server import update
from tests import cases, method_cases

INTERPRETED = ['interpret-triton', 'interpret-mosaic']
SHAPES = {
  'nothing': (0,),
  'number': (),
  'one': (1,),
  'odd': (127,),
  'blocks': (2049,),
  'matrix': (300, 40),
  'filter': (3, 3, 5, 16),
  'rows': (4, 1, 7),
}
QUICK = [('ga', 'interpret-triton'), ('dana_ga', 'interpret-mosaic')]


def params_of(shapes, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  return {
    name: jnp.asarray(rng.normal(size=shape), dtype)
    for name, shape in shapes.items()
  }


trained = functools.partial(
  updates.of_a_server, num_workers=method_cases.WORKERS, in_place=True
)


def assert_close(found, expected, rtol, atol):
  for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(
      np.float64(one), np.float64(other), rtol=rtol, atol=atol
    )


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
  ('name', 'said'),
  [
    pair if pair in QUICK else pytest.param(*pair, marks=pytest.mark.slow)
    for pair in itertools.product(method_cases.RULES, INTERPRETED)
  ],
)
def test_fifty_updates_are_those_of_the_formula(monkeypatch, name, said):
  # At larger rates the path is chaotic: the formula in float32 is then ten
  # times as far from itself in float64 as from the kernels.
  rule, params = cases.RULES[name](0.005), params_of(SHAPES)
  monkeypatch.setenv(fused.VARIABLE, 'reference')
  expected = trained(rule, params, 50)
  monkeypatch.setenv(fused.VARIABLE, said)
  with jax.debug_nans(True):
    found = trained(rule, params, 50)
  assert_close(found, expected, 2e-4, 2e-5)


@pytest.mark.slow
@pytest.mark.optax_promotes
@pytest.mark.parametrize('said', INTERPRETED)
@pytest.mark.parametrize('name', ['ga', 'ga_adam', 'dana_ga'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_long_and_many_leaves(monkeypatch, name, said, dtype):
  shapes = {str(i): (1 + 3 * i,) for i in range(160)}
  params = params_of(shapes | {'long': (128 * 1024 + 1,)}, dtype)
  rule = cases.RULES[name](0.05)
  monkeypatch.setenv(fused.VARIABLE, 'reference')
  expected = trained(rule, params, 4)
  monkeypatch.setenv(fused.VARIABLE, said)
  tolerances = (2e-4, 2e-5) if dtype == jnp.float32 else (0.05, 0.05)
  assert_close(trained(rule, params, 4), expected, *tolerances)


@pytest.mark.parametrize(
  'said',
  [
    'interpret-triton',
    pytest.param('interpret-mosaic', marks=pytest.mark.slow),
  ],
)
def test_a_fresh_gradient_makes_the_update_of_optax(monkeypatch, said):
  monkeypatch.setenv(fused.VARIABLE, said)
  rule, sgd = rules.ga(0.1), optax.sgd(0.1, 0.9)
  params = plain = params_of(SHAPES)
  state, plain_state = rule.init(params), sgd.init(params)

  @jax.jit
  def update_ga(grads, state, params):
    return rule.update(grads, state, params, stale_params=params)

  update_sgd = jax.jit(sgd.update)
  for _ in range(4):
    grads = jax.tree.map(jnp.sin, params)
    updates, state = update_ga(grads, state, params)
    plain_updates, plain_state = update_sgd(grads, plain_state, plain)
    jax.tree.map(np.testing.assert_array_equal, updates, plain_updates)
    params = optax.apply_updates(params, updates)
    plain = optax.apply_updates(plain, plain_updates)
  assert rules.gap_metrics(state).max_penalty == 1


def groups_in(jaxpr, platform):
  """The kernels of the one call of `fused` in a jaxpr."""
  (eqn,) = (e for e in jaxpr.eqns if e.primitive.name == 'custom_jvp_call')
  (eqn,) = eqn.params['call_jaxpr'].eqns
  return fused.program(platform, **eqn.params).groups


def groups(name, platform, shapes):
  """The kernels of one arrival."""
  rule, params = cases.RULES[name](0.05), params_of(shapes)
  state = update.init(rule, params)

  def arrive(state):
    arrival = update.any_arrival(state)
    return update.apply(rule, state, arrival, lambda *args: args[0])

  return groups_in(jax.make_jaxpr(arrive)(state).jaxpr, platform)


@pytest.mark.optax_promotes
@pytest.mark.parametrize('name', ['asgd', 'ga', 'ga_adam', 'dana_ga'])
def test_every_leaf_has_a_kernel(name):
  large = {'matrix': (300, 40), 'filter': (3, 3, 64, 64)}
  for platform in 'cuda', 'tpu':
    assert len(groups(name, platform, large)) == 2
  small = {str(i): (50 + i % 3,) for i in range(20)}
  assert [len(g.members) for g in groups(name, 'cuda', small)] == [8, 8, 4]
  on_tpu = groups(name, 'tpu', small)  # rows of vectors share tiles there
  assert len(on_tpu) == (0 if name == 'dana_ga' else 20)


def test_a_kernel_reads_and_writes_each_array_once():
  (group,) = groups('ga', 'cuda', {'w': (300, 40)})
  (one,) = group.members
  assert len(one.arrays) == 5  # θ, θs, s, m, g
  assert len(one.outputs) == len(one.over) == 3  # θ, s, m in their places
  assert len(one.sums) == 3  # gap², gap / C and its largest
  (group,) = groups('dana_ga', 'cuda', {'w': (300, 40)})
  (one,) = group.members
  assert (len(one.arrays), len(one.buffers)) == (5, 1)  # θ, θs, s, S, g; v
  assert (len(one.outputs), len(one.writes)) == (3, 1)


def test_updates_are_left_to_who_applies_them():
  """They follow from the new momentum: a pass would write them for nothing."""
  rule, params = rules.ga(0.1), params_of({'w': (300, 40)})
  state = rule.init(params)
  jaxpr = jax.make_jaxpr(functools.partial(rule.update, stale_params=params))(
    params, state, params
  )
  (group,) = groups_in(jaxpr.jaxpr, 'cuda')
  (one,) = group.members
  assert (len(one.arrays), len(one.outputs), len(one.sums)) == (5, 2, 3)


@pytest.mark.parametrize(
  ('shape', 'axes'),
  [
    ((2048, 1000), (1, 0)),
    ((7, 7, 3, 64), (0, 2, 1, 3)),
    ((3, 3, 64, 64), (0, 1, 2, 3)),
    ((256, 64), (1, 0)),
    ((5, 7), (0, 1)),
    ((10, 64, 3), (0, 2, 1)),
    ((784, 300), (1, 0)),
    ((3, 3, 3, 16), (0, 1, 2, 3)),
  ],
)
def test_a_leaf_is_seen_as_the_compiler_of_the_tpu_lays_it_out(shape, axes):
  """As its compiler said for a parameter of this shape."""
  view = mosaic.view_of(shape)
  assert view.axes == axes
  if len(shape) > 2:
    assert all(
      b == n or b % unit == 0
      for b, n, unit in zip(view.block, view.shape, (1, 8, 128), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize('of', [jax.grad, jax.jacfwd])
def test_derivatives_are_those_of_the_formula(monkeypatch, of):
  rule, params = rules.ga(0.1), params_of({'w': (5, 3), 'b': (3,)})

  def loss(params, stale):
    now, state = params, rule.init(params)
    for _ in range(2):
      grads = jax.tree.map(jnp.sin, now)
      updates, state = rule.update(grads, state, now, stale_params=stale)
      now = optax.apply_updates(now, updates)
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(now))

  stale = jax.tree.map(lambda x: x + 0.1, params)
  monkeypatch.setenv(fused.VARIABLE, 'reference')
  expected = jax.jit(of(loss))(params, stale)
  monkeypatch.setenv(fused.VARIABLE, 'auto')
  found = jax.jit(of(loss))(params, stale)
  assert_close(found, expected, 1e-6, 1e-7)


def test_a_mapped_update_is_the_formula_mapped(monkeypatch):
  rule = rules.ga(0.1)
  params = params_of({'w': (4, 5, 3)})['w']

  def one(params, worker):
    state = rule.init(params)
    stale = params + worker
    return rule.update(jnp.sin(params), state, params, stale_params=stale)

  workers = jnp.arange(4.0)
  found = jax.jit(jax.vmap(one))(params, workers)
  monkeypatch.setenv(fused.VARIABLE, 'reference')
  assert_close(found, jax.jit(jax.vmap(one))(params, workers), 1e-6, 0)


@pytest.mark.parametrize('said', INTERPRETED)
def test_rows_are_written_one_after_the_other(monkeypatch, said):
  def two_rows(v, x, i):
    v = jax.lax.dynamic_update_index_in_dim(v, x + 1, i, 0)
    y = jax.lax.dynamic_index_in_dim(v, i + 1, 0, keepdims=False)
    v = jax.lax.dynamic_update_index_in_dim(v, y * x, i + 1, 0)
    return v, jnp.sum(x * y)

  v, x = params_of({'v': (4, 3, 5), 'x': (3, 5)}).values()
  expected = two_rows(v, x, jnp.int32(1))
  monkeypatch.setenv(fused.VARIABLE, said)
  found = jax.jit(functools.partial(fused.fused, two_rows))(v, x, jnp.int32(1))
  assert_close(found, expected, 1e-6, 1e-6)


def two_scalars(b, x, i, j):
  del b, i, j
  s = jnp.sum(x)
  factors = [
    jax.lax.cond(
      s > 0, jax.jit(lambda s, c=c: s * np.float32(c)), lambda s: s - 1, s
    )
    for c in (2, 7)
  ]
  return x * factors[0], x * factors[1], s


def row(b, i):
  return jax.lax.dynamic_index_in_dim(b, i, 0, keepdims=False)


def with_row(b, x, i):
  return jax.lax.dynamic_update_index_in_dim(b, x, i, 0)


def of_another_level(b, x, i, j):
  del b, i, j
  y = x * 2
  z = y[::-1] * 2
  return y, z, jnp.sum(y), jnp.sum(z)


def raw_sums(b, x, i, j):
  del b, i, j
  return (x + 1) * jnp.sum(x), x * 2, jnp.sum(x), jnp.max(x)


def nested_constant(b, x, i, j):
  del b, i, j
  y = jax.jit(lambda y: y * jnp.float32(3))(x)
  return y, jnp.sum(y)


def counted(b, x, i, j):
  del b, j
  n = jnp.arange(15, dtype=jnp.int32).reshape(x.shape) + 2**24 + i
  return n * 2, jnp.max(n) - 2**24, jnp.sum(n), x * 2, jnp.sum(x)


def not_numbers(b, x, i, j):
  del b, i, j
  x = jnp.where(x == x[0, 0], jnp.nan, x)
  return jnp.maximum(x, 0.0), jnp.max(x), jnp.min(x), jnp.sum(x)


def masks(b, x, i, j):
  del b, i, j
  m = x > 0
  return jnp.where(m, x, 0.0), m & (x > 1), jnp.copy(x) * 2, jnp.sum(x)


PROGRAMS = [
  *(two_scalars, of_another_level, raw_sums, nested_constant, counted),
  *(not_numbers, masks),
  lambda b, x, i, j: (with_row(b, x * 2, i), with_row(b, x * 3, j)),
  lambda b, x, i, j: (with_row(with_row(b, x * 2, i), x * 3, j), x),
  lambda b, x, i, j: (row(b, i) * row(b, j) * x, jnp.sum(row(b, i) * x)),
  lambda b, x, i, j: (with_row(b, row(b, j) + x, i), row(b, j) + x),
  lambda b, x, i, j: (with_row(b, row(b, i + 7) + x, i + 7), x),
  lambda b, x, i, j: (with_row(b, row(b, i - 99) + x, i - 99), x),
  lambda b, x, i, j: (with_row(b, x, (jnp.sum(x) > 0).astype(int)), x * 2),
  lambda b, x, i, j: (x.astype(jnp.bfloat16) * 2, jnp.sum(x)),
]


@pytest.mark.parametrize('said', INTERPRETED)
@pytest.mark.parametrize('number', range(len(PROGRAMS)))
def test_any_program_has_the_results_of_the_formula(monkeypatch, number, said):
  b, x = params_of({'v': (4, 3, 5), 'x': (3, 5)}).values()
  args = b, x, jnp.int32(1), jnp.int32(2)
  expected = jax.jit(PROGRAMS[number])(*args)
  monkeypatch.setenv(fused.VARIABLE, said)
  found = jax.jit(functools.partial(fused.fused, PROGRAMS[number]))(*args)
  assert_close(found, expected, 1e-6, 1e-6)


def on_a(platform):
  """A context in which a program is lowered for a device that is not here."""
  kinds = {'cuda': 'NVIDIA H100 80GB HBM3', 'tpu': 'TPU v5 lite'}
  device = jax.sharding.AbstractDevice(
    device_kind=kinds[platform],
    num_cores=1,
    platform={'cuda': 'gpu', 'tpu': 'tpu'}[platform],
  )
  return jax.sharding.use_abstract_mesh(
    jax.sharding.AbstractMesh((1,), ('x',), abstract_device=device)
  )


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize('shape', [(12, 128), (3, 3, 5, 16)])
def test_every_operation_is_lowered(platform, shape):
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  one = [*(jnp.abs, jnp.exp, jnp.isfinite, jnp.log, jnp.log1p, jnp.tanh)]
  one += [*(jnp.sqrt, jax.lax.rsqrt, jnp.square, jnp.negative, jnp.sign)]
  two = [*(jnp.add, jnp.subtract, jnp.multiply, jnp.divide, jnp.power)]
  two += [*(jnp.maximum, jnp.minimum, jnp.equal, jnp.less, jnp.greater_equal)]

  def all_of_them(x, y):
    found = [f(x) for f in one] + [f(x, y) for f in two]
    bits = (x > 0) & (y > 0) | ~((x != y) ^ (x <= y))
    return *found, jnp.where(bits, x, y**3), jnp.sum(x), jnp.max(x)

  with on_a(platform):
    traced = jax.jit(functools.partial(fused.fused, all_of_them)).trace(x, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
  call = {'cuda': 'triton', 'tpu': 'tpu_custom_call'}[platform]
  assert text.count(f'@{call}') + text.count(f'xla.gpu.{call}') > 0


def test_a_program_of_parts_is_the_formula():
  """Within `shard_map`, and where axes are explicit."""
  x = jnp.arange(256.0)

  def doubled(x):
    return fused.fused(lambda x: (x * 2, jnp.sum(x)), x)[0]

  for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
    mesh = jax.make_mesh((1,), ('i',), axis_types=(kind,))
    spec = jax.sharding.PartitionSpec('i')
    fn = doubled
    if kind == jax.sharding.AxisType.Auto:
      fn = jax.shard_map(doubled, mesh=mesh, in_specs=spec, out_specs=spec)
    there = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    jax.jit(fn).trace(there).lower(lowering_platforms=('cuda',))
    np.testing.assert_array_equal(jax.jit(fn)(there), 2 * x)


def test_what_is_no_tuple_is_told():
  with pytest.raises(TypeError, match='must return a tuple, got dict'):
    jax.jit(lambda x: fused.fused(lambda x: {'x': x}, x))(jnp.ones(3))


def test_what_the_variable_may_say(monkeypatch):
  monkeypatch.setenv(fused.VARIABLE, 'pallas')
  with pytest.raises(ValueError, match=r"reference, .* got 'pallas'"):
    fused.choice()
