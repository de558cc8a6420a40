"""Sums over pytrees in one pass of their own, where XLA fuses none.

XLA's CPU compiler fuses no reduction with what else is made of its operands: it
would write every element-wise value to memory first, which costs more than all
the rest. There the values are computed twice instead, once in a pass that only
adds them up. Elsewhere everything here is `jnp.sum` and `jnp.max`, in programs
of several devices leaf by leaf: what is joined or given another shape would be
gathered first.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ga_jax.kernels import on_devices

# Rows that are added up, and their length. XLA and LLVM unroll the sum over so
# few rows and then vectorise along them; a longer one is computed number by
# number, ten times slower.
_ROWS, _WIDTH = 16, 128
_SMALL = 8 * _ROWS * _WIDTH


class Sums(NamedTuple):
  """Of the pairs (x, y) of all scalars, in the default float type."""

  first: jax.Array  # Σ x
  second: jax.Array  # Σ y
  largest: jax.Array  # max y, at least 0
  done: Any  # by leaf, shape=(), bool; False only where every y of it is 0


class _Part(NamedTuple):
  """`Sums` of one group of leaves, in the dtype of x and y."""

  first: jax.Array
  second: jax.Array
  largest: jax.Array


def sums(fn: Callable, *trees) -> Sums:
  """Adds up `(x, y) = fn(*leaves)`, element-wise and y >= 0.

  What is then computed from the same leaves should wait for `done`: without an
  order between the passes XLA would copy what one reads and the other
  overwrites. Nothing is differentiated.

  Args:
    fn: of one leaf of each tree, or a part of it.
    *trees: pytrees of arrays, all alike.

  Returns:
    `Sums`, whose `done` is a pytree like the first.
  """
  structure = jax.tree.structure(trees[0])
  leaves = [map(jnp.asarray, jax.tree.leaves(tree)) for tree in trees]
  rows = jax.lax.stop_gradient(list(zip(*leaves, strict=True)))

  def pair(*row):
    return jax.lax.stop_gradient(fn(*row))

  def anywhere(rows):
    parts = [_summed(*pair(*row)) for row in rows]
    return _together(parts, [jnp.ones([], bool)] * len(rows))

  def joined(rows):
    parts, done = [], [None] * len(rows)
    for group in _groups(rows):
      row = _joined([rows[i] for i in group])
      part = _passed(pair, *jax.lax.optimization_barrier(row))
      parts.append(part)
      unknown = jnp.isnan(part.first + part.second)
      for i in group:
        done[i] = (part.largest != 0) | unknown
    return _together(parts, done)

  def on_cpu(rows):
    return on_devices.alone_or_not(rows, alone=joined, several=anywhere)

  found = jax.lax.platform_dependent(rows, cpu=on_cpu, default=anywhere)
  return found._replace(done=structure.unflatten(found.done))


def total(fn: Callable, *trees) -> jax.Array:
  """Σ `fn(*leaves)` of all scalars, in a pass that shares nothing.

  Args:
    fn: of one leaf of each tree, element-wise.
    *trees: pytrees of arrays, all alike.

  Returns:
    A scalar of the default float type.
  """

  def anywhere(*columns):
    return _added_up(jnp.sum(fn(*row)) for row in zip(*columns, strict=True))

  def paired(*columns):  # in a shape of its own, so that nothing is shared
    columns = jax.lax.optimization_barrier(columns)
    return anywhere(*map(_as_pairs, columns))

  def on_cpu(*columns):
    return on_devices.alone_or_not(*columns, alone=paired, several=anywhere)

  columns = jax.tree.map(jnp.asarray, list(map(jax.tree.leaves, trees)))
  return jax.lax.platform_dependent(*columns, cpu=on_cpu, default=anywhere)


def _scalar(value) -> jax.Array:
  return jnp.asarray(value, dtype=jnp.result_type(float))


def _added_up(scalars) -> jax.Array:
  return sum(map(_scalar, scalars), start=_scalar(0.0))


def _summed(x, y) -> _Part:
  return _Part(jnp.sum(x), jnp.sum(y), jnp.max(y, initial=0.0))


def _together(parts: list[_Part], done) -> Sums:
  """The sums over all groups of leaves."""
  largest = (_scalar(part.largest) for part in parts)
  return Sums(
    _added_up(part.first for part in parts),
    _added_up(part.second for part in parts),
    functools.reduce(jnp.maximum, largest, _scalar(0.0)),
    done,
  )


def _groups(rows) -> list[list[int]]:
  """Indices of leaves: large ones alone, small ones of a kind together.

  A network has many small leaves, and each reduction is code to be compiled.
  """
  groups, small = [], {}
  for i, row in enumerate(rows):
    if row[0].size >= _SMALL:
      groups.append([i])
    else:
      small.setdefault(tuple(x.dtype for x in row), []).append(i)
  return groups + list(small.values())


def _joined(rows):
  """The leaves of several rows as if they were one."""
  if len(rows) == 1:
    return rows[0]
  return tuple(
    jnp.concatenate([x.ravel() for x in same])
    for same in zip(*rows, strict=True)
  )


def _passed(fn, *row) -> _Part:
  """The sums of one leaf in one pass over it."""
  parts = []
  for block in zip(*map(_blocks, row), strict=True):
    x, y = fn(*block)
    part = x, y, y
    if y.ndim == 3:
      zero = jnp.zeros([], y.dtype)
      part = jax.lax.reduce(part, (zero,) * 3, _fold, dimensions=(1,))
    parts.append(part)
  first, second, largest = zip(*parts, strict=True)
  added = sum(map(jnp.sum, second))
  most = functools.reduce(
    jnp.maximum, [jnp.max(y, initial=0.0) for y in largest]
  )
  return _Part(
    sum(map(jnp.sum, first)),
    added,
    jnp.where(jnp.isnan(added), added, most),  # `_fold` may lose a NaN
  )


def _blocks(leaf) -> list[jax.Array]:
  """[blocks of rows, the rest]; either may be empty, but is always there."""
  flat = jnp.ravel(leaf)
  whole = flat.size - flat.size % (_ROWS * _WIDTH)
  return [flat[:whole].reshape(-1, _ROWS, _WIDTH), flat[whole:]]


def _as_pairs(leaves) -> list[jax.Array]:
  """The same numbers, two in a row and what is left."""
  flat = [jnp.ravel(leaf) for leaf in leaves]
  ends = [x.size - x.size % 2 for x in flat]
  pairs = [x[:end].reshape(-1, 2) for x, end in zip(flat, ends, strict=True)]
  rest = [x[end:] for x, end in zip(flat, ends, strict=True) if end < x.size]
  return pairs + rest


def _fold(one, other):
  """Adds, adds, and takes the larger: shorter than `maximum` without NaN."""
  return (
    one[0] + other[0],
    one[1] + other[1],
    jnp.where(one[2] > other[2], one[2], other[2]),
  )
