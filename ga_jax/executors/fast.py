"""The fast executor: blocks of whole events in compiled code.

Gradient, update and snapshot buffer of a block of arrivals are one program: a
scan, or, for models with convolutions on the CPU, an unrolled block, because
convolutions inside XLA's CPU loops run about nine times slower. It is the same
mathematics as the exact executor with other fusion, so equal to rounding only,
and rounding grows along a trajectory.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax.executors import saving as checkpoints_lib
from ga_jax.executors import slots
from ga_jax.job import job as job_lib
from ga_jax.job import metrics as metrics_lib
from ga_jax.job import program as program_lib
from ga_jax.job import source
from ga_jax.rules.parts import optimizer
from ga_jax.server import statistics, update

UNROLLED_BLOCK = 8  # arrivals; longer compiles longer and gains little
UNROLLED_CONVOLUTIONS = 64  # of a block, see `block_length`
SCANNED_BLOCK = 64
LONGEST_SCAN = 128


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


def unrolled_convolutions(job: job_lib.Job) -> int:
  """The convolutions of a ticket, gradients included, where blocks are unrolled
  for them: on the CPU. Elsewhere 0."""
  return convolutions(job) if jax.default_backend() == 'cpu' else 0


def convolutions(job: job_lib.Job) -> int:
  """How many convolutions a ticket of a job takes, gradients included."""
  program = job.worker_program
  batches = source.host_batches(job.source, 0, program.num_batches)

  def run(params, model_state, key):
    return program.run(
      program.init(params),
      update.Snapshot(params, model_state),
      program_lib.work(key, batches, 0, 0),
    )

  return _count(
    jax.make_jaxpr(run)(job.params, job.model_state, jax.random.key(0))
  )


def _count(jaxpr) -> int:
  """The convolutions of a jaxpr and of those within it."""
  total = 0
  for equation in jaxpr.eqns:
    total += equation.primitive.name == 'conv_general_dilated'
    values = list(equation.params.values())
    inner = jax.tree.leaves(values, is_leaf=lambda x: hasattr(x, 'eqns'))
    total += sum(_count(part) for part in inner if hasattr(part, 'eqns'))
  return total


def block_length(unrolled: int, align: int | None) -> int:
  """Arrivals per block.

  An unrolled block compiles for as long as it has convolutions, so that those
  of deep networks are shorter. ResNet-20 (56, batch 16) took 8, 15 and 30 s of
  CPU time to compile for 1, 2 and 4 arrivals, and about 85 ms for each of them.

  Args:
    unrolled: of `unrolled_convolutions`; 0 where blocks are scanned.
    align: arrivals between two points of interest (an epoch); the block is not
      longer, and a scan's length divides it where a reasonable one does.

  Returns:
    The length.
  """
  if unrolled:
    longest = max(UNROLLED_CONVOLUTIONS // unrolled, 1)
    return min(longest, UNROLLED_BLOCK, align or UNROLLED_BLOCK)
  if align:
    longest = max(
      n for n in range(1, min(align, LONGEST_SCAN) + 1) if align % n == 0
    )
    if longest == align or longest >= LONGEST_SCAN // 8:
      return longest
  return SCANNED_BLOCK


def block_of(
  job: job_lib.Job, resets: bool, unrolled: int, mapped: bool = False
):
  """The `compiled_block` of a job.

  Args:
    job: what to compute.
    resets: whether a worker is lost.
    unrolled: of `unrolled_convolutions`.
    mapped: whether it computes several runs.

  Returns:
    The compiled function.
  """
  return compiled_block(
    job.rule_fn,
    job.program_fn,
    job.loss_fn,
    job.source.load_fn,
    job.fold,
    job.accumulates,
    bool(resets),
    unrolled > 0,
    mapped,
    job.layer_metrics,
  )


@functools.lru_cache(maxsize=64)
def compiled_block(
  rule_fn: Callable[[Any], Any],
  program_fn,
  loss_fn,
  load_fn,
  fold_fn: statistics.FoldFn,
  accumulates: bool,
  resets: bool,
  unrolled: bool,
  mapped: bool,
  layer_metrics: bool,
):
  """Compiles `block(carry, steps, hparams, resident, key) -> (carry, metrics)`.

  The carry is donated. The number of arrivals in a block is that of `steps`.
  Worker states are set back only where `resets` says that a worker was lost.
  A `mapped` block computes several runs: all of its arguments but `resident`
  have a leading axis of runs.
  """

  def block(carry, steps, hparams, resident, key):
    rule = rule_fn(hparams)
    program = program_lib.over_host_batches(
      program_fn, hparams, loss_fn, load_fn, resident
    )

    def publish(state, buffer, slot):
      sent = update.snapshot(rule, state)
      return jax.tree.map(
        lambda rows, x: jax.lax.dynamic_update_index_in_dim(rows, x, slot, 0),
        buffer,
        sent,
      )

    def close(state, buffer, slot):
      state = update.close(rule, state)
      return state, publish(state, buffer, slot)

    def arrive(hold, item):
      (state, buffer, workers), sent, worker = hold
      step, next_slot, next_worker = item
      if len(step.left):
        state = _without(state, step.left)
      if resets:
        worker = jax.tree.map(
          lambda x, first: jnp.where(step.reset, first, x),
          worker,
          program.init(state.params),
        )
      submission, worker = program.run(
        worker,
        sent,
        program_lib.work(
          key, step.host_batches, step.first_batch, step.attempt
        ),
      )
      submission, worker, sent = program_lib.received(
        program, worker, submission, sent, state.params
      )
      workers = jax.tree.map(
        lambda rows, x: rows.at[step.worker_id].set(x), workers, worker
      )
      number = jax.tree.leaves(step.host_batches)[0].shape[0]
      fresh = program.exchange is not None
      arrival = update.Arrival(
        grads=submission.grads,
        model_state=submission.model_state,
        sent=sent,
        staleness=jnp.zeros_like(step.staleness) if fresh else step.staleness,
        worker_id=step.worker_id,
        weight=step.weight,
        num_batches=jnp.int32(number),
      )
      layers = None
      if layer_metrics:
        layers = update.layer_metrics(rule, state, arrival)
      if accumulates:
        state, metrics = update.accumulate(rule, state, arrival, fold_fn)
        state, buffer = jax.lax.cond(
          step.close,
          close,
          lambda state, buffer, slot: (state, buffer),
          state,
          buffer,
          step.write_slot,
        )
      else:
        before = state.params
        state, metrics = update.apply(rule, state, arrival, fold_fn)
        state = state._replace(params=_after(metrics.gap, before, state.params))
        buffer = publish(state, buffer, step.write_slot)
      hold = held(Carry(state, buffer, workers), next_slot, next_worker)
      return hold, metrics_lib.record(
        submission, metrics, layers, step.staleness, jnp.int32(number)
      )

    # Rows are read ahead, after the last write and before the next one: where
    # the readers of a row could still be waiting when another is written, XLA
    # copies the whole buffer in every step.
    def held(carry, slot, worker_id):
      def read(slot, worker_id):
        return _row(carry.buffer, slot), _row(carry.workers, worker_id)

      if not unrolled:  # the loop's carry holds them
        return carry, *read(slot, worker_id)
      # Without a loop XLA would read them again wherever they are used; what
      # comes out of a branch it takes as it is. No slot is negative.
      return carry, *jax.lax.cond(
        slot < 0, lambda *_: read(0, 0), read, slot, worker_id
      )

    items = steps, _following(steps.read_slot), _following(steps.worker_id)
    hold = held(carry, steps.read_slot[0], steps.worker_id[0])
    if unrolled and len(steps.weight) == 1:  # would stay a loop of one step
      hold, metrics = arrive(hold, jax.tree.map(lambda x: x[0], items))
      return hold[0], jax.tree.map(lambda x: x[None], metrics)
    hold, metrics = jax.lax.scan(arrive, hold, items, unroll=unrolled)
    return hold[0], metrics

  if mapped:
    block = jax.vmap(block, in_axes=(0, 0, 0, None, 0))
  return jax.jit(block, donate_argnums=0)


def execute(
  job: job_lib.Job,
  trace,
  observe: Callable[[int, update.ServerState, Any], bool] | None = None,
  block: int | None = None,
  align: int | None = None,
  checkpoints: checkpoints_lib.Checkpoints | None = None,
) -> tuple[update.ServerState, dict[str, np.ndarray], int]:
  """Computes a trace.

  Args:
    job: what to compute.
    trace: a `Trace`.
    observe: `observe(batches_so_far, state, metrics) -> stop`, called after
      each block with that block's metrics as device arrays. The state is
      donated to the next block: it must be used before `observe` returns.
    block: arrivals per block; by default `block_length` decides. Blocks are cut
      at its multiples; what is left at the end is computed one by one, and so
      is a block with a ticket of fewer batches than the others.
    align: see `block_length`.
    checkpoints: where to go on from the newest checkpoint, if there is one, and
      to save at ends of blocks, after `observe`. The result has the bits of a
      run that was never interrupted; `observe` is called for the blocks that
      are computed now. The job must be the same: `Checkpoints` says what of it
      is compared.

  Returns:
    The final state, metrics per executed arrival, and how many there are.

  Raises:
    RecoveryError: the newest checkpoint is of another run or block length.
    ValueError: its parameters have other shapes.
  """
  source.expect(job.source, trace)
  plan = plan_of(job, trace)
  unrolled = unrolled_convolutions(job)
  length = block or block_length(unrolled, align)
  run_block = block_of(job, plan.reset.any(), unrolled)
  carry = first_carry(job, plan, trace.num_workers)
  key, log, done = jax.random.key(job.seed), [], 0
  run = {
    **checkpoints_lib.of_trace(job, trace, executor='fast'),
    'trace': checkpoints_lib.digest(trace),
    'block length': length,
  }
  if checkpoints and (saved := checkpoints.resume(run)):
    carry = saved.load(carry)
    log, done = [saved.host['metrics']], saved.host['done']
  at_hand = done  # what the newest checkpoint holds
  held = plan.arrivals['num_batches']
  batches, versions = np.cumsum(held), np.cumsum(plan.close)

  def save():
    nonlocal at_hand
    at_hand = done
    log[:] = [metrics_lib.joined(log)]
    host = {'done': done, 'metrics': log[0]}
    checkpoints.save(int(versions[done - 1]), carry, host)

  while done < len(held):
    whole = held[done : done + length]
    even = len(whole) == length and np.all(whole == whole[0])
    # Inside an uneven block its other arrivals are computed alone too.
    size = length if even and done % length == 0 else 1
    carry, metrics = run_block(
      carry,
      steps_of(job, plan, slice(done, done + size)),
      job.hparams,
      job.source.resident,
      key,
    )
    metrics['time'] = plan.arrivals['time'][done : done + size]
    done += size
    log.append(metrics)
    if observe and observe(int(batches[done - 1]), carry.state, metrics):
      break
    if checkpoints and checkpoints.due(int(versions[done - 1])):
      save()
  if checkpoints and done > at_hand:
    save()
  state = carry.state if done < len(held) else left_at_end(carry.state, plan)
  return state, metrics_lib.joined(log), done


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


def _following(values):
  """The value of the next step; of the last one any that is in range."""
  return jnp.concatenate([values[1:], values[:1]])


def _after(gap, before, params):
  """The same parameters, on the CPU after the gap is measured.

  No gap is negative, but XLA learns an order: without one it copies parameters
  and row in every step, for one is overwritten and the other read.
  """
  if jax.default_backend() != 'cpu':
    return params
  return jax.tree.map(
    lambda old, new: jnp.where(gap < 0, old, new), before, params
  )


def _row(tree, index):
  return jax.tree.map(
    lambda rows: jax.lax.dynamic_index_in_dim(rows, index, 0, keepdims=False),
    tree,
  )


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
    host_batches=jax.tree.map(lambda *leaves: np.stack(leaves), *batches),
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
