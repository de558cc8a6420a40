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


def accumulator_like(leaf) -> jax.Array:
  """Zeros to sum leaves like this one in: float32 or wider, complex kept."""
  complex_leaf = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
  return jnp.zeros(
    leaf.shape, leaf.dtype if complex_leaf else float_dtype(leaf)
  )


def accumulators(params):
  """A tree of `accumulator_like` for parameters, scalars of Python too."""
  return jax.tree.map(lambda p: accumulator_like(jnp.asarray(p)), params)


def abs_sq(x) -> jax.Array:
  """|x|², real, in `float_dtype`."""
  x = jnp.asarray(x)
  if jnp.iscomplexobj(x):
    return x.real**2 + x.imag**2
  return jnp.square(x.astype(float_dtype(x)))


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
