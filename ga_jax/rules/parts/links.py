"""Links of rules: momentum, decay, learning rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import arguments, numbers, optimizer


class ScaleByLearningRateState(NamedTuple):
  """State of `scale_by_learning_rate`."""

  count: jax.typing.ArrayLike  # updates made, shape=(), dtype=int32.
  learning_rate: jax.typing.ArrayLike  # of the last update, shape=().


def scale_by_learning_rate(
  learning_rate: optax.ScalarOrSchedule,
) -> optimizer.AsyncOptimizer:
  """optax's link of that name, with the schedule a function of `count`.

  Args:
    learning_rate: a number, or a schedule of batches applied so far (of its own
      updates where no `count` is passed).

  Returns:
    An `AsyncOptimizer` that multiplies by minus the learning rate and keeps the
    last rate in its state.
  """
  arguments.check_number('learning_rate', learning_rate, low=0.0, schedule=True)

  def init(params):
    del params
    return ScaleByLearningRateState(
      count=jnp.zeros([], jnp.int32), learning_rate=numbers.float_scalar(0.0)
    )

  def step(updates, state, params=None, *, count=None, **extra):
    del params, extra
    rate = rate_at(learning_rate, state.count if count is None else count)
    updates = jax.tree.map(
      lambda u: jnp.asarray(-rate, dtype=u.dtype) * u, updates
    )
    return updates, ScaleByLearningRateState(
      count=optax.safe_increment(state.count),
      learning_rate=numbers.float_scalar(rate),
    )

  return optimizer.AsyncOptimizer(init, optimizer.pass_through, step)


def momentum_trace(momentum, nesterov: bool = False):
  """`optax.trace`, or the identity where momentum is the number 0 or None."""
  if momentum is None:
    return optax.identity()
  arguments.check_number('momentum', momentum, low=0.0, below=1.0)
  if numbers.is_zero(momentum):
    return optax.identity()
  return optax.trace(momentum, nesterov=nesterov)


def decayed_weights(weight_decay, mask=None):
  """L2 decay g + wd θ, or the identity where wd is the number 0."""
  arguments.check_number('weight_decay', weight_decay, low=0.0)
  if numbers.is_zero(weight_decay):
    return optax.identity()
  return optax.add_decayed_weights(weight_decay, mask)


def rate_at(learning_rate: optax.ScalarOrSchedule, count):
  """The learning rate at a count of applied batches."""
  return learning_rate(count) if callable(learning_rate) else learning_rate


def descend(params, step, direction):
  """θ − step u: a position ahead.

  Args:
    params: θ.
    step: a float scalar.
    direction: u, like params, in the dtype to compute in.

  Returns:
    A pytree like `params`, in their dtypes.
  """

  def move(p, u):
    ahead = jnp.asarray(p).astype(u.dtype) - step.astype(u.dtype) * u
    return ahead.astype(jnp.result_type(p))

  return jax.tree.map(move, params, direction)
