"""The exact executor: a trace, event by event, with a live run's functions.

Gradient and update are compiled separately and dispatched one event at a time,
as a live run does, so the result has its bits.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ga_jax import kernel, ledger, server
from ga_jax.policies.base import Action, Kind
from ga_jax.runtimes import job as job_lib


@functools.lru_cache(maxsize=64)
def compiled_program(job_program, loss_fn, load_fn):
  """Compiles a worker's answer to a ticket.

  Returns:
    `answer(worker_state, sent, host_batches, resident, key, first_batch,
    attempt) -> (Submission, worker_state)`.
  """

  @jax.jit
  def answer(
    worker_state, sent, host_batches, resident, key, first_batch, attempt
  ):
    program = job_lib.worker_program(job_program, loss_fn, load_fn, resident)
    number = jax.tree.leaves(host_batches)[0].shape[0]
    keys = job_lib.batch_keys(key, first_batch, number, attempt)
    return program.run(worker_state, sent, host_batches, keys)

  return answer


def execute(
  job: job_lib.Job,
  trace,
  observe: Callable[[int, kernel.ServerState, Any], bool] | None = None,
  block: int | None = None,
  align: int | None = None,
) -> tuple[kernel.ServerState, dict[str, np.ndarray], int]:
  """Computes a trace.

  Args:
    job: what to compute.
    trace: a `Trace`.
    observe: `observe(arrivals_so_far, state, metrics) -> stop`, called every
      `block` applied arrivals with that block's metrics.
    block: arrivals between two observations, the last one may be shorter;
      `align` or 1 by default.
    align: see `block`.

  Returns:
    The final state, metrics per applied arrival, and how many were executed.
  """
  block = block or align or 1
  key = jax.random.key(job.seed)
  compiled = kernel.compiled(job.rule_fn, job.stats_momentum, job.accumulates)
  core = server.ServerCore(
    compiled, job.hparams, job.params, job.model_state, job.accumulates
  )
  answer = compiled_program(job.program, job.loss_fn, job.source.load_fn)
  start = job_lib.worker_program(
    job.program, job.loss_fn, job.source.load_fn, job.source.resident
  ).init
  worker_states, log, observed = {}, [], 0
  total = len(trace.applied())
  for row in trace.events.tolist():
    (_, event, worker, ticket_id, version, *fields, action, weight, stale) = row
    if event == Kind.ISSUE:
      core.hold(version)
      continue
    if event == Kind.CLOSE:
      core.close()
      continue
    if ticket_id < 0 or action == Action.REFUSE:
      continue
    ticket = ledger.Ticket(ticket_id, worker, version, *fields)
    if event == Kind.ARRIVE and action in (Action.APPLY, Action.ACCUMULATE):
      if worker not in worker_states:
        worker_states[worker] = start(job.params)
      submission, worker_states[worker] = answer(
        worker_states[worker],
        core.store.read(version),
        job_lib.host_batches(
          job.source, ticket.first_batch, ticket.num_batches
        ),
        job.source.resident,
        key,
        np.int32(ticket.first_batch),
        np.int32(ticket.attempt),
      )
      metrics = core.enter(
        ticket,
        submission.grads,
        submission.model_state,
        action=action,
        weight=weight,
        staleness=stale,
      )
      log.append(job_lib.record(submission, metrics, stale))
    core.release(version)
    if (
      observe
      and len(log) > observed
      and (len(log) % block == 0 or len(log) == total)
    ):
      fresh, observed = stacked(log[observed:]), len(log)
      if observe(observed, core.state, fresh):
        break
  return core.state, stacked(log), len(log)


def stacked(log) -> dict[str, np.ndarray]:
  """A list of metric dicts as a dict of host arrays."""
  if not log:
    return {}
  return {k: np.stack([np.asarray(m[k]) for m in log]) for k in log[0]}
