"""The parallel executor: a known trace on several devices, with the exact bits.

A trace says beforehand which gradients will be applied, and at which version
each is computed. So devices compute them ahead, in the order in which they will
arrive, each from when its version is published; the first device applies them
in that order. Gradient and update are the exact executor's own.

Each device is driven by a thread, since XLA's CPU client computes what one
thread dispatches one after the other, whatever the devices. At most twice as
many gradients as there are threads are computed ahead, so that memory does not
grow with the number of workers.
"""

import heapq
import queue
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from ga_jax.executors import exact, saving
from ga_jax.executors import execution as execution_lib
from ga_jax.job import job as job_lib
from ga_jax.job import source
from ga_jax.policies.parts.base import Kind
from ga_jax.server import ledger, update
from ga_jax.workers import inheritance, worker
from ga_jax.workers.placement import Placement


class ParallelExecution(execution_lib.Execution):
  """A server and its workers, who know what will arrive.

  Every worker holds one ticket at a time, as on the simulated cluster: its
  program state is the same when a ticket is issued and when it is answered.
  """

  def __init__(self, job: job_lib.Job, trace, devices: Sequence[Any]):
    """Starts a server and its threads; `close` ends them.

    Args:
      job: what to compute.
      trace: all rows that `process` will be given.
      devices: of the workers; the first is the server's too.
    """
    super().__init__(job, devices[0])
    # While an accelerator computes, the next gradient is on its way there.
    each = 1 if devices[0].platform == 'cpu' else 2
    machines = [
      worker.machine_of(job, Placement((device,)), devices[0])
      for device in devices
    ] * each
    self._idle = queue.SimpleQueue()
    for machine in machines:
      self._idle.put(machine)
    self._ahead = 2 * len(machines)
    self._pool = futures.ThreadPoolExecutor(len(machines), 'gradients')
    self._answer_fn = inheritance.inheriting(self._answer)
    applied = trace.applied()['ticket_id'].tolist()
    self._places = {ticket_id: place for place, ticket_id in enumerate(applied)}
    self._issued = []  # heap of (place, ticket): not begun
    self._begun = {}  # ticket_id -> future of (submission, program state)
    self._entered = 0  # arrivals

  def process(self, row) -> dict[str, Any] | None:
    """Computes what a row says, and begins what it made possible."""
    metrics = super().process(row)
    (_, event, worker_id, ticket_id, version, *fields, _, _, _) = row
    place = self._places.get(ticket_id)
    if place is not None and event == Kind.ISSUE:
      ticket = ledger.Ticket(ticket_id, worker_id, version, *fields)
      heapq.heappush(self._issued, (place, ticket))
    elif place is not None and event == Kind.ARRIVE:
      self._entered = place + 1
    while self._issued and self._issued[0][0] < self._entered + self._ahead:
      self._begin(heapq.heappop(self._issued)[1])
    return metrics

  def close(self):
    """Ends the threads, after what they are computing."""
    self._pool.shutdown(cancel_futures=True)

  def _begin(self, ticket):
    state = self.worker_state(ticket.worker_id)
    order = worker.Order(ticket, self.sent(ticket), state, None)
    self._begun[ticket.ticket_id] = self._pool.submit(self._answer_fn, order)

  def _compute(self, ticket):
    if ticket.ticket_id not in self._begun:  # issued before a checkpoint
      self._begin(ticket)
    return self._begun.pop(ticket.ticket_id).result()

  def _answer(self, order: worker.Order):
    """In a thread: an answer, on the server's device."""
    machine, ticket = self._idle.get(), order.ticket
    try:
      batches = machine.load(ticket.first_batch, ticket.num_batches)
      answer = machine.to_server(machine.dispatch(order, batches))
      return jax.block_until_ready(answer)
    finally:
      self._idle.put(machine)


def execute(
  job: job_lib.Job,
  trace,
  observe: Callable[[int, update.ServerState, Any], bool] | None = None,
  block: int | None = None,
  align: int | None = None,
  checkpoints: saving.Checkpoints | None = None,
  *,
  devices: Sequence[Any],
) -> tuple[update.ServerState, dict[str, np.ndarray], int]:
  """Computes a trace of the simulated cluster; see `exact.execute`.

  Args:
    job: what to compute; its batches are asked for by several threads.
    trace: a `Trace`.
    observe: see `exact.execute`, as the next three.
    block: arrivals between two observations.
    align: see `block`.
    checkpoints: those of the exact executor, which may go on with them.
    devices: of the workers; the first is the server's too.

  Returns:
    What `exact.execute` returns, the same bits.
  """
  source.expect(job.source, trace)
  execution = ParallelExecution(job, trace, devices)
  try:
    run = saving.of_trace(job, trace, executor='exact')
    return exact.Run(execution, checkpoints, run).consume(
      trace.rows(), trace.num_batches, observe, block or align
    )
  finally:
    execution.close()
