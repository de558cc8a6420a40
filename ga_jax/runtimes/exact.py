"""The exact executor: a trace, event by event, with a live run's functions.

Gradient and update are compiled separately and dispatched one event at a time,
as a live run does, so the result has its bits.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from ga_jax import kernel, ledger, server
from ga_jax.policies.base import Action, Kind
from ga_jax.runtimes import job as job_lib


@functools.lru_cache(maxsize=64)
def compiled_program(program_fn, loss_fn, load_fn):
  """Compiles what a worker does, and what is done with its answer at arrival.

  Returns:
    `answer(hparams, worker_state, sent, host_batches, resident, key,
    first_batch, attempt) -> (Submission, worker_state)` and
    `exchange(hparams, worker_state, submission, sent, params) -> (Submission,
    worker_state, sent)`.
  """

  def program(hparams, resident=()):
    return job_lib.worker_program(
      program_fn, hparams, loss_fn, load_fn, resident
    )

  @jax.jit
  def answer(
    hparams,
    worker_state,
    sent,
    host_batches,
    resident,
    key,
    first_batch,
    attempt,
  ):
    work = job_lib.work(key, host_batches, first_batch, attempt)
    return program(hparams, resident).run(worker_state, sent, work)

  @jax.jit
  def exchange(hparams, worker_state, submission, sent, params):
    return job_lib.exchange(
      program(hparams), worker_state, submission, sent, params
    )

  return answer, exchange


class Execution:
  """A server and its workers, computed row by row of a trace.

  Attributes:
    state: the server's state.
  """

  def __init__(self, job: job_lib.Job):
    self._job = job
    self._key = jax.random.key(job.seed)
    self._core = server.ServerCore(
      kernel.compiled(job.rule_fn, job.stats_momentum, job.accumulates),
      job.hparams,
      job.params,
      job.model_state,
      job.accumulates,
    )
    self._answer, self._exchange = compiled_program(
      job.program_fn, job.loss_fn, job.source.load_fn
    )
    self._program = job_lib.program_of(job)
    self._workers = {}  # worker_id -> committed program state
    self._answers = {}  # ticket_id -> (submission, program state), not entered

  @property
  def state(self) -> kernel.ServerState:
    return self._core.state

  def loss(self, ticket: ledger.Ticket) -> float:
    """The loss of a ticket that is about to be answered."""
    self._answers[ticket.ticket_id] = answer = self._compute(ticket)
    return float(answer[0].loss)

  def process(self, row) -> dict[str, Any] | None:
    """Computes what a row says.

    Args:
      row: values in the order of `trace.EVENT_DTYPE`.

    Returns:
      The metrics of a gradient that entered a round, else None.
    """
    (_, event, worker, ticket_id, version, *fields, action, weight, stale) = row
    if event == Kind.ISSUE:
      self._core.hold(version)
    elif event == Kind.CLOSE:
      self._core.close()
    elif event == Kind.LEAVE:
      self._workers.pop(worker, None)
    elif event in (Kind.RESTART, Kind.EXPIRE):
      self._core.release(version)
    if event != Kind.ARRIVE or action == Action.REFUSE:
      return None
    ticket = ledger.Ticket(ticket_id, worker, version, *fields)
    answer = self._answers.pop(ticket_id, None)
    metrics = None
    if action != Action.DISCARD:
      answer = answer or self._compute(ticket)
      metrics = self._enter(ticket, *answer, action, weight, stale)
    self._core.release(version)
    return metrics

  def _compute(self, ticket):
    if ticket.worker_id not in self._workers:
      self._workers[ticket.worker_id] = self._program.init(self._job.params)
    job = self._job
    return self._answer(
      job.hparams,
      self._workers[ticket.worker_id],
      self._core.store.read(ticket.version),
      job_lib.host_batches(job.source, ticket.first_batch, ticket.num_batches),
      job.source.resident,
      self._key,
      np.int32(ticket.first_batch),
      np.int32(ticket.attempt),
    )

  def _enter(self, ticket, submission, worker_state, action, weight, stale):
    sent, staleness = self._core.store.read(ticket.version), stale
    if self._program.exchange is not None:
      staleness = 0
      submission, worker_state, sent = self._exchange(
        self._job.hparams,
        worker_state,
        submission,
        sent,
        self._core.state.params,
      )
    self._workers[ticket.worker_id] = worker_state
    metrics = self._core.enter(
      ticket,
      submission.grads,
      submission.model_state,
      sent=sent,
      action=action,
      weight=weight,
      staleness=staleness,
    )
    return job_lib.record(submission, metrics, stale, ticket.num_batches)


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
    observe: `observe(batches_so_far, state, metrics) -> stop`, called every
      `block` applied arrivals with those arrivals' metrics.
    block: arrivals between two observations, the last one may be shorter;
      `align` or 1 by default.
    align: see `block`.

  Returns:
    The final state, metrics per applied arrival, and how many were executed.
  """
  rows = trace.events.tolist()
  return consume(
    Execution(job), rows, trace.num_batches, observe, block or align
  )


def consume(
  execution: Execution, rows: Iterable, num_batches: int, observe, block
) -> tuple[kernel.ServerState, dict[str, np.ndarray], int]:
  """Computes rows as they come; see `execute`."""
  log, observed, batches = [], 0, 0
  for row in rows:
    metrics = execution.process(row)
    if metrics is None:
      continue
    log.append(metrics)
    batches += metrics['num_batches']
    if observe and (len(log) % (block or 1) == 0 or batches == num_batches):
      fresh, observed = stacked(log[observed:]), len(log)
      if observe(batches, execution.state, fresh):
        break
  return execution.state, stacked(log), len(log)


def stacked(log) -> dict[str, np.ndarray]:
  """A list of metric dicts as a dict of host arrays."""
  if not log:
    return {}
  return {k: np.stack([np.asarray(m[k]) for m in log]) for k in log[0]}
