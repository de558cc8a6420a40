"""Derivatives of updates: right for every rule, and numbers everywhere."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from tests import method_cases

BY_DEFAULT = 'ga', 'penalize_gap'


def drawn(seed, *before):
  rng = np.random.default_rng(seed)
  shapes = {'w': (2, 3), 'b': (4,)}
  return {
    name: jnp.asarray(rng.normal(size=(*before, *shape)))
    for name, shape in shapes.items()
  }


def loss_after_updates(make):
  """Of parameters, stale ones, gradients and learning rate; three updates."""

  def loss(params, stale_params, grads, rate):
    rule = make(rate)
    state = rule.init(params)
    for i in range(3):
      g, stale = jax.tree.map(operator.itemgetter(i), (grads, stale_params))
      updates, state = rule.update(
        jax.tree.map(lambda g, p: g + 0.1 * p, g, params),
        *(state, params),
        stale_params=stale,
        staleness=jnp.int32(i + 1),
        worker_id=jnp.int32(i % 2),
      )
      params = optax.apply_updates(params, updates)
    reached = params, rule.lookahead(params, state)
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(reached))

  return loss


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[] if name in BY_DEFAULT else [pytest.mark.slow])
    for name in method_cases.RULES
  ],
)
@pytest.mark.optax_promotes
def test_three_updates_have_the_derivatives_of_finite_differences(x64, name):
  loss = loss_after_updates(method_cases.RULES[name].make)
  reverse = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
  given = drawn(0), drawn(1, 3), drawn(2, 3), jnp.float64(0.05)
  along = drawn(3), drawn(4, 3), drawn(5, 3), jnp.float64(1.0)
  _, grads = reverse(*given)

  def moved(i, by):
    there = jax.tree.map(lambda x, d: x + by * d, given[i], along[i])
    return float(reverse(*given[:i], there, *given[i + 1 :])[0])

  def dot(a, b):
    return sum(map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b)))

  slopes = [float(dot(*pair)) for pair in zip(grads, along, strict=True)]
  for i, slope in enumerate(slopes):
    measured = (moved(i, 1e-6) - moved(i, -1e-6)) / 2e-6
    np.testing.assert_allclose(slope, measured, rtol=1e-6, atol=1e-8)
  forward = jax.jit(lambda: jax.jvp(loss, given, along)[1])()
  np.testing.assert_allclose(forward, sum(slopes), rtol=1e-12)


@pytest.mark.parametrize(
  'name',
  ['ga', 'penalize_gap', pytest.param('ga_global', marks=pytest.mark.slow)],
)
def test_what_was_never_seen_to_move_has_finite_derivatives(name):
  """Also where nothing is late: momentum SGD's."""
  makes = {
    'ga': ga_jax.ga,
    'ga_global': ga_jax.rules.ga_global,
    'penalize_gap': lambda rate: ga_jax.rules.chain(
      ga_jax.penalize_gap(), ga_jax.rules.asgd(rate)
    ),
  }

  def reached(rule, params, late):
    state = rule.init(params)
    for _ in range(3):
      grads = params * jnp.array([0.0, 0.0, 1.0])
      updates, state = rule.update(
        grads, state, params, stale_params=params + late
      )
      params = optax.apply_updates(params, updates)
    return jnp.sum(params**2)

  slope = jax.jit(
    jax.grad(lambda *args: reached(makes[name](0.1), *args), (0, 1))
  )
  params = jnp.array([0.0, 1.0, 2.0])
  for late in jnp.zeros(3), jnp.array([0.0, 0.5, 0.5]):
    assert np.isfinite(slope(params, late)).all()
  plain = jax.grad(lambda p: reached(ga_jax.rules.asgd(0.1), p, 0.0))(params)
  fresh, _ = slope(params, jnp.zeros(3))
  np.testing.assert_allclose(fresh, plain, rtol=1e-6)
