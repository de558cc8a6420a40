"""Objects that several threads may call: one call at a time."""

import functools
from collections.abc import Callable


def locked(method: Callable) -> Callable:
  """The method, which holds the object's `_lock` while it runs.

  A `_lock` must be a `threading.RLock`, for methods call each other.
  """

  @functools.wraps(method)
  def call(self, *args, **kwargs):
    with self._lock:
      return method(self, *args, **kwargs)

  return call
