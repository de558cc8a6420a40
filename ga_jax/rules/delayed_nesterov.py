"""Delayed Nesterov: momentum enters only after every N-th gradient.

Δ ← Δ + g at every update. The first N − 1 of a cycle descend along their own
gradient alone, θ ← θ − η g / N; the N-th makes m ← γ m + Δ / N, descends along
both, θ ← θ − η (γ m + g / N), and empties Δ. The paper may also spread a share
c of the momentum over the steps between; this is its c = 0. One worker is
optax's Nesterov momentum.

The paper's gradients are what workers moved in several local steps; here they
are any gradients, and N, the length of the cycle, is the number of workers (our
reading). η g / N is N times less than other rules apply per gradient. Where
rounds are averaged, a round counts as one gradient.

References:
  Liu et al., `Asynchronous Local-SGD Training for Language Modeling
  <https://arxiv.org/abs/2401.09135>`_, 2024.
"""

import jax
import jax.numpy as jnp
import optax

from ga_jax.guards import checks
from ga_jax.rules.parts import arguments, cycle, links, optimizer


def trace_delayed(
  momentum: float, num_workers: int
) -> optimizer.AsyncOptimizer:
  """Delayed Nesterov momentum as a direction (no learning rate).

  Args:
    momentum: γ in [0, 1).
    num_workers: N, updates per cycle.

  Returns:
    An `AsyncOptimizer` whose state is a `cycle.CycleState`.
  """
  arguments.check_number('momentum', momentum, low=0.0, below=1.0)
  num_workers = checks.integer('num_workers', num_workers, 1)

  def step(grads, state, params=None, **extra):
    del params, extra
    state = cycle.advance(state, grads, momentum, num_workers)
    last = state.position == 0

    def direction(g, m):  # g / N, and γ m + g / N at the N-th
      gamma = jnp.asarray(momentum, m.dtype)
      ahead = jnp.where(last, gamma * m, jnp.zeros_like(m))
      return (ahead + g.astype(m.dtype) / num_workers).astype(g.dtype)

    return jax.tree.map(direction, grads, state.velocity), state

  return optimizer.lift(optax.GradientTransformationExtraArgs(cycle.init, step))


def delayed_nesterov(
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """SGD with delayed Nesterov momentum.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: N, updates per cycle.
    momentum: γ in [0, 1).
    weight_decay: L2 coefficient, added to the gradient before momentum.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`.
  """
  return optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    trace_delayed(momentum, num_workers),
    links.scale_by_learning_rate(learning_rate),
  )
