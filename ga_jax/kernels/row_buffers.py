"""Loops over buffers of rows, in place: no step copies a buffer.

A buffer is a pytree whose leaves are [rows, ...]. A step reads some of its rows
and writes some; XLA may write in place only where nothing that reads the old
rows can still be waiting. What is in this file says the same to XLA in an order
that it keeps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def read(buffer, row):
  """One row of a buffer."""
  return jax.tree.map(
    lambda rows: jax.lax.dynamic_index_in_dim(rows, row, 0, keepdims=False),
    buffer,
  )


def write(buffer, row, values):
  """The buffer with one row replaced."""
  return jax.tree.map(
    lambda rows, x: jax.lax.dynamic_update_index_in_dim(rows, x, row, 0),
    buffer,
    values,
  )


def scan(
  step_fn: Callable[..., Any],
  carry,
  items,
  *,
  read_fn: Callable[..., Any],
  where: tuple[Any, ...],
  unrolled: bool,
):
  """`jax.lax.scan` whose rows are read ahead.

  The rows of a step are read after the last write and before the next one:
  where the readers of a row could still be waiting when another is written, XLA
  copies the whole buffer in every step.

  Args:
    step_fn: `step_fn(carry, rows, item) -> (carry, out)`.
    carry: what goes from step to step, with the buffers in it.
    items: pytree, each leaf [steps, ...].
    read_fn: `read_fn(carry, *numbers) -> rows`, those of one step.
    where: `numbers` of all steps, each [steps], int32, none negative.
    unrolled: whether there is to be no loop, also for one step.

  Returns:
    The carry at the end, and what the steps returned, each leaf [steps, ...].
  """

  def read_ahead(carry, numbers):
    if not unrolled:  # the loop's carry holds them
      return carry, read_fn(carry, *numbers)
    # Without a loop XLA would read them again wherever they are used; what
    # comes out of a branch it takes as it is. No number is negative.
    return carry, jax.lax.cond(
      numbers[0] < 0,
      lambda *_: read_fn(carry, *[0] * len(numbers)),
      lambda *numbers: read_fn(carry, *numbers),
      *numbers,
    )

  def step(ahead, item_and_next):
    (carry, rows), (item, following) = ahead, item_and_next
    carry, out = step_fn(carry, rows, item)
    return read_ahead(carry, following), out

  pairs = items, tuple(map(_following, where))
  ahead = read_ahead(carry, tuple(numbers[0] for numbers in where))
  if unrolled and len(where[0]) == 1:  # would stay a loop of one step
    (carry, _), out = step(ahead, jax.tree.map(lambda x: x[0], pairs))
    return carry, jax.tree.map(lambda x: x[None], out)
  (carry, _), out = jax.lax.scan(step, ahead, pairs, unroll=unrolled)
  return carry, out


def _following(values):
  """The value of the next step; of the last one any that is in range."""
  return jnp.concatenate([values[1:], values[:1]])


def after(measured, before, values):
  """The same values, on the CPU made after something is measured.

  XLA learns an order where it sees none: without one it copies what is measured
  in every step, for one of `before` and `values` is read and the other one
  overwrites it.

  Args:
    measured: a scalar that is never negative, computed from `before`.
    before: pytree of arrays.
    values: pytree like it, what takes its place.
  """

  def later(measured, before, values):
    return jax.tree.map(
      lambda old, new: jnp.where(measured < 0, old, new), before, values
    )

  return jax.lax.platform_dependent(
    *(measured, before, values),
    cpu=later,
    default=lambda measured, before, values: values,
  )
