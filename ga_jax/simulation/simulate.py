"""Simulated training: a virtual clock, and every run the same twice.

The schedule is played on the host first (who finishes when, what the policy
decides); it needs no gradient. Its trace is then executed. Where the policy's
decisions depend on losses the two are interleaved: the schedule is played event
by event and computed as it goes, with the exact executor's functions.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ga_jax import clocks
from ga_jax.executors import exact, execution, fast, parallel
from ga_jax.executors import saving as checkpoints_lib
from ga_jax.executors.saving import Checkpoints
from ga_jax.guards import checks
from ga_jax.job import job as job_lib
from ga_jax.job import source
from ga_jax.policies.parts.base import Policy
from ga_jax.record import trace as trace_lib
from ga_jax.server import statistics, update
from ga_jax.simulation import virtual_cluster

EXECUTORS = {'fast': fast.execute, 'exact': exact.execute}


class Result(NamedTuple):
  """What a run leaves behind.

  Attributes:
    state: the server's state, a `update.ServerState`.
    trace: what happened; of a run that was stopped, until it was.
    metrics: host arrays with an entry per executed arrival: loss, staleness,
      num_batches, gap, mean_penalty, max_penalty, time; where they were asked
      for layer_gap and layer_mean_penalty too, [arrivals, layers].
    executed: how many of the trace's applied arrivals were computed.
  """

  state: update.ServerState
  trace: trace_lib.Trace
  metrics: dict[str, np.ndarray]
  executed: int

  @property
  def params(self):
    return self.state.params


def simulate(
  loss_fn: Callable[..., Any],
  params,
  batches: source.Source | Callable[[int], Any],
  rule,
  *,
  policy: Policy,
  clock: clocks.Clock,
  num_workers: int,
  num_batches: int,
  model_state=(),
  stats_momentum: float | None = None,
  fold_fn: statistics.FoldFn | None = None,
  seed: int = 0,
  hparams: Any = None,
  program: Callable[..., Any] | None = None,
  layer_metrics: bool = False,
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
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.
    params: initial parameters, a pytree of arrays; copied.
    batches: `batch_fn(batch_id) -> batch` of NumPy arrays, or a `Source`.
    rule: a rule, a plain optax transformation, or, with `hparams`, a function
      `rule(hparams) -> rule`.
    policy: whom the server waits for.
    clock: how long tasks take.
    num_workers: number of workers, at least 1.
    num_batches: batches to apply, at least 1.
    model_state: initial running statistics, () without: moving averages
      (floating-point leaves) and counters (integers).
    stats_momentum: momentum m of the averages (0.99 in Flax's BatchNorm by
      default); required where there are any.
    fold_fn: instead, for statistics of another kind: `fold_fn(returned, now,
      sent, num_batches) -> model_state`, see `statistics.Averages`.
    seed: of the keys that batches and losses are given.
    hparams: numbers for `rule` and `program`; other numbers compile nothing
      again.
    program: what a worker does, `program(loss_fn) -> Program`, or, with
      `hparams`, `program(hparams)(loss_fn)`; by default `programs.gradient`.
    layer_metrics: whether to measure gap and penalty of every layer (a leaf of
      the parameters, in their order: `rules.layers.names`) at every arrival.
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
    ValueError: an argument is out of range, or rule and policy do not go
      together.
    OccupiedError: another process is saving where the checkpoints go.
    RecoveryError: the checkpoint is of another run.

  Examples:
    >>> import ga_jax, jax.numpy as jnp, numpy as np
    >>> loss = lambda p, s, x, key: (jnp.mean((x - p) ** 2), s)
    >>> result = ga_jax.simulate(
    ...     loss, jnp.zeros(()), lambda i: np.ones(4, np.float32),
    ...     ga_jax.gap_aware(0.01), policy=ga_jax.policies.asynchronous(),
    ...     clock=ga_jax.clocks.homogeneous(0), num_workers=4, num_batches=500)
    >>> print(round(float(result.params), 2))
    1.0
  """
  if executor not in EXECUTORS:
    raise ValueError(
      f'executor must be one of {sorted(EXECUTORS)}, got {executor!r}'
    )
  job, settings = prepared(
    loss_fn,
    params,
    batches,
    rule,
    policy=policy,
    num_workers=num_workers,
    num_batches=num_batches,
    model_state=model_state,
    stats_momentum=stats_momentum,
    fold_fn=fold_fn,
    seed=seed,
    hparams=hparams,
    program=program,
    layer_metrics=layer_metrics,
  )
  execute = EXECUTORS[executor]
  if block is not None:
    block = checks.integer('block', block, 1)
  if devices is not None:
    _check_devices(devices, policy)
    execute = functools.partial(parallel.execute, devices=devices)
  if align is not None:
    align = checks.integer('align', align, 1)
    align = max(1, align // settings['batches_per_ticket'])
  with checkpoints.owned() if checkpoints else contextlib.nullcontext():
    if policy.needs_loss:
      return _interleaved(
        job,
        policy,
        clock,
        settings,
        observe,
        take_events,
        block or align,
        checkpoints,
      )
    trace = virtual_cluster.schedule(policy, clock, **settings)
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


def _result(state, trace, metrics, executed) -> Result:
  """A result, whose trace ends where the computation did."""
  done = trace.until(executed, int(state.version))
  return Result(state, done, metrics, executed)


def prepared(
  loss_fn, params, batches, rule, *, policy, num_workers, num_batches, **of_job
) -> tuple[job_lib.Job, dict[str, Any]]:
  """The job of a run, and how its cluster is played; see `simulate`."""
  job = job_lib.build(loss_fn, params, batches, rule, policy=policy, **of_job)
  job_lib.check_workers(job, num_workers)
  program = job_lib.program_of(job)
  return job, {
    'num_workers': num_workers,
    'num_batches': num_batches,
    'batches_per_ticket': program.num_batches,
    'overlaps': program.overlaps,
    'streams': job.source.streams,
  }


def _check_devices(devices: Sequence[Any], policy: Policy):
  if not devices:
    raise ValueError('devices must name at least one, or be None')
  if policy.needs_loss:
    raise ValueError(
      'devices must be None: this policy decides by losses, so that nothing '
      'can be computed ahead on several'
    )


def _interleaved(
  job, policy, clock, settings, observe, take_events, block, checkpoints
) -> Result:
  """Plays the cluster and computes what happens as it happens."""
  of_run = checkpoints_lib.of_job(
    job,
    executor='exact',
    num_workers=settings['num_workers'],
    num_batches=settings['num_batches'],
    policy=checkpoints_lib.of_policy(policy),
  )
  run = exact.Run(execution.Execution(job), checkpoints, of_run)
  books = virtual_cluster.play(policy, clock, loss_fn=run.loss, **settings)
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
    rows(), settings['num_batches'], observe, block
  )
  return _result(state, book.trace(settings['num_workers']), metrics, executed)
