"""A tree of parameters cut into pieces, and rules that can run on them.

The scalars of a tree, leaf after leaf, are one long vector. A `TreeSplit` cuts
it into contiguous ranges; each piece is a tree like the whole, in which a leaf
holds what of it is in the range, and None stands where nothing of it is. A leaf
that is cut becomes [1, ..., 1, n], so that it has its number of dimensions
still: weight decay only for matrices stays just that.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax.guards import checks


class Pieces(NamedTuple):
  """Parameters or gradients that are with, or on their way to, the shards.

  Attributes:
    handles: one for each shard.
  """

  handles: tuple[Any, ...]


class TreeSplit(NamedTuple):
  """How a tree is cut; hashable, and never looks at values or dtypes.

  Attributes:
    treedef: of the tree.
    shapes: of its leaves.
    parts: by piece and leaf, the range (start, stop) of the leaf's scalars that
      is in the piece, None for nothing.
  """

  treedef: Any
  shapes: tuple[tuple[int, ...], ...]
  parts: tuple[tuple[tuple[int, int] | None, ...], ...]

  @property
  def sizes(self) -> tuple[int, ...]:
    """Scalars per piece."""
    return tuple(
      sum(part[1] - part[0] for part in parts if part) for parts in self.parts
    )

  def pieces(self, tree) -> list[Any]:
    """Cuts a tree.

    Args:
      tree: NumPy arrays, of which the pieces are views, or JAX arrays, also
        traced.

    Returns:
      The pieces in order.

    Raises:
      ValueError: the tree has another structure, or a leaf another shape.
    """
    leaves, treedef = jax.tree.flatten(tree)
    own = shapes_of(leaves)
    if (treedef, own) != (self.treedef, self.shapes):
      raise ValueError(
        f'this splits trees {self.treedef} of shapes {self.shapes}, got '
        f'{treedef} of shapes {own}'
      )
    return [treedef.unflatten(map(_cut, leaves, parts)) for parts in self.parts]

  def join(self, pieces) -> Any:
    """The tree that was cut into these pieces; copies what was cut."""
    columns = zip(*map(self.treedef.flatten_up_to, pieces), strict=True)
    return self.treedef.unflatten(map(_join, columns, self.shapes))


def split(tree, shards: int) -> TreeSplit:
  """Cuts a tree into contiguous ranges of nearly the same number of scalars.

  Args:
    tree: pytree of arrays (or shapes).
    shards: number of pieces.

  Raises:
    ValueError: fewer than one piece, or more than there are scalars.
  """
  leaves, treedef = jax.tree.flatten(tree)
  shapes = shapes_of(leaves)
  sizes = [math.prod(shape) for shape in shapes]
  total = sum(sizes)
  most = 'the number of parameters'
  shards = checks.integer('shards', shards, 1, max(total, 1), most)
  bounds = [total * i // shards for i in range(shards + 1)]
  ends = list(itertools.accumulate(sizes))
  parts = []
  for low, high in itertools.pairwise(bounds):
    ranges = []
    for size, end in zip(sizes, ends, strict=True):
      begin = end - size
      start, stop = max(low, begin), min(high, end)
      # An empty leaf is where the scalar after it is, or the last one.
      here = low <= min(begin, max(total - 1, 0)) < max(high, 1)
      inside = start < stop if size else here
      ranges.append((start - begin, stop - begin) if inside else None)
    parts.append(tuple(ranges))
  return TreeSplit(treedef, shapes, tuple(parts))


def shapes_of(leaves) -> tuple[tuple[int, ...], ...]:
  """The shapes of leaves."""
  return tuple(tuple(np.shape(leaf)) for leaf in leaves)


def _cut(leaf, part):
  if part is None:
    return None
  start, stop = part
  if stop - start == np.size(leaf):
    return leaf
  shape = line(np.shape(leaf), stop - start)
  return leaf.reshape(-1)[start:stop].reshape(shape)


def line(shape, number):
  """The shape of so many scalars of a leaf, with its number of dimensions."""
  return (1,) * (len(shape) - 1) + (number,) if shape else ()


def _join(column, shape):
  present = [piece for piece in column if piece is not None]
  if len(present) == 1:
    return present[0]
  on_host = all(isinstance(piece, np.ndarray) for piece in present)
  concatenate = np.concatenate if on_host else jnp.concatenate
  return concatenate([piece.reshape(-1) for piece in present]).reshape(shape)
