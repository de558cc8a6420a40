"""Moving averages that begin at 0."""

import math

import jax
import jax.numpy as jnp

from ga_jax.rules.parts import numbers


def fold(average, value, decay) -> jax.Array:
  """Γ s + (1 − Γ) x, in the dtype of the average.

  Args:
    average: s, an array.
    value: x, likewise.
    decay: Γ in (0, 1).
  """
  return (decay * average + (1 - decay) * value).astype(average.dtype)


def bias(count, decay) -> jax.Array:
  """1 − Γ^n: what part of an average its n values are, 0 where there are none.

  Args:
    count: n, an int32 scalar.
    decay: Γ in (0, 1), a number or an array.

  Returns:
    A scalar of the default float type, by which the average is divided.
  """
  log = jnp.log if isinstance(decay, jax.Array) else math.log
  return -jnp.expm1(numbers.float_scalar(count) * log(decay))
