"""Gradient accumulation for rules: correct each mini-step, step every k-th.

`optax.MultiSteps` sums raw gradients and hands the wrapped optimiser the extra
arguments of the last mini-step only, so a penalty inside it would measure every
gradient against the stale parameters of the last. Here each mini-step is
corrected with its own, and only then averaged.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.guards import checks
from ga_jax.rules.parts import numbers, optimizer


class MultiStepsState(NamedTuple):
  """State of `multi_steps`."""

  mini_step: jax.typing.ArrayLike  # shape=(), dtype=int32, below every_k.
  corrected: Any  # running mean of the corrected gradients, >= float32.
  inner: optax.OptState


def multi_steps(
  rule: optax.GradientTransformation, every_k: int
) -> optax.GradientTransformationExtraArgs:
  """Averages the corrected gradients of `every_k` calls into one step.

  Args:
    rule: a rule, or a plain optax transformation.
    every_k: mini-steps per step, at least 1.

  Returns:
    A `GradientTransformationExtraArgs` that emits zeros except at every k-th
    call. `count` is not passed on to `step`: schedules count steps, as in
    `optax.MultiSteps`. Workers of a rule that looks ahead must be sent
    `rule.lookahead(params, state.inner)`.

  Examples:
    >>> import ga_jax
    >>> opt = ga_jax.multi_steps(ga_jax.gap_aware(0.1), every_k=4)
  """
  every_k = checks.integer('every_k', every_k, 1)
  rule = optimizer.lift(rule)
  if not rule.averages:
    raise ValueError(
      'multi_steps averages gradients, which a rule with a buffer per worker '
      'cannot'
    )

  def init(params):
    inner = rule.init(params)
    corrected = optimizer.corrected_like(rule, params, inner)
    return MultiStepsState(
      jnp.zeros([], jnp.int32), numbers.accumulators(corrected), inner
    )

  def update(grads, state, params=None, **extra):
    extra.pop('count', None)
    corrected, inner = rule.correct(grads, state.inner, params, **extra)
    mini = state.mini_step
    mean = jax.tree.map(
      lambda m, c: m + (c.astype(m.dtype) - m) / (mini + 1).astype(m.dtype),
      state.corrected,
      corrected,
    )

    def emit(mean, inner, grads):
      del grads
      narrow = jax.tree.map(lambda m, c: m.astype(c.dtype), mean, corrected)
      updates, inner = rule.step(narrow, inner, params, **extra)
      return updates, inner, jax.tree.map(jnp.zeros_like, mean)

    def hold(mean, inner, grads):
      return jax.tree.map(jnp.zeros_like, grads), inner, mean

    updates, inner, mean = jax.lax.cond(
      mini == every_k - 1, emit, hold, mean, inner, grads
    )
    return updates, MultiStepsState((mini + 1) % every_k, mean, inner)

  return optax.GradientTransformationExtraArgs(init, update)
