"""Runs one setting on the virtual clock."""

from typing import Any

import ga_jax
from experiments.running import devices, setup


def run(settings, job, total, messages, follow, keeping):
  """The result, and its own part of the summary."""
  clock = setup.clock_of(settings, messages)
  result = ga_jax.simulate(
    job,
    clock,
    num_workers=settings.workers,
    num_batches=total,
    executor=settings.executor,
    devices=devices.simulators(settings),
    align=setup.batches_per_row(settings),
    observe=follow,
    take_events=follow.take_events,
    checkpoints=keeping.checkpoints(),
  )
  return result, own(result, clock, total)


def own(result, clock, total: int) -> dict[str, Any]:
  """What a summary has of the virtual clock."""
  arrivals = result.trace.applied()
  simulated = float(arrivals['time'][-1])
  batches = int(result.metrics['num_batches'].sum())
  return {
    'simulated_time': simulated,
    'simulated_speedup': batches * clock.mean / simulated,
    'stopped': batches < total,
  }
