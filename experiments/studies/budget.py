"""How long a table may be computed."""

import math
import time
from collections.abc import Callable

from experiments.running import watch
from experiments.settings import table as settings_lib


class TimeUp(Exception):
  """The time is up, or not enough is left for one more run."""


class Budget:
  """Tells when to stop: no run is begun for which there is no time.

  A run is taken to need as long as the longest one before it in this process.
  One that is in hand when the time is up is given up.
  """

  def __init__(
    self,
    ends: float = math.inf,
    clock_fn: Callable[[], float] = time.monotonic,
  ):
    """Begins to count.

    Args:
      ends: when the time is up, in seconds of the clock.
      clock_fn: seconds.
    """
    self._ends, self._clock = ends, clock_fn
    self._began = clock_fn()
    self._longest = 0.0

  def begins(self, settings: settings_lib.Settings):
    """A run is about to begin; raises `TimeUp` where it would be too long."""
    del settings
    self._began = self._clock()
    if self._began + self._longest > self._ends:
      raise TimeUp

  def running(self, settings: settings_lib.Settings, now: watch.Progress):
    """A run goes on; raises `TimeUp` where it must stop."""
    del settings, now
    clock = self._clock()
    self._longest = max(self._longest, clock - self._began)
    if clock > self._ends:
      raise TimeUp
