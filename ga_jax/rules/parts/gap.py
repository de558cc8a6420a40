"""Measuring the gap, and dividing by the penalty that follows from it.

The pieces that gap-aware rules share; no rule stands here.

References:
  Barkai, Hakimi, Schuster, `Gap-Aware Mitigation of Gradient Staleness
  <https://arxiv.org/abs/1909.10802>`_, ICLR 2020.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ga_jax.kernels import one_pass
from ga_jax.rules.parts import (
  gap_metrics,
  global_sums,
  layer_penalties,
  numbers,
  penalties,
)


def distance(leaf, stale_leaf) -> jax.Array:
  """|θ − θs| of one leaf, in `numbers.float_dtype`."""
  leaf, stale_leaf = jnp.asarray(leaf), jnp.asarray(stale_leaf)
  if jnp.iscomplexobj(leaf):
    return jnp.abs(leaf - stale_leaf)
  dtype = numbers.float_dtype(leaf)
  return jnp.abs(leaf.astype(dtype) - stale_leaf.astype(dtype))


def gap_rms(params, stale_params) -> jax.Array:
  """The Gap of the paper: ‖θ − θs‖₂ / sqrt(k), k parameters; a scalar.

  On a shard that of the parameters at hand.
  """
  squares = jax.lax.stop_gradient(_sum_of_squares(params, stale_params))
  return jnp.sqrt(squares / float(max(numbers.tree_size(params), 1)))


def global_gap_rms(params, stale_params) -> jax.Array:
  """`gap_rms` over the parameters of all shards."""
  squares = _sum_of_squares(params, stale_params)
  return numbers.root(
    global_sums.global_mean(squares, numbers.tree_size(params))
  )


def _sum_of_squares(params, stale_params) -> jax.Array:
  return one_pass.total(
    lambda p, ps: numbers.abs_sq(distance(p, ps)), params, stale_params
  )


class GradAndDecay(NamedTuple):
  """A gradient and a decoupled decay that is penalised like it."""

  grads: Any  # like params.
  decay: Any  # likewise.


def penalize(tree, by):
  """tree / G, computed in G's dtype and returned in the tree's own.

  Args:
    tree: gradients, a pytree of arrays, or a `GradAndDecay`.
    by: G, a pytree like the gradients.

  Returns:
    A pytree like `tree`.
  """
  if isinstance(tree, GradAndDecay):
    return GradAndDecay(*(penalize(part, by) for part in tree))

  def divide(x, g):
    wide = x.dtype if jnp.iscomplexobj(x) else g.dtype
    return (x.astype(wide) / g.astype(wide)).astype(x.dtype)

  return jax.tree.map(divide, tree, by)


def penalty(gap, scale, active) -> jax.Array:
  """G = 1 + gap / C where it is active and C > 0, else exactly 1.

  Args:
    gap: |θ − θs|, any shape.
    scale: C, same shape or a scalar.
    active: bool, whether a penalty is due at all.

  Returns:
    G, shape and dtype of `gap`. The division is guarded before it is made, so
    that no NaN or infinity arises on the way.
  """
  active = active & (scale > 0)
  return jnp.where(active, 1.0 + gap / jnp.where(active, scale, 1.0), 1.0)


class Granularity(NamedTuple):
  """Over how many parameters one penalty is.

  Attributes:
    init: `init(params) -> s`, the moment of squared directions, all 0.
    penalties: `penalties(params, stale_params, s, scale, active) -> (G like
      params, GapMetrics)`, see `per_parameter`.
    moment: `moment(fold, s, directions) -> s`, with `fold(s, u²) -> s`.
  """

  init: Callable[..., Any]
  penalties: Callable[..., Any]
  moment: Callable[..., Any]


def per_parameter(params, stale_params, moments, scale, active):
  """G of every parameter, and what the penalties come to.

  Args:
    params: θ.
    stale_params: θs, like params.
    moments: what C is made of, like params.
    scale: `scale(moment) -> C`, element-wise and always above 0.
    active: bool, whether a penalty is due at all.

  Returns:
    (G, like params; `GapMetrics`).
  """

  def squares_and_ratios(p, ps, s):
    gap = distance(p, ps)
    ratio = gap / scale(s)
    return numbers.abs_sq(gap), ratio

  sums = one_pass.sums(squares_and_ratios, params, stale_params, moments)
  by = jax.tree.map(
    lambda p, ps, s, done: penalty(distance(p, ps), scale(s), active & done),
    *(params, stale_params, moments, sums.done),
  )
  layer_penalties.tell(by)
  size = float(max(numbers.tree_size(params), 1))
  return by, gap_metrics.GapMetrics(
    mean_gap=jnp.sqrt(sums.first / size),
    penalty=penalties.Penalty(
      mean=jnp.where(active, 1.0 + sums.second / size, 1.0),
      max=jnp.where(active, 1.0 + sums.largest, 1.0),
      sizes=penalties.sizes_of(params),
    ),
  )


def for_all_parameters(params, stale_params, moment, scale, active):
  """One G from root mean squares over all parameters; see `per_parameter`."""
  gap = global_gap_rms(params, stale_params)
  g = penalty(gap, scale(moment), active)
  by = jax.tree.map(
    lambda p: jnp.broadcast_to(g.astype(numbers.float_dtype(p)), jnp.shape(p)),
    params,
  )
  layer_penalties.tell(by)
  return by, gap_metrics.GapMetrics(
    mean_gap=gap_rms(params, stale_params),
    penalty=penalties.Penalty(g, g, penalties.sizes_of(params)),
  )


def _mean_square(directions) -> jax.Array:
  squares = [jnp.sum(numbers.abs_sq(u)) for u in jax.tree.leaves(directions)]
  return global_sums.global_mean(
    numbers.tree_sum(squares), numbers.tree_size(directions)
  )


GRANULARITIES = {
  'parameter': Granularity(
    numbers.moments,
    per_parameter,
    lambda fold, s, directions: jax.tree.map(
      lambda s, u: fold(s, numbers.abs_sq(u)), s, directions
    ),
  ),
  'global': Granularity(
    lambda params: numbers.float_scalar(0.0),
    for_all_parameters,
    lambda fold, s, directions: fold(s, _mean_square(directions)),
  ),
}
