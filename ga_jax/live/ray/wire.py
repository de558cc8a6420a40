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
_LARGE = 1 << 18  # bytes; smaller leaves are gathered in compiled code


class _Slot(NamedTuple):
  """Where a leaf is."""

  dtype: str
  offset: int  # in elements
  size: int
  shape: tuple[int, ...]
  small: bool


class Layout:
  """How a pytree of arrays lies in one flat buffer per dtype.

  Sender and receiver make the same layout from the same shapes, so that nothing
  but the numbers travels. In each buffer the small leaves come first: on the
  CPU compiled code copies all of them at once, and the large ones are copied,
  or used in place, by themselves. On an accelerator a whole buffer is moved at
  once.
  """

  def __init__(self, like):
    """Lays it out.

    Args:
      like: pytree of arrays, or of their shapes.

    Raises:
      TypeError: a leaf holds no numbers (a typed key).
    """
    leaves, self._structure = jax.tree.flatten(like)
    for leaf in leaves:
      if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        raise TypeError(f'{leaf.dtype} arrays cannot be sent as they are')
    self._ends = {np.dtype(leaf.dtype).name: 0 for leaf in leaves}
    self._slots = [None] * len(leaves)
    for small in (True, False):
      for i, leaf in enumerate(leaves):
        if (_nbytes(leaf) < _LARGE) == small:
          self._slots[i] = self._placed(leaf, small)
      if small:
        self._small_ends = dict(self._ends)
    self._memory = BufferPool()
    self._gather = jax.jit(self._gathered)
    self._scatter = jax.jit(self.leaves)

  @property
  def nbytes(self) -> int:
    """Bytes of all buffers."""
    return sum(np.dtype(name).itemsize * n for name, n in self._ends.items())

  def pack(self, tree) -> tuple[np.ndarray, ...]:
    """The buffers of a tree, on the host; waits for it."""
    leaves = jax.tree.leaves(tree)
    if not all(_on_cpu(leaf.sharding) for leaf in leaves):
      return tuple(np.asarray(x) for x in self._gather(leaves))
    small, large = self._halves(leaves)
    buffers = self._empty()
    for buffer, part in zip(buffers, self._gather(small), strict=True):
      np.copyto(buffer[: part.size], np.asarray(part))
    for new, leaf in zip(self.leaves(buffers), large, strict=True):
      if leaf is not None:
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
    if not _on_cpu(sharding):
      leaves = self._scatter(jax.device_put(tuple(buffers), sharding))
      return self._structure.unflatten(leaves)
    _, large = self._halves(self.leaves(buffers))
    ends = self._small_ends.values()
    small = tuple(b[:end] for b, end in zip(buffers, ends, strict=True))
    small, large = jax.device_put((small, large), sharding, may_alias=True)
    leaves = zip(self._scatter(small), large, strict=True)
    return self._structure.unflatten(a if b is None else b for a, b in leaves)

  def leaves(self, buffers):
    """Leaves as they lie in their buffers.

    Args:
      buffers: from `pack`, whole or cut off anywhere.

    Returns:
      Views in the tree's order; None for those that are not in the buffers.
    """
    by_name = dict(zip(self._ends, buffers, strict=True))
    leaves = []
    for name, offset, size, shape, _ in self._slots:
      part = by_name[name][offset : offset + size]
      leaves.append(part.reshape(shape) if part.size == size else None)
    return leaves

  def _placed(self, leaf, small) -> _Slot:
    """The next place for a leaf."""
    dtype, size = np.dtype(leaf.dtype), math.prod(leaf.shape)
    offset = self._ends[dtype.name]
    self._ends[dtype.name] += _padded(size, dtype.itemsize)
    return _Slot(dtype.name, offset, size, tuple(leaf.shape), small)

  def _halves(self, leaves):
    """The small ones and the large ones, None in place of the others."""
    pairs = list(zip(self._slots, leaves, strict=True))
    small = [leaf if slot.small else None for slot, leaf in pairs]
    return small, [None if slot.small else leaf for slot, leaf in pairs]

  def _gathered(self, leaves):
    """Leaves in their buffers, without those that are None."""
    parts = {name: [] for name in self._ends}
    order = sorted(
      (slot, i) for i, slot in enumerate(self._slots) if leaves[i] is not None
    )
    for slot, i in order:
      leaf = leaves[i]
      gap = _padded(slot.size, leaf.dtype.itemsize) - slot.size
      parts[slot.dtype] += [leaf.ravel(), jnp.zeros(gap, leaf.dtype)]
    return tuple(
      jnp.concatenate(parts[name]) if parts[name] else jnp.zeros(0, name)
      for name in self._ends
    )

  def _empty(self):
    return tuple(
      self._memory.take(n, np.dtype(name)) for name, n in self._ends.items()
    )


def _nbytes(leaf) -> int:
  return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


class BufferPool:
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
  # 0, for nothing is written between the leaves and `finite` looks at it too.
  raw = np.zeros(nbytes + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + nbytes]


def _padded(size: int, itemsize: int) -> int:
  step = max(1, _ALIGNMENT // itemsize)
  return -(-size // step) * step


@functools.cache
def _on_cpu(sharding) -> bool:
  return all(d.platform == 'cpu' for d in sharding.device_set)


def finite(buffers) -> bool:
  """Whether every number in them is."""
  return all(map(_finite, buffers))


def _finite(buffer: np.ndarray) -> bool:
  if not jnp.issubdtype(buffer.dtype, jnp.inexact):
    return True
  if buffer.dtype.kind == 'f' and np.isfinite(np.vdot(buffer, buffer)):
    return True  # one pass; the other needs more, and memory
  return bool(np.isfinite(buffer).all())


def to_host(tree: Any):
  """A pytree of arrays as NumPy arrays."""
  return jax.tree.map(np.asarray, tree)
