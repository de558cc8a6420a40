"""One momentum buffer that takes gradients in N at a time.

The piece that rules with a cycle of N updates share; no rule stands here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import numbers


class CycleState(NamedTuple):
  """Where a cycle of N updates stands."""

  position: jax.typing.ArrayLike  # c in 0..N−1, shape=(), dtype=int32.
  total: optax.Updates  # Σ g of this cycle, like params, float32 or wider.
  velocity: optax.Updates  # v, of the cycles before, likewise.


def init(params) -> CycleState:
  """The start of the first cycle."""
  return CycleState(
    position=jnp.zeros([], jnp.int32),
    total=numbers.accumulators(params),
    velocity=numbers.accumulators(params),
  )


def advance(state: CycleState, grads, momentum, num_workers: int) -> CycleState:
  """Takes one gradient in; the N-th of a cycle makes a new velocity.

  Args:
    state: the cycle.
    grads: g, a pytree like the parameters.
    momentum: γ, a scalar.
    num_workers: N.

  Returns:
    The cycle after it, at position 0 where this was the N-th.
  """
  last = state.position + 1 == num_workers
  total = jax.tree.map(lambda s, g: s + g.astype(s.dtype), state.total, grads)

  def fold(v, s):  # v ← γ v + (Σ g) / N
    new = jnp.asarray(momentum, v.dtype) * v + s / num_workers
    return jnp.where(last, new, v)

  return CycleState(
    position=jnp.where(last, 0, state.position + 1),
    total=jax.tree.map(lambda s: jnp.where(last, jnp.zeros_like(s), s), total),
    velocity=jax.tree.map(fold, state.velocity, total),
  )
