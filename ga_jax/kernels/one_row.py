"""One row of a large array written where it stands."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def replace(fn: Callable, rows, index, others, total=None):
  """rows[index] ← fn(rows[index], other), and the sum over the rows with it.

  The operations stand in this order: the sum first, for it reads the old row;
  then the row in its place, told to wait for the sum; then what is returned,
  from where it is. Otherwise XLA would copy all rows to keep the old one.

  Args:
    fn: of one row and a leaf of `others`, element-wise.
    rows: a pytree of arrays [n, ...].
    index: of the row, an int32 scalar.
    others: a pytree like one row.
    total: Σ over the rows, a pytree like one row; None where none is kept.

  Returns:
    (the new row, rows, total).
  """
  if total is None:
    rows = jax.tree.map(
      lambda v, other: _replaced(fn, v, index, other), rows, others
    )
  else:

    def moved(s, v, other):  # costs one row, not n
      old = _read(v, index)
      new = fn(old, other)
      return s + (new.astype(s.dtype) - old.astype(s.dtype))

    total = jax.tree.map(moved, total, rows, others)
    rows = jax.tree.map(
      lambda v, other, s: _replaced(fn, v, index, other, s),
      *(rows, others, total),
    )
  return jax.tree.map(lambda v: _read(v, index), rows), rows, total


def _read(v, index, keepdims=False):
  return jax.lax.dynamic_index_in_dim(v, index, keepdims=keepdims)


def _replaced(fn, v, index, other, after=None):
  """`v` with another row, which waits for `after`, a number like each of it."""
  # As a slice of one row, or XLA's CPU compiler copies the old one first.
  other = other[None]
  new = fn(_read(v, index, keepdims=True), other)
  if after is not None:  # no other number, but it cannot be known before
    after = after[None].astype(new.dtype)
    new = jnp.where(jnp.isnan(after), after, new)
  return jax.lax.dynamic_update_index_in_dim(v, new, index, 0)
