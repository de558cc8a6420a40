r"""A Gap-Aware link for the front of a chain whose direction it cannot see.

`scale_by_gap` learns the scale of one update from the directions it wraps. Here
the parameters' own movement Δθ between calls is observed instead, at the price
of one more copy of the parameters:

.. math::

  m ← Γ m + (1 - Γ) Δθ^2, \quad C = \max_t \sqrt{m_t / (1 - Γ^{n_t})},
  \quad g ← g / (1 + |θ - θ_s| / C)

The running maximum over time stands for the peak learning rate of the paper. A
call between which nothing moved is not counted as a movement, so the link keeps
its meaning in front of `optax.MultiSteps`, and a parameter that was never seen
to move has no penalty. So there is no ε, and parameters in another unit are
divided by the same penalties. Our reading, after:

References:
  Barkai, Hakimi, Schuster, `Gap-Aware Mitigation of Gradient Staleness
  <https://arxiv.org/abs/1909.10802>`_, ICLR 2020.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import (
  arguments,
  averages,
  gap,
  gap_metrics,
  global_sums,
  numbers,
  optimizer,
)


class PenalizeGapState(NamedTuple):
  """State of `penalize_gap`."""

  count: jax.typing.ArrayLike  # movements seen, shape=(), dtype=int32.
  previous: optax.Params  # θ at the last call.
  second_moment: optax.Params  # EMA of Δθ², like params, float32 or wider.
  scale: optax.Params  # running maximum of its root, like params.
  started: jax.typing.ArrayLike  # whether `previous` is set, shape=(), bool.
  metrics: gap_metrics.GapMetrics


def observe(state: PenalizeGapState, params, decay) -> PenalizeGapState:
  """Folds the movement since the last call into the scale.

  Args:
    state: after the last call.
    params: θ now, arrays.
    decay: Γ.

  Returns:
    The state without new metrics.
  """
  squares = jax.tree.map(
    lambda p, old: numbers.abs_sq(gap.distance(p, old)),
    params,
    state.previous,
  )
  moved = jnp.zeros([], bool)
  for square in jax.tree.leaves(squares):
    moved |= jnp.any(square > 0)
  moved = global_sums.global_sum(numbers.float_scalar(moved)) > 0  # anywhere
  moved &= state.started
  count = jnp.where(moved, optax.safe_increment(state.count), state.count)
  bias = averages.bias(count, decay)
  bias = jnp.where(bias > 0, bias, 1.0)
  moment = jax.tree.map(
    lambda m, sq: jnp.where(moved, averages.fold(m, sq, decay), m),
    state.second_moment,
    squares,
  )
  scale = jax.tree.map(
    lambda c, m: jnp.maximum(c, numbers.root(m / bias.astype(m.dtype))),
    state.scale,
    moment,
  )
  return state._replace(
    count=count,
    previous=params,
    second_moment=moment,
    scale=scale,
    started=jnp.ones([], bool),
  )


def penalize_gap(decay: float = 0.999) -> optimizer.AsyncOptimizer:
  """Divides arriving gradients by 1 + gap / (distance of a usual update).

  Args:
    decay: Γ in (0, 1), of the moving average of squared movements.

  Returns:
    An `AsyncOptimizer` for the front of a chain; `update` requires
    `stale_params=` (TypeError without; ValueError where their tree differs).

  Examples:
    >>> import ga_jax, optax
    >>> opt = optax.chain(ga_jax.penalize_gap(), optax.adamw(1e-3))
  """
  arguments.check_number('decay', decay, above=0.0, below=1.0)

  def init(params):
    return PenalizeGapState(
      count=jnp.zeros([], jnp.int32),
      previous=jax.tree.map(jnp.zeros_like, params),
      second_moment=numbers.moments(params),
      scale=numbers.moments(params),
      started=jnp.zeros([], bool),
      metrics=gap_metrics.no_gap_metrics(params),
    )

  def correct(
    grads, state, params=None, *, stale_params=None, staleness=None, **extra
  ):
    del extra
    arguments.check_stale_params('penalize_gap', stale_params, params)
    state = observe(state, jax.tree.map(jnp.asarray, params), decay)
    active = state.count > 0
    if staleness is not None:
      active &= jnp.asarray(staleness) != 0

    def scale(c):
      return jnp.where(c > 0, c, jnp.asarray(jnp.inf, c.dtype))

    by, metrics = gap.per_parameter(
      params, stale_params, state.scale, scale, active
    )
    return gap.penalize(grads, by), state._replace(metrics=metrics)

  return optimizer.correction(init, correct)
