r"""OrMo: ordered momentum, in which a late gradient loses no time.

Gradients belong to rounds of N by the version they were read at: at the
server's version t, the rule's own count of updates, one of staleness τ belongs
to round ⌈(t − τ) / N⌉ and is late by a rounds,

.. math::

  a = ⌈t / N⌉ - ⌈(t - τ) / N⌉.

Where a round begins, that is where ⌈t / N⌉ has grown since the last update, the
momentum moves everything on by itself; then the gradient enters momentum and
parameters with the weight it would have by now, had it come in its own round:

.. math::

  u &← γ u, \quad w ← w - u \\
  u &← u + γ^a η g, \quad w ← w - η g (1 - γ^{a+1}) / (1 - γ)

So at a constant η the parameters do not depend on the order in which gradients
arrive (weight decay, taken at arrival, apart). One worker is momentum SGD.

Our reading: the factor of the parameters, the sum 1 + γ + ... + γ^a, is derived
from the idea; η is that of the arrival; where rounds are averaged, the server's
updates are what is counted.

References:
  Shi, Yang, Li, `Ordered Momentum for Asynchronous SGD
  <https://arxiv.org/abs/2407.19234>`_, NeurIPS 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.guards import checks
from ga_jax.rules.parts import arguments, links, numbers, optimizer


class OrderedMomentumState(NamedTuple):
  """State of `ordered_momentum`."""

  count: jax.typing.ArrayLike  # t, updates made, shape=(), dtype=int32.
  momentum: optax.Updates  # u, η included, like params, float32 or wider.


class Entering(NamedTuple):
  """What a gradient brings, before the learning rate; both like params."""

  momentum: Any  # γ^a g
  params: Any  # g (1 − γ^(a+1)) / (1 − γ)


def round_of(version, num_workers: int):
  """⌈version / N⌉, of int32 scalars."""
  return -(-version // num_workers)


def rounds_late(version, staleness, num_workers: int):
  """a: the rounds that began since a gradient was read, an int32 scalar."""
  read = jnp.maximum(version - jnp.asarray(staleness, jnp.int32), 0)
  return round_of(version, num_workers) - round_of(read, num_workers)


def weights(momentum, late):
  """What a gradient that is a rounds late weighs in u, and in what w has moved.

  Args:
    momentum: γ in [0, 1), a scalar.
    late: a, an int32 scalar.

  Returns:
    γ^a, and (1 − γ^(a+1)) / (1 − γ), float scalars.
  """
  gamma = numbers.float_scalar(momentum)
  decayed = gamma ** numbers.float_scalar(late)  # 1 where both are 0
  return decayed, (1.0 - gamma * decayed) / (1.0 - gamma)


def ordered_momentum(
  learning_rate: optax.ScalarOrSchedule, num_workers: int, momentum: float
) -> optimizer.AsyncOptimizer:
  """OrMo's whole update, learning rate included.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: N, gradients per round.
    momentum: γ in [0, 1).

  Returns:
    An `AsyncOptimizer`; `update` requires `staleness=`.
  """
  arguments.check_number('learning_rate', learning_rate, low=0.0, schedule=True)
  arguments.check_number('momentum', momentum, low=0.0, below=1.0)
  num_workers = checks.integer('num_workers', num_workers, 1)

  def init(params):
    return OrderedMomentumState(
      count=jnp.zeros([], jnp.int32), momentum=numbers.accumulators(params)
    )

  def correct(grads, state, params=None, *, staleness=None, **extra):
    del params, extra
    arguments.require(
      'ordered_momentum', 'staleness', staleness, arguments.STALENESS
    )
    late = rounds_late(state.count, staleness, num_workers)
    decayed, summed = weights(momentum, late)

    def scaled(by):
      return jax.tree.map(lambda g: by.astype(g.dtype) * g, grads)

    return Entering(scaled(decayed), scaled(summed)), state

  def step(entering, state, params=None, *, count=None, **extra):
    del params, extra
    t = state.count
    rate = links.rate_at(learning_rate, t if count is None else count)
    begins = round_of(t, num_workers) > round_of(t - 1, num_workers)

    def begin(u):  # u ← γ u
      return jnp.where(begins, jnp.asarray(momentum, u.dtype) * u, u)

    def move(g, u):  # w ← w − u, then w ← w − η g (1 − γ^(a+1)) / (1 − γ)
      moved = jnp.where(begins, u, jnp.zeros_like(u))
      eta = jnp.asarray(rate, u.dtype)
      return -(moved + eta * g.astype(u.dtype)).astype(g.dtype)

    def enter(g, u):  # u ← u + γ^a η g
      return u + jnp.asarray(rate, u.dtype) * g.astype(u.dtype)

    begun = jax.tree.map(begin, state.momentum)
    updates = jax.tree.map(move, entering.params, begun)
    return updates, OrderedMomentumState(
      count=optax.safe_increment(t),
      momentum=jax.tree.map(enter, entering.momentum, begun),
    )

  return optimizer.AsyncOptimizer(init, correct, step)


def ormo(
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """SGD with ordered momentum.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: N, gradients per round.
    momentum: γ in [0, 1).
    weight_decay: L2 coefficient, added to the gradient when it arrives.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`; `update` requires `staleness=`.
  """
  return optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    ordered_momentum(learning_rate, num_workers, momentum),
  )
