"""Objects that several threads may call: one call at a time."""

import functools
import threading
from collections.abc import Callable


class Exclusive:
  """Such an object. A copy of it, or its pickle, has a lock of its own."""

  def __init__(self):
    self._lock = threading.RLock()  # for methods call each other

  def __getstate__(self):
    return {k: v for k, v in vars(self).items() if k != '_lock'}

  def __setstate__(self, state):
    vars(self).update(state)
    Exclusive.__init__(self)


def locked(method: Callable) -> Callable:
  """A method of an `Exclusive`, which holds the lock while it runs."""

  @functools.wraps(method)
  def call(self, *args, **kwargs):
    with self._lock:
      return method(self, *args, **kwargs)

  return call
