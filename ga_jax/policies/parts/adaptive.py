"""How many workers AdaSync and ABS wait for: more as the loss falls.

.. math::
  K_t = \\min(N, \\lceil K_0 \\sqrt{\\bar F_0 / \\bar F_t} \\rceil)

Our reading: :math:`\\bar F_t` is a moving average (0.9) of the losses as they
arrive and :math:`\\bar F_0` the first of them. Losses that are not finite are
left out. A loss that fell to 0 or below counts as infinitely better, so K = N;
where the first one is not positive the ratio says nothing, so K = K_0.
"""

import math
from typing import NamedTuple

_RATE = 0.1  # of the moving average: it keeps 0.9


class Progress(NamedTuple):
  """How far the loss has fallen."""

  first: float | None = None  # the first finite loss
  mean: float = 0.0  # moving average from there


def observe(progress: Progress, loss: float) -> Progress:
  """Takes in the loss of an arrival."""
  if not math.isfinite(loss):
    return progress
  if progress.first is None:
    return Progress(float(loss), float(loss))
  # F̄ ← F̄ + (0.1 F − 0.1 F̄): equal losses leave it as it is, without rounding.
  mean = progress.mean + (_RATE * loss - _RATE * progress.mean)
  return Progress(progress.first, float(mean))


def wait_for(progress: Progress, k0: int, num_workers: int) -> int:
  """K_t, from 1 to `num_workers`.

  Args:
    progress: of the loss.
    k0: K_0, what the run began with.
    num_workers: N.
  """
  first, mean = progress
  if first is None or first <= 0:
    return k0
  if mean <= 0:
    return num_workers
  # K_t = min(N, ⌈K_0 √(F̄_0 / F̄_t)⌉); the ratio may overflow, N does not
  return max(1, math.ceil(min(num_workers, k0 * math.sqrt(first / mean))))
