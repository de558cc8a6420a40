"""Runs one setting, simulated or on real devices, and sums it up."""

import time
from collections.abc import Callable

from experiments import tasks
from experiments.running import (
  accelerators,
  compilation,
  setup,
  simulated,
  space,
  summaries,
  threads,
  watch,
)
from experiments.running import control as control_lib
from experiments.settings import table as settings_lib


def computes_with(settings: settings_lib.Settings) -> object:
  """What a run is computed with, for `accelerators.say`."""
  if settings.runtime != 'ray':
    return accelerators.here()
  from experiments.running import ray  # Ray is an extra

  return ray.computes_with(settings)


def train(
  settings: settings_lib.Settings,
  *,
  observe: Callable[[watch.Progress], None] | None = None,
  evaluate_epochs: bool = True,
  keeping: setup.Keeping | None = None,
  control: control_lib.Control | None = None,
) -> setup.Run:
  """Trains once.

  Args:
    settings: checked settings.
    observe: told after every block of updates and at the end of every epoch.
    evaluate_epochs: whether to evaluate at every epoch, or at the end only.
    keeping: what to write down while it runs.
    control: ends the run in order where it is told to.

  Returns:
    A `Run`; `summary['diverged']` is True where a loss was not finite,
    `summary['stopped']` where it was ended before its end.

  Raises:
    NothingDoneError: it was ended before its first gradient was applied.
  """
  control, keeping = (
    control or control_lib.Control(),
    keeping or setup.Keeping(),
  )
  started, compiled = time.perf_counter(), compilation.so_far()
  the_task = tasks.task_of(settings)
  total = setup.total_batches(settings)
  method = setup.method_of(settings)
  job = setup.job_of(settings, method)
  space.check(settings, keeping, job)
  messages = setup.message_bytes(the_task, method, job.params, job.model_state)
  rates = [None]  # the last one is the run's

  def seen(progress):
    rates.append(progress.batches_per_second)
    if observe:
      observe(progress)

  follow = setup.following(settings, seen, evaluate_epochs, control)
  if settings.runtime == 'threads':
    result, own = threads.run(settings, job, total, follow, keeping, control)
  elif settings.runtime == 'ray':
    from experiments.running import ray  # Ray is an extra

    result, own = ray.run(
      settings, job, total, seen, evaluate_epochs, keeping, control
    )
  else:
    result, own = simulated.run(settings, job, total, messages, follow, keeping)
  if not result.metrics:
    raise setup.NothingDoneError(
      'stopped before the first gradient was applied'
    )
  summary = {**summaries.of(settings, the_task, result, messages), **own}
  if settings.runtime != 'simulate':
    summary |= summaries.of_workers(result)
  rate = rates[-1]
  summary |= {
    'wall_seconds': time.perf_counter() - started,
    'compilation': compilation.so_far().since(compiled)._asdict(),
    'updates_per_second': rate
    and rate * summary['updates'] / summary['batches'],
  }
  return setup.Run(summary, result)
