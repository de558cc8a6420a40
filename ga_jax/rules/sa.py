"""SA: staleness-aware asynchronous SGD.

The learning rate of a gradient is divided by its staleness,
g ← g / τ for τ ≥ 1, g for τ = 0, per gradient and before any averaging. Weight
decay is part of the gradient here (it is the learning rate that the paper
divides), as it is in Gap-Aware, so that the two differ in the penalty alone.

`scale_by_staleness` is what all rules with a divisor of the staleness share.

References:
  Zhang, Gupta, Lian, Liu, `Staleness-Aware Async-SGD for Distributed Deep
  Learning <https://arxiv.org/abs/1511.05950>`_, IJCAI 2016.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import (
  arguments,
  layer_penalties,
  links,
  numbers,
  optimizer,
  penalties,
)


class ScaleByStalenessState(NamedTuple):
  """State of `scale_by_staleness`."""

  penalty: penalties.Penalty  # the last divisor.


def at_least_one(tau: jax.Array) -> jax.Array:
  """The divisor of SA, max(τ, 1)."""
  return jnp.maximum(tau, 1.0)  # α_τ = α / τ


def scale_by_staleness(
  divisor: Callable[[jax.Array], jax.Array] = at_least_one,
) -> optimizer.AsyncOptimizer:
  """Divides an arriving gradient by a function of its staleness.

  Args:
    divisor: from τ, a float scalar, to what gradients are divided by, a
      positive one; max(τ, 1) by default.

  Returns:
    An `AsyncOptimizer` that requires `staleness=`; without it a TypeError.

  Examples:
    >>> from ga_jax import rules
    >>> link = rules.scale_by_staleness(lambda tau: 1.0 + tau)
  """

  def init(params):
    return ScaleByStalenessState(penalties.no_penalty(params))

  def correct(grads, state, params=None, *, staleness=None, **extra):
    del params, extra
    arguments.require(
      'scale_by_staleness', 'staleness', staleness, arguments.STALENESS
    )
    by = numbers.float_scalar(divisor(numbers.float_scalar(staleness)))
    layer_penalties.tell(jax.tree.map(lambda _: by, grads))
    grads = jax.tree.map(lambda g: g / by.astype(g.dtype), grads)
    penalty = state.penalty._replace(mean=by, max=by)
    return grads, ScaleByStalenessState(penalty)

  return optimizer.correction(init, correct)


def sa(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """SGD whose gradients are divided by their staleness.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    momentum: γ in [0, 1); 0 keeps no buffer.
    nesterov: whether to use Nesterov's form.
    weight_decay: L2 coefficient, added before the division.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`; `update` requires `staleness=`.
  """
  return optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    scale_by_staleness(),
    links.momentum_trace(momentum, nesterov),
    links.scale_by_learning_rate(learning_rate),
  )
