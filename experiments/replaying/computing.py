"""Computes a trace again, with the executor that made it or the other one."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import ga_jax
from experiments.records import record
from experiments.running import devices, setup
from experiments.screens import progress
from experiments.settings import table as settings_lib
from ga_jax.job import job as job_lib
from ga_jax.server import update as update_lib
from ga_jax.simulation import simulate


class Replay(NamedTuple):
  """What is to be computed again.

  Attributes:
    workdir: of the run.
    settings: of the run.
    trace: of the run.
    executor: that computes it, 'fast' or 'exact'.
  """

  workdir: str
  settings: settings_lib.Settings
  trace: ga_jax.Trace
  executor: str


def computed(
  settings: settings_lib.Settings,
  trace: ga_jax.Trace,
  executor: str,
  num_batches: int,
  begin_fn: Callable[[Any], Any] = lambda params: params,
  *,
  quiet: bool = True,
) -> tuple[update_lib.ServerState, dict[str, np.ndarray]]:
  """Computes a trace.

  Args:
    settings: of what is computed.
    trace: what happened.
    executor: 'exact' or 'fast'.
    num_batches: after how many applied batches to stop, where the trace goes
      on: a run that diverged ended before its schedule did.
    begin_fn: makes what it begins with of the parameters that the run had.
    quiet: whether the terminal shows no progress.

  Returns:
    The state, and metrics per applied arrival.
  """
  job = _job(settings)
  job = job._replace(params=begin_fn(job.params))
  per_ticket = job_lib.program_of(job).num_batches

  applied = int(trace.applied()['num_batches'].sum())
  number = min(num_batches, applied)
  where = {}
  if executor == 'exact':
    where['placement'] = devices.of_one_worker(settings)
    where['shards'] = settings.server_shards
  with progress.counting('replaying', number, quiet=quiet) as reached:

    def observe(batches, state, metrics):
      del state, metrics
      if reached:
        reached(batches)
      return batches >= num_batches

    state, seen, _ = simulate.EXECUTORS[executor](
      job,
      trace,
      observe=observe if reached or num_batches < applied else None,
      align=max(1, setup.batches_per_row(settings) // per_ticket),
      **where,
    )
  return state, seen


def _job(settings) -> job_lib.Job:
  return job_lib.build(**setup.arguments(settings, setup.method_of(settings)))


def batches_of(workdir: str, trace: ga_jax.Trace) -> int:
  """The applied batches that the run computed: fewer where it diverged."""
  if not os.path.exists(os.path.join(workdir, 'summary.json')):
    return trace.num_batches
  return record.load_json(workdir, 'summary.json')['batches']


def made_by(settings: settings_lib.Settings) -> str:
  """The executor whose bits a run has: on several devices the exact one's."""
  ahead = settings.runtime != 'simulate' or settings.simulate_devices
  if ahead or setup.method_of(settings).policy.needs_loss:
    return 'exact'
  return settings.executor
