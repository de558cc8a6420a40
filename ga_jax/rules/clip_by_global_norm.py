"""Clipping by the norm of the whole gradient, on a sharded server too."""

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import arguments, global_sums, numbers


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm`, whose norm is that of all shards together.

  Args:
    max_norm: the largest norm that a gradient keeps, > 0.

  Returns:
    An optax transformation without state.

  Examples:
    >>> import ga_jax
    >>> rule = ga_jax.chain(
    ...     ga_jax.rules.clip_by_global_norm(1.0), ga_jax.gap_aware(0.1))
  """
  arguments.check_number('max_norm', max_norm, above=0.0)

  def update(grads, state, params=None):
    del params
    squares = [jnp.sum(numbers.abs_sq(g)) for g in jax.tree.leaves(grads)]
    norm = jnp.sqrt(global_sums.global_sum(numbers.tree_sum(squares)))

    def clip(g):
      clipped = (g / norm.astype(g.dtype)) * jnp.asarray(max_norm, g.dtype)
      return jnp.where(norm < max_norm, g, clipped)

    return jax.tree.map(clip, grads), state

  return optax.GradientTransformation(optax.init_empty_state, update)
