"""SMEGA2: one momentum buffer for any number of workers, and a look-ahead.

θ ← θ − η (g + γ v) and G ← G + g at every update; after every N of them
v ← γ v + G / N and G ← 0. Workers are sent an estimate of where the parameters
will be when their gradient arrives,
θ − η γ [(N + c (γ − 1)) v + (c / N) G], with c = 0..N−1 the position in the
cycle and η that of the last update. One worker at a constant η is sent
Nesterov's trajectory.

Our reading where rounds are averaged: a round counts as one gradient.

References:
  Cohen, Hakimi, Schuster, `SMEGA2: Distributed Asynchronous Deep Neural Network
  Training With a Single Momentum Buffer
  <https://doi.org/10.1145/3545008.3545010>`_, ICPP 2022.
"""

import jax
import jax.numpy as jnp
import optax

from ga_jax.guards import checks
from ga_jax.rules.parts import arguments, cycle, links, numbers, optimizer


def trace_per_cycle(
  momentum: float, num_workers: int
) -> optimizer.AsyncOptimizer:
  """SMEGA2's momentum as a direction (no learning rate).

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

    def direction(g, v):  # g + γ v
      ahead = g.astype(v.dtype) + jnp.asarray(momentum, v.dtype) * v
      return ahead.astype(g.dtype)

    updates = jax.tree.map(direction, grads, state.velocity)
    return updates, cycle.advance(state, grads, momentum, num_workers)

  return optimizer.lift(optax.GradientTransformationExtraArgs(cycle.init, step))


def smega2(
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """SMEGA2: a single momentum buffer and a look-ahead over a cycle.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: N, updates per cycle.
    momentum: γ in [0, 1).
    weight_decay: L2 coefficient, added to the gradient before momentum.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`; workers must be sent `lookahead(params, state)`.
  """

  def lookahead(params, state):
    *_, (position, total, velocity), rate = state
    gamma, c = numbers.float_scalar(momentum), numbers.float_scalar(position)

    def ahead(v, s):  # (N + c (γ − 1)) v + (c / N) G
      of_velocity = num_workers + c * (gamma - 1.0)
      return (
        of_velocity.astype(v.dtype) * v + (c / num_workers).astype(s.dtype) * s
      )

    direction = jax.tree.map(ahead, velocity, total)
    return links.descend(params, rate.learning_rate * gamma, direction)

  rule = optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    trace_per_cycle(momentum, num_workers),
    links.scale_by_learning_rate(learning_rate),
  )
  return optimizer.with_lookahead(rule, lookahead)
