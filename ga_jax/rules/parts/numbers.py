"""Scalars, their dtypes, and sums over pytrees."""

import jax
import jax.numpy as jnp


def float_scalar(value) -> jax.Array:
  """A strongly typed scalar of the default float type."""
  return jnp.asarray(value, dtype=jnp.result_type(float))


def float_dtype(leaf):
  """The dtype in which to accumulate for `leaf`: float32 or wider, real."""
  dtype = jnp.finfo(jnp.result_type(leaf)).dtype
  return jnp.dtype('float32') if dtype.itemsize < 4 else dtype


def accumulators(params):
  """Zeros to sum leaves like these in, float32 or wider, complex kept.

  Args:
    params: a pytree of arrays or their shapes.

  Returns:
    A pytree like it, laid out over devices like it.
  """

  def zeros(p):
    dtype = jnp.result_type(p)
    kept = jnp.issubdtype(dtype, jnp.complexfloating)
    return jnp.zeros_like(p, dtype if kept else float_dtype(p))

  return jax.tree.map(zeros, params)


def moments(params):
  """`accumulators` of absolute values or their squares: real."""
  return jax.tree.map(lambda p: jnp.zeros_like(p, float_dtype(p)), params)


def abs_sq(x) -> jax.Array:
  """|x|², real, in `float_dtype`."""
  x = jnp.asarray(x)
  if jnp.iscomplexobj(x):
    return x.real**2 + x.imag**2
  return jnp.square(x.astype(float_dtype(x)))


@jax.custom_jvp
def root(x) -> jax.Array:
  """sqrt(x), whose derivative at 0 is 0 and not infinite.

  What a rule has not seen yet is 0, and stays so for small changes of what is
  differentiated: 0 times infinity would be NaN.
  """
  return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals, tangents):
  (x,), (t,) = primals, tangents
  y = jnp.sqrt(x)
  slope = jnp.where(y == 0, 0, 0.5 / jnp.where(y == 0, 1, y))
  return y, slope * t


def tree_sum(scalars) -> jax.Array:
  """Sum of a list of scalars in the default float type; 0 for none."""
  return sum((float_scalar(s) for s in scalars), start=float_scalar(0.0))


def tree_size(tree) -> int:
  """Number of scalars in a pytree."""
  return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))


def is_zero(value) -> bool:
  """Whether it is the number 0 itself, not an array that may be."""
  return _is_number(value) and value == 0


def _is_number(value) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)
