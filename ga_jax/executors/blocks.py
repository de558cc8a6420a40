"""What the fast executor compiles: blocks of arrivals, one program each.

`arrive` says what one arrival means, with the server's own functions; it is
what the exact executor does event by event. `kernels.row_buffers` makes a loop
of it that copies nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax.executors import slots
from ga_jax.job import job as job_lib
from ga_jax.job import metrics as metrics_lib
from ga_jax.job import program as program_lib
from ga_jax.job import source
from ga_jax.kernels import row_buffers
from ga_jax.rules.parts import optimizer
from ga_jax.server import statistics, update


class Carry(NamedTuple):
  """What goes from arrival to arrival."""

  state: update.ServerState
  buffer: update.Snapshot  # each leaf [rows, ...]: the live versions
  workers: Any  # worker-program states, each leaf [num_workers, ...]


class Step(NamedTuple):
  """One arrival, as compiled code reads it; stacked along a block."""

  host_batches: Any  # leaves [num_batches, ...]
  first_batch: Any
  attempt: Any
  worker_id: Any
  staleness: Any
  weight: Any
  close: Any
  reset: Any  # the worker was lost since its last arrival
  left: Any  # who left before it, −1 for nobody, [most]
  read_slot: Any
  write_slot: Any


class Spec(NamedTuple):
  """What a block is compiled for; hashable.

  Attributes:
    rule_fn: `rule_fn(hparams) -> rule`.
    program_fn: `program_fn(hparams)(loss_fn) -> Program`.
    loss_fn: of the job.
    load_fn: of its source.
    fold_fn: how model statistics are folded.
    accumulates: whether the policy averages rounds.
    layer_metrics: whether gap and penalty are measured by layer too.
    resets: whether a worker is lost, so that its state is set back.
    unrolled: whether the arrivals of a block are no loop.
    mapped: whether it computes several runs at once.
  """

  rule_fn: Callable[[Any], Any]
  program_fn: Callable[[Any], Any]
  loss_fn: Callable[..., Any]
  load_fn: Callable[..., Any]
  fold_fn: statistics.FoldFn
  accumulates: bool
  layer_metrics: bool
  resets: bool
  unrolled: bool
  mapped: bool


def arrive(spec: Spec, rule, program, key, carry: Carry, rows, step: Step):
  """One arrival.

  Args:
    spec: what of it there is.
    rule: the server rule.
    program: the worker program, over host batches.
    key: of the run.
    carry: before it.
    rows: (what its worker was sent, its worker's program state).
    step: the arrival.

  Returns:
    (the carry after it, its metrics by name).
  """
  (state, buffer, workers), (sent, worker) = carry, rows
  if len(step.left):
    state = _without(state, step.left)
  if spec.resets:
    worker = jax.tree.map(
      lambda x, first: jnp.where(step.reset, first, x),
      worker,
      program.init(state.params),
    )
  work = program_lib.work(
    key, step.host_batches, step.first_batch, step.attempt
  )
  submission, worker = program.run(worker, sent, work)
  submission, worker, sent = program_lib.received(
    program, worker, submission, sent, state.params
  )
  workers = jax.tree.map(
    lambda rows, x: rows.at[step.worker_id].set(x), workers, worker
  )
  arrival = _arrival(step, submission, sent, program.exchange is not None)
  layers = None
  if spec.layer_metrics:
    layers = update.layer_metrics(rule, state, arrival)
  enter = _accumulate if spec.accumulates else _apply
  state, buffer, metrics = enter(
    rule, spec.fold_fn, state, buffer, arrival, step
  )
  return Carry(state, buffer, workers), metrics_lib.record(
    submission, metrics, layers, step.staleness, arrival.num_batches
  )


def _arrival(step: Step, submission, sent, fresh: bool) -> update.Arrival:
  """A submission as the server sees it; a fresh one is computed at `sent`."""
  number = jax.tree.leaves(step.host_batches)[0].shape[0]
  return update.Arrival(
    grads=submission.grads,
    model_state=submission.model_state,
    sent=sent,
    staleness=jnp.zeros_like(step.staleness) if fresh else step.staleness,
    worker_id=step.worker_id,
    weight=step.weight,
    num_batches=jnp.int32(number),
  )


def _accumulate(rule, fold_fn, state, buffer, arrival, step: Step):
  """It joins the open round, which may be closed by it."""

  def close(state, buffer, slot):
    state = update.close(rule, state)
    return state, _publish(rule, state, buffer, slot)

  state, metrics = update.accumulate(rule, state, arrival, fold_fn)
  state, buffer = jax.lax.cond(
    step.close,
    close,
    lambda state, buffer, slot: (state, buffer),
    state,
    buffer,
    step.write_slot,
  )
  return state, buffer, metrics


def _apply(rule, fold_fn, state, buffer, arrival, step: Step):
  """It is a whole round."""
  before = state.params
  state, metrics = update.apply(rule, state, arrival, fold_fn)
  params = row_buffers.after(metrics.gap, before, state.params)
  state = state._replace(params=params)
  return state, _publish(rule, state, buffer, step.write_slot), metrics


def _publish(rule, state, buffer, slot):
  """The buffer with what is sent at the version of `state`."""
  return row_buffers.write(buffer, slot, update.snapshot(rule, state))


def block_of(
  job: job_lib.Job, resets: bool, unrolled: int, mapped: bool = False
):
  """The `compiled_block` of a job.

  Args:
    job: what to compute.
    resets: whether a worker is lost.
    unrolled: of `lengths.unrolled_convolutions`.
    mapped: whether it computes several runs.

  Returns:
    The compiled function.
  """
  return compiled_block(
    Spec(
      rule_fn=job.rule_fn,
      program_fn=job.program_fn,
      loss_fn=job.loss_fn,
      load_fn=job.source.load_fn,
      fold_fn=job.fold,
      accumulates=job.accumulates,
      layer_metrics=job.layer_metrics,
      resets=bool(resets),
      unrolled=unrolled > 0,
      mapped=mapped,
    )
  )


@functools.lru_cache(maxsize=64)
def compiled_block(spec: Spec):
  """Compiles `block(carry, steps, hparams, resident, key) -> (carry, metrics)`.

  The carry is donated. The number of arrivals in a block is that of `steps`. A
  `mapped` block computes several runs: all of its arguments but `resident` have
  a leading axis of runs.
  """

  def block(carry, steps, hparams, resident, key):
    rule = spec.rule_fn(hparams)
    program = program_lib.over_host_batches(
      spec.program_fn, hparams, spec.loss_fn, spec.load_fn, resident
    )
    return row_buffers.scan(
      functools.partial(arrive, spec, rule, program, key),
      carry,
      steps,
      read_fn=_read,
      where=(steps.read_slot, steps.worker_id),
      unrolled=spec.unrolled,
    )

  if spec.mapped:
    block = jax.vmap(block, in_axes=(0, 0, 0, None, 0))
  return jax.jit(block, donate_argnums=0)


def _read(carry: Carry, slot, worker_id):
  """What a worker was sent, and its program state."""
  return (
    row_buffers.read(carry.buffer, slot),
    row_buffers.read(carry.workers, worker_id),
  )


def plan_of(job: job_lib.Job, trace) -> slots.Plan:
  """The plan of a trace; nobody leaves a rule that knows no workers."""
  plan = slots.plan(trace)
  rule = job.rule_fn(job.hparams)
  if optimizer.per_worker(jax.eval_shape(rule.init, job.params)):
    return plan
  return plan._replace(left=plan.left[:, :0])


def left_at_end(state: update.ServerState, plan: slots.Plan):
  """The state after those who left when the last gradient had arrived."""
  return _without(state, plan.left[-1]) if plan.left.size else state


@jax.jit
def _without(state: update.ServerState, left) -> update.ServerState:
  """The state when these workers have left; −1 is nobody."""

  def leave(i, opt_state):
    return jax.lax.cond(
      left[i] < 0, lambda s, _: s, optimizer.leave, opt_state, left[i]
    )

  opt_state = jax.lax.fori_loop(0, len(left), leave, state.opt_state)
  return state._replace(opt_state=opt_state)


def first_carry(job: job_lib.Job, plan: slots.Plan, num_workers: int) -> Carry:
  """What a run begins with; version 0 is in row 0."""
  begin = compiled_start(
    job.rule_fn,
    job.program_fn,
    job.loss_fn,
    job.source.load_fn,
    job.accumulates,
  )
  return begin(
    job.hparams,
    job.source.resident,
    job.params,
    job.model_state,
    rows=plan.rows,
    num_workers=num_workers,
  )


@functools.lru_cache(maxsize=64)
def compiled_start(
  rule_fn: Callable[[Any], Any],
  program_fn,
  loss_fn,
  load_fn,
  accumulates: bool,
):
  """Compiles what makes the first carry; one program, which copies nothing.

  Its arguments are the hyper-parameters, what is resident, parameters and model
  statistics, and `rows` and `num_workers` by name. Version 0 is in row 0.
  """

  def start(hparams, resident, params, model_state, *, rows, num_workers):
    rule = rule_fn(hparams)
    program = program_lib.over_host_batches(
      program_fn, hparams, loss_fn, load_fn, resident
    )
    state = update.init(rule, params, model_state, accumulates=accumulates)
    buffer = jax.tree.map(
      lambda x: jnp.zeros((rows, *x.shape), x.dtype).at[0].set(x),
      update.snapshot(rule, state),
    )
    workers = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (num_workers, *jnp.shape(x))),
      program.init(params),
    )
    return Carry(state, buffer, workers)

  return jax.jit(start, static_argnames=('rows', 'num_workers'))


def steps_of(job: job_lib.Job, plan: slots.Plan, part: slice) -> Step:
  """A part of a plan as compiled code reads it, host batches included."""
  rows = plan.arrivals[part]
  batches = [
    source.host_batches(job.source, first, number)
    for first, number in zip(
      rows['first_batch'].tolist(), rows['num_batches'].tolist(), strict=True
    )
  ]
  return Step(
    host_batches=source.stacked(batches, rows['first_batch'].tolist()),
    first_batch=rows['first_batch'].astype(np.int32),
    attempt=rows['attempt'],
    worker_id=rows['worker_id'],
    staleness=rows['staleness'],
    weight=rows['weight'],
    close=plan.close[part],
    reset=plan.reset[part],
    left=plan.left[part],
    read_slot=plan.read_slot[part],
    write_slot=plan.write_slot[part],
  )
