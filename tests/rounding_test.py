"""How far apart two executors may be: it is measured, and bounded."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.replaying import rounding


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_nudge_is_one_rounding_of_every_parameter(dtype):
  rng = np.random.default_rng(1)
  params = {'w': jnp.asarray(rng.normal(size=(64, 8)), dtype)}
  moved = rounding.nudged(params)
  assert moved['w'].dtype == dtype
  was, now = (np.asarray(x['w'], np.float64) for x in (params, moved))
  apart = np.abs(now - was) / np.abs(was)
  eps = float(jnp.finfo(dtype).eps)
  assert 0.5 * eps <= apart.min()
  assert apart.max() <= 2 * eps
  assert 0.4 < np.mean(now > was) < 0.6
  assert rounding.differing((moved, ()), (rounding.nudged(params), ())) == []


def test_the_allowed_difference_is_measured_and_bounded():
  made = {'w': np.ones(4, np.float32)}

  def allowed(apart):
    return rounding.allowed(made, {'w': np.full(4, 1 + apart, np.float32)})

  assert allowed(2**-10) == pytest.approx(10 * 2**-10)
  assert allowed(0.0) == 10 * 2**-23  # the last rounding is left
  assert allowed(0.5) == 0.1  # it can always fail
