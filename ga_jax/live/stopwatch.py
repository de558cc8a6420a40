"""The time of a live run, in seconds since it began."""

import math
from collections.abc import Callable


class Stopwatch:
  """Seconds of a run, also of one that goes on in another process.

  It never shows the same time twice: `recovery` tells events apart by it.

  Attributes:
    latest: what it showed last.
  """

  def __init__(self, clock_fn: Callable[[], float]):
    """Starts at 0; `clock_fn` gives seconds since any moment."""
    self._clock_fn = clock_fn
    self.set(0.0)

  def set(self, seconds: float):
    """Goes on from there."""
    self._started, self.latest = self._clock_fn() - seconds, seconds

  def now(self) -> float:
    """Seconds, later than any that were shown."""
    now = self._clock_fn() - self._started
    self.latest = max(now, math.nextafter(self.latest, math.inf))
    return self.latest
