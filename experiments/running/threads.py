"""Runs one setting on this machine's devices, with a thread per worker."""

from typing import NamedTuple

import jax

from experiments.running import setup
from ga_jax.live import threads


def run(settings, job, total, follow, keeping, control):
  """The result, and its own part of the summary."""
  made = threads.Threads(
    job,
    num_workers=settings.workers,
    num_batches=total,
    live=setup.live_of(settings, keeping),
    devices=jax.local_devices()[: settings.devices or None],
    devices_per_worker=settings.devices_per_worker,
    delay_fn=Slower(settings.straggler),
  )
  control.on_stop(made.stop)
  follow.telemetry = made.telemetry
  return made.run(follow, block=setup.observed_every(settings)), {}


class Slower(NamedTuple):
  """Stragglers: `(worker_id, seconds) -> seconds` to sleep after them."""

  factors: tuple[tuple[int, float], ...]

  def __call__(self, worker: int, seconds: float) -> float:
    return (dict(self.factors).get(worker, 1.0) - 1.0) * seconds
