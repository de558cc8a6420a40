"""Parameters laid out over several devices: rules leave them where they are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ga_jax import rules
from ga_jax.kernels import on_devices
from tests import method_cases

AXES = {'auto': jax.sharding.AxisType.Auto}
AXES['explicit'] = jax.sharding.AxisType.Explicit
LAYOUTS = {  # small leaves and large ones, whole and in parts
  'rows': ((64, 64), jax.P('x')),
  'columns': ((64, 64), jax.P(None, 'x')),
  'kernel': ((3, 3, 16, 128), jax.P(None, None, None, 'x')),
  'bias': ((20,), jax.P('x')),
  'whole': ((10,), jax.P()),
}
BY_DEFAULT = ('ga', 'auto'), ('dana_ga', 'explicit')
COLLECTIVE = re.compile(
  r'= (.*?) (all-gather|all-reduce|all-to-all|collective-broadcast|'
  r'collective-permute|ragged-all-to-all|reduce-scatter)(?:-start)?\('
)


def mesh_of(axes):
  return jax.make_mesh((4,), ('x',), (AXES[axes],))


def like_params(seed, mesh=None):
  rng = np.random.default_rng(seed)

  def leaf(shape, spec):
    where = jax.sharding.NamedSharding(mesh, spec) if mesh else None
    return jax.device_put(rng.normal(size=shape).astype(np.float32), where)

  return {name: leaf(*layout) for name, layout in LAYOUTS.items()}


def assert_laid_out(tree, mesh):
  """Every array is laid out like its parameter, all buffers of it alike."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if not leaf.ndim:
      continue
    shape, spec = LAYOUTS[path[-1].key]
    spec = jax.P(*[None] * (leaf.ndim - len(shape)), *spec)
    expected = jax.sharding.NamedSharding(mesh, spec)
    assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), path


def updated(rule):
  def update(params, state, grads, stale):
    updates, state = rule.update(
      *(grads, state, params),
      stale_params=stale,
      staleness=jnp.int32(2),
      worker_id=jnp.int32(1),
    )
    params = optax.apply_updates(params, updates)
    return params, state, rule.lookahead(params, state)

  return jax.jit(update)


@pytest.mark.parametrize('axes', AXES)
def test_states_are_laid_out_like_the_parameters(axes):
  mesh = mesh_of(axes)
  with jax.set_mesh(mesh):
    params = like_params(0, mesh)
    for case in method_cases.RULES.values():
      rule = case.make(method_cases.RATE)
      state = rule.init(params)
      assert_laid_out(state, mesh)
      assert_laid_out(rule.leave(state, jnp.int32(1)), mesh)


@pytest.mark.parametrize(
  'axes', ['explicit', pytest.param('auto', marks=[pytest.mark.slow])]
)
@pytest.mark.optax_promotes
def test_gathered_gradients_are_laid_out_like_the_parameters(axes):
  mesh = mesh_of(axes)
  with jax.set_mesh(mesh):
    params = like_params(0, mesh)
    opt = rules.multi_steps(rules.ga_adam(0.1, weight_decay=1e-2), every_k=2)
    state = opt.init(params)
    assert_laid_out(state, mesh)
    updates, state = jax.jit(opt.update)(
      params, state, params, stale_params=params
    )
    assert_laid_out((updates, state), mesh)


@pytest.mark.parametrize(
  ('name', 'axes'),
  [
    pytest.param(
      *(name, axes),
      marks=[] if (name, axes) in BY_DEFAULT else [pytest.mark.slow],
    )
    for name in method_cases.RULES
    for axes in AXES
  ],
)
@pytest.mark.optax_promotes
def test_an_update_moves_nothing_but_scalars(name, axes):
  rule = method_cases.RULES[name].make(method_cases.RATE)
  update, expected = updated(rule), (like_params(0), rule.init(like_params(0)))
  for seed in 1, 3:
    *expected, ahead = update(
      *expected, like_params(seed), like_params(seed + 1)
    )
  mesh = mesh_of(axes)
  with jax.set_mesh(mesh):
    params = like_params(0, mesh)
    found = params, rule.init(params)
    for seed in 1, 3:
      given = *found, like_params(seed, mesh), like_params(seed + 1, mesh)
      program = update.lower(*given).compile()
      *found, sent = program(*given)
      for shape, what in COLLECTIVE.findall(program.as_text()):
        assert what == 'all-reduce', shape
        assert set(re.findall(r'\[(.*?)\]', shape)) == {''}, shape
    assert_laid_out((found, sent), mesh)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    (found, sent),
    (expected, ahead),
  )


def test_joining_is_for_programs_of_one_device():
  """And for what is on one device of `jax.shard_map`."""
  mesh = mesh_of('auto')
  spread = jax.sharding.NamedSharding(mesh, jax.P('x'))

  def alone(x):
    return on_devices.alone_or_not(
      x, alone=lambda x: x + 1.0, several=lambda x: x - 1.0
    )

  x = jnp.zeros(4)
  mapped = jax.shard_map(
    alone, mesh=mesh, in_specs=jax.P('x'), out_specs=jax.P('x')
  )
  for fn in alone, jax.jit(alone), jax.vmap(alone), jax.jit(jax.vmap(alone)):
    np.testing.assert_array_equal(fn(x), np.ones(4))
  for fn in alone, jax.jit(alone), jax.jit(jax.vmap(alone)):
    np.testing.assert_array_equal(fn(jax.device_put(x, spread)), -np.ones(4))
  np.testing.assert_array_equal(jax.jit(mapped)(x), np.ones(4))
