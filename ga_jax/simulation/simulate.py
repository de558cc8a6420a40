"""Simulated training: a virtual clock, and every run the same twice.

The schedule is played on the host first (who finishes when, what the policy
decides); it needs no gradient. Its trace is then executed. Where the policy's
decisions depend on losses the two are interleaved: the schedule is played event
by event and computed as it goes, with the exact executor's functions.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

from ga_jax import clocks
from ga_jax.executors import exact, execution, fast, parallel
from ga_jax.executors import saving as checkpoints_lib
from ga_jax.executors.saving import Checkpoints
from ga_jax.guards import checks
from ga_jax.job import job as job_lib
from ga_jax.job.result import Result
from ga_jax.policies.parts.base import Policy
from ga_jax.server import update
from ga_jax.simulation import virtual_cluster

EXECUTORS = {'fast': fast.execute, 'exact': exact.execute}


@job_lib.takes_a_job
def simulate(
  job: job_lib.Job,
  clock: clocks.Clock,
  *,
  num_workers: int,
  num_batches: int,
  executor: str = 'fast',
  devices: Sequence[Any] | None = None,
  block: int | None = None,
  align: int | None = None,
  observe: Callable[[int, update.ServerState, Any], bool] | None = None,
  take_events: Callable[[Sequence[tuple]], None] | None = None,
  checkpoints: Checkpoints | None = None,
) -> Result:
  """Trains with N simulated workers.

  Args:
    job: what is trained.
    clock: how long tasks take.
    num_workers: number of workers, at least 1.
    num_batches: batches to apply, at least 1.
    executor: 'fast' (compiled blocks) or 'exact' (a live run's bits). A policy
      that needs losses is always computed event by event.
    devices: compute gradients ahead on all of these, with threads, and make the
      updates on the first of them. Whatever `executor` says the bits are those
      of the exact one on one device, where XLA's CPU thread pool is of the same
      size. Not for a policy that needs losses.
    block: arrivals per block, and between two calls of `observe`.
    align: batches between points of interest (an epoch); blocks are chosen to
      end there where that is possible.
    observe: `observe(batches, state, metrics) -> stop`, batches applied so far.
    take_events: given the rows of the trace in order, before they are computed:
      all of them at once, or as they happen where the policy needs losses.
    checkpoints: where to save the run, and how often; what is there already is
      gone on with, to the same bits as a run that was never stopped.
      `Checkpoints` says what must be the same for that.

  Returns:
    A `Result`.

  Raises:
    ValueError: an argument is out of range, or rule and workers do not go
      together.
    TooLargeError: there is no memory for so many workers or batches.
    OccupiedError: another process is saving where the checkpoints go.
    RecoveryError: the checkpoint is of another run.

  Examples:
    >>> import ga_jax, jax.numpy as jnp, numpy as np
    >>> loss = lambda p, s, x, key: (jnp.mean((x - p) ** 2), s)
    >>> job = ga_jax.Job(
    ...     loss, jnp.zeros(()), lambda i: np.ones(4, np.float32),
    ...     ga_jax.gap_aware(0.01), ga_jax.policies.asynchronous())
    >>> result = ga_jax.simulate(
    ...     job, ga_jax.clocks.homogeneous(0), num_workers=4, num_batches=500)
    >>> print(round(float(result.params), 2))
    1.0
  """
  if executor not in EXECUTORS:
    raise ValueError(
      f'executor must be one of {sorted(EXECUTORS)}, got {executor!r}'
    )
  execute = EXECUTORS[executor]
  if block is not None:
    block = checks.integer('block', block, 1)
  if devices is not None:
    _check_devices(devices, job.policy)
    execute = functools.partial(parallel.execute, devices=devices)
  cluster = cluster_of(job, num_workers, num_batches)
  if align is not None:
    align = checks.integer('align', align, 1)
    align = max(1, align // cluster['batches_per_ticket'])
  with checkpoints.owned() if checkpoints else contextlib.nullcontext():
    if job.policy.needs_loss:
      return _interleaved(
        job, clock, cluster, observe, take_events, block or align, checkpoints
      )
    trace = virtual_cluster.schedule(job.policy, clock, **cluster)
    if take_events:
      take_events(trace.events)
    state, metrics, executed = execute(
      job,
      trace,
      observe=observe,
      block=block,
      align=align,
      checkpoints=checkpoints,
    )
  return _result(state, trace, metrics, executed)


def cluster_of(
  job: job_lib.Job, num_workers: int, num_batches: int
) -> dict[str, Any]:
  """How the cluster of a run is played; see `virtual_cluster.play`.

  Raises:
    ValueError: the job does not fit so many workers.
  """
  program = job.worker_program
  return {
    'num_workers': job.check_workers(num_workers),
    'num_batches': num_batches,
    'batches_per_ticket': program.num_batches,
    'overlaps': program.overlaps,
    'streams': job.batches.streams,
  }


def _result(state, trace, metrics, executed) -> Result:
  """A result, whose trace ends where the computation did."""
  return Result(state, trace.until(executed, int(state.version)), metrics)


def _check_devices(devices: Sequence[Any], policy: Policy):
  if not devices:
    raise ValueError('devices must name at least one, or be None')
  if policy.needs_loss:
    raise ValueError(
      'devices must be None: this policy decides by losses, so that nothing '
      'can be computed ahead on several'
    )


def _interleaved(
  job, clock, cluster, observe, take_events, block, checkpoints
) -> Result:
  """Plays the cluster and computes what happens as it happens."""
  of_run = checkpoints_lib.of_job(
    job,
    executor='exact',
    num_workers=cluster['num_workers'],
    num_batches=cluster['num_batches'],
    policy=checkpoints_lib.of_policy(job.policy),
  )
  run = exact.Run(execution.Execution(job), checkpoints, of_run)
  books = virtual_cluster.play(job.policy, clock, loss_fn=run.loss, **cluster)
  book = None

  def rows():
    nonlocal book
    start = 0
    for book in books:
      fresh, start = book.rows(start), book.num_rows
      if take_events:
        take_events(fresh)
      yield from fresh

  state, metrics, executed = run.consume(
    rows(), cluster['num_batches'], observe, block
  )
  return _result(state, book.trace(cluster['num_workers']), metrics, executed)
