"""Measuring the gap, and dividing by the penalty that follows from it.

The pieces that gap-aware rules share; no rule stands here.

References:
  Barkai, Hakimi, Schuster, `Gap-Aware Mitigation of Gradient Staleness
  <https://arxiv.org/abs/1909.10802>`_, ICLR 2020.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules import base, reductions


class GapMetrics(NamedTuple):
  """What the last correction saw; device scalars of the default float type."""

  mean_gap: jax.typing.ArrayLike  # ‖θ − θs‖₂ / sqrt(k), the paper's Gap.
  penalty: base.Penalty  # of G over all parameters.

  @property
  def mean_penalty(self):
    return self.penalty.mean

  @property
  def max_penalty(self):
    return self.penalty.max


def check_stale_params(name: str, stale_params, params):
  """Checks the two trees a gap is measured between.

  Args:
    name: the link that needs them, for the message.
    stale_params: what the worker was sent.
    params: the parameters now.

  Raises:
    TypeError: one of them was not passed.
    ValueError: they differ in structure or shape; the leaf is named.
  """
  if params is None or stale_params is None:
    missing = 'params' if params is None else 'stale_params'
    raise TypeError(
      f'{name} needs {missing}: call update(grads, state, params, '
      'stale_params=...) with the parameters the gradient was computed at. '
      'Under a policy that averages rounds build the chain with ga_jax.chain, '
      'under gradient accumulation use ga_jax.multi_steps.'
    )
  now, _ = jax.tree_util.tree_flatten_with_path(params)
  stale, _ = jax.tree_util.tree_flatten_with_path(stale_params)
  now = {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in now}
  stale = {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in stale}
  for path in {**now, **stale}:
    if now.get(path) != stale.get(path):
      raise ValueError(
        f'{name}: params and stale_params differ at leaf {path or "(root)"}: '
        f'{_describe(now, path)} in params, {_describe(stale, path)} in '
        'stale_params (inside optax.masked or optax.partition pass '
        'mask_compatible_extra_args=True)'
      )
  if jax.tree.structure(params) != jax.tree.structure(stale_params):
    raise ValueError(
      f'{name}: params are {jax.tree.structure(params)}, stale_params are '
      f'{jax.tree.structure(stale_params)}'
    )


def gap_rms(params, stale_params) -> jax.Array:
  """The Gap of the paper: ‖θ − θs‖₂ / sqrt(k), k parameters; a scalar.

  On a shard that of the parameters at hand.
  """
  squares = _sum_of_squares(params, stale_params)
  return jnp.sqrt(squares / float(max(base.tree_size(params), 1)))


def global_gap_rms(params, stale_params) -> jax.Array:
  """`gap_rms` over the parameters of all shards."""
  squares = _sum_of_squares(params, stale_params)
  return jnp.sqrt(reductions.global_mean(squares, base.tree_size(params)))


def _sum_of_squares(params, stale_params) -> jax.Array:
  return base.tree_sum(
    [
      jnp.sum(base.abs_sq(distance(p, ps)))
      for p, ps in zip(
        jax.tree.leaves(params), jax.tree.leaves(stale_params), strict=True
      )
    ]
  )


def distance(leaf, stale_leaf) -> jax.Array:
  """|θ − θs| of one leaf, in `base.float_dtype`."""
  leaf, stale_leaf = jnp.asarray(leaf), jnp.asarray(stale_leaf)
  if jnp.iscomplexobj(leaf):
    return jnp.abs(leaf - stale_leaf)
  dtype = base.float_dtype(leaf)
  return jnp.abs(leaf.astype(dtype) - stale_leaf.astype(dtype))


def no_gap_metrics() -> GapMetrics:
  """The metrics before any gradient came: no gap, no penalty."""
  return GapMetrics(base.float_scalar(0.0), base.no_penalty())


def gap_metrics(opt_state: optax.OptState) -> GapMetrics:
  """The gap and penalty of the last correction, found anywhere in a state.

  Args:
    opt_state: the state of a rule, or of a chain that holds one.

  Returns:
    `GapMetrics` of device scalars; nothing is copied to the host.

  Raises:
    ValueError: the state holds no gap-aware link.
  """
  found = [
    leaf
    for leaf in jax.tree.leaves(
      opt_state, is_leaf=lambda x: isinstance(x, GapMetrics)
    )
    if isinstance(leaf, GapMetrics)
  ]
  if not found:
    raise ValueError('this optimiser state holds no gap-aware link')
  return found[0]


def penalize(tree, penalties):
  """tree / G, computed in G's dtype and returned in the tree's own.

  Args:
    tree: gradients or decay, a pytree of arrays.
    penalties: G, a pytree like `tree`.

  Returns:
    A pytree like `tree`.
  """

  def divide(x, g):
    wide = x.dtype if jnp.iscomplexobj(x) else g.dtype
    return (x.astype(wide) / g.astype(wide)).astype(x.dtype)

  return jax.tree.map(divide, tree, penalties)


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


def metrics_of(params, stale_params, penalties) -> GapMetrics:
  """Summarises one correction.

  Args:
    params: θ.
    stale_params: θs, like params.
    penalties: G, like params.

  Returns:
    `GapMetrics`.
  """
  leaves = jax.tree.leaves(penalties)
  total = base.tree_sum([jnp.sum(g) for g in leaves])
  largest = base.float_scalar(1.0)
  for g in leaves:
    if g.size:
      largest = jnp.maximum(largest, base.float_scalar(jnp.max(g)))
  size = base.tree_size(penalties)
  mean = total / float(size) if size else base.float_scalar(1.0)
  return GapMetrics(
    mean_gap=gap_rms(params, stale_params),
    penalty=base.Penalty(mean=mean, max=largest),
  )


def _describe(shapes, path) -> str:
  return f'shape {shapes[path]}' if path in shapes else 'absent'
