"""Learning-rate schedules in epochs, as functions of applied batches."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp


class Schedule(NamedTuple):
  """The shape of a schedule; its peak is a hyper-parameter.

  Attributes:
    kind: 'constant', 'step' or 'cosine'.
    warmup: batches of linear warm-up.
    warmup_start: fraction of the peak that it starts from; the papers take 1/N.
    boundaries: batches at which 'step' multiplies by `factor`.
    factor: see `boundaries`.
    total: batches of the run, where 'cosine' reaches 0.
  """

  kind: str
  warmup: int
  warmup_start: float
  boundaries: tuple[int, ...]
  factor: float
  total: int

  def at(self, peak) -> Callable:
    """The schedule with a peak: `count -> learning rate`, float scalars."""

    def rate(count):
      count = jnp.asarray(count, jnp.result_type(float))
      value = jnp.asarray(peak, count.dtype)
      if self.kind == 'step':
        for boundary in self.boundaries:
          value = value * jnp.where(count >= boundary, self.factor, 1.0)
      elif self.kind == 'cosine':
        done = jnp.clip(
          (count - self.warmup) / max(self.total - self.warmup, 1), 0.0, 1.0
        )
        value = value * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
      if self.warmup:
        done = jnp.clip(count / self.warmup, 0.0, 1.0)
        value = value * (self.warmup_start + (1 - self.warmup_start) * done)
      return value

    return rate


CONSTANT = Schedule('constant', 0, 1.0, (), 1.0, 0)
