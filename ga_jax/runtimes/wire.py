"""Pytrees as contiguous buffers, which is how they leave a process."""

import collections
import functools
import math
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_ALIGNMENT = 64  # bytes; XLA's CPU client reads aligned buffers in place


class _Slot(NamedTuple):
  """Where a leaf is."""

  dtype: str
  offset: int  # in elements
  size: int
  shape: tuple[int, ...]


class Layout:
  """How a pytree of arrays lies in one flat buffer per dtype.

  Sender and receiver make the same layout from the same shapes, so that nothing
  but the numbers travels.
  """

  def __init__(self, like):
    """Lays it out.

    Args:
      like: pytree of arrays, or of their shapes.

    Raises:
      TypeError: a leaf holds no numbers (a typed key).
    """
    leaves, self._structure = jax.tree.flatten(like)
    ends, self._slots = {}, []
    for leaf in leaves:
      if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        raise TypeError(f'{leaf.dtype} arrays cannot be sent as they are')
      name, size = np.dtype(leaf.dtype).name, math.prod(leaf.shape)
      offset = ends.get(name, 0)
      self._slots.append(_Slot(name, offset, size, tuple(leaf.shape)))
      ends[name] = offset + _padded(size, np.dtype(leaf.dtype).itemsize)
    self._ends = ends
    self._memory = Memory()
    self._concatenate = jax.jit(self._concatenated)
    self._split = jax.jit(self._cut)

  @property
  def nbytes(self) -> int:
    """Bytes of all buffers."""
    return sum(np.dtype(name).itemsize * n for name, n in self._ends.items())

  def pack(self, tree) -> tuple[np.ndarray, ...]:
    """The buffers of a tree, on the host; waits for it."""
    leaves = jax.tree.leaves(tree)
    if not all(_on_cpu(leaf.sharding) for leaf in leaves):
      return tuple(np.asarray(x) for x in self._concatenate(tree))
    buffers = self._empty()
    for new, leaf in zip(self._leaves(buffers), leaves, strict=True):
      np.copyto(new, np.asarray(leaf))
    return buffers

  def copied(self, buffers) -> tuple[np.ndarray, ...]:
    """The same numbers in other memory; done when it returns."""
    copies = self._empty()
    for new, old in zip(copies, buffers, strict=True):
      np.copyto(new, old)
    return copies

  def unpack(self, buffers, sharding):
    """A tree from its buffers.

    Args:
      buffers: from `pack`.
      sharding: of the arrays that are made.

    Returns:
      A pytree of arrays. On the CPU they may share memory with the buffers,
      which must stay as they are for as long.
    """
    if _on_cpu(sharding):
      return jax.device_put(self._cut(buffers), sharding, may_alias=True)
    return self._split(jax.device_put(tuple(buffers), sharding))

  def _concatenated(self, tree):
    parts = {name: [] for name in self._ends}
    for slot, leaf in zip(self._slots, jax.tree.leaves(tree), strict=True):
      gap = _padded(slot.size, leaf.dtype.itemsize) - slot.size
      parts[slot.dtype] += [leaf.ravel(), jnp.zeros(gap, leaf.dtype)]
    return tuple(jnp.concatenate(parts[name]) for name in self._ends)

  def _empty(self):
    return tuple(
      self._memory.take(n, np.dtype(name)) for name, n in self._ends.items()
    )

  def _cut(self, buffers):
    return self._structure.unflatten(self._leaves(buffers))

  def _leaves(self, buffers):
    by_name = dict(zip(self._ends, buffers, strict=True))
    return [
      by_name[name][offset : offset + size].reshape(shape)
      for name, offset, size, shape in self._slots
    ]


class Memory:
  """Buffers that are used again when nobody refers to them any more.

  Fresh memory costs more than what is copied into it: every page of it has to
  be asked for and cleared.
  """

  def __init__(self):
    self._free = collections.defaultdict(collections.deque)  # by bytes

  def take(self, size: int, dtype: np.dtype) -> np.ndarray:
    """An aligned array; it and its views may be kept for as long as wanted."""
    nbytes = size * dtype.itemsize
    free = self._free[nbytes]
    try:
      raw = free.pop()
    except IndexError:
      raw = _aligned(nbytes)
    array = np.frombuffer(memoryview(raw), dtype)
    # Every view of the array has this base, and keeps it alive.
    weakref.finalize(array.base, free.append, raw).atexit = False
    return array


def _aligned(nbytes: int) -> np.ndarray:
  raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + nbytes]


def _padded(size: int, itemsize: int) -> int:
  step = max(1, _ALIGNMENT // itemsize)
  return -(-size // step) * step


@functools.cache
def _on_cpu(sharding) -> bool:
  return all(d.platform == 'cpu' for d in sharding.device_set)


def to_host(tree: Any):
  """A pytree of arrays as NumPy arrays."""
  return jax.tree.map(np.asarray, tree)
