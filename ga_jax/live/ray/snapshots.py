"""What the server sends, packed once for each version."""

import threading
import weakref

import ray

from ga_jax.live.ray import messages
from ga_jax.server import update


class PackedSnapshot:
  """A version's buffers, and where they are in the object store.

  Attributes:
    buffers: see `wire.Layout.pack`.
    ref: ray.ObjectRef of them; None before they were stored.
  """

  def __init__(self, buffers):
    self.buffers = buffers
    self.ref = None
    self._lock = threading.Lock()

  def stored(self):
    """The object; put there once."""
    with self._lock:
      if self.ref is None:
        self.ref = ray.put(self.buffers)
      return self.ref


class PackedSnapshots:
  """The versions that somebody needs, each packed once; any thread may ask."""

  def __init__(self, layouts: messages.Layouts):
    """Begins with none."""
    self._layout = layouts.sent
    self._lock = threading.Lock()
    self._packed = weakref.WeakValueDictionary()  # version -> PackedSnapshot

  def take(self, version: int, sent: update.Snapshot) -> PackedSnapshot:
    """A version's buffers; the caller holds on to them while it needs them."""
    with self._lock:
      packed = self._packed.get(version)
      if packed is None:
        packed = PackedSnapshot(self._layout.pack(sent))
        self._packed[version] = packed
      return packed

  def forget(self, version: int):
    """A version's object was lost."""
    with self._lock:
      self._packed.pop(version, None)
