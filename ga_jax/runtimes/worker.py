"""A worker of the threads runtime: one thread that drives one device.

It takes an order, computes its answer on its device, waits for it and sends it
back. While the device computes, it prepares the batches of its next order.
"""

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ga_jax import ledger
from ga_jax.runtimes import job as job_lib


class Order(NamedTuple):
  """What a worker is told to compute."""

  ticket: ledger.Ticket
  sent: Any  # kernel.Snapshot
  worker_state: Any
  reserved: tuple[int, int, int] | None  # batches to prepare meanwhile


class Seconds(NamedTuple):
  """Where a worker's time went, in seconds."""

  wait: float = 0.0  # for an order
  transfer: float = 0.0  # of batches that were not prepared
  compute: float = 0.0  # from dispatch until the server's device has the answer


class Answer(NamedTuple):
  """What a worker sends back."""

  ticket: ledger.Ticket
  submission: Any
  worker_state: Any
  finite: bool
  seconds: Seconds


class Died(NamedTuple):
  """A worker's thread ended with an error."""

  worker_id: int
  error: str


class Machine(NamedTuple):
  """What a worker computes with; shared by the workers of a device.

  Attributes:
    device: where it computes.
    server_device: where its answers go.
    source: where batches come from, `resident` on the device.
    answer: the compiled program, see `exact.compiled_program`.
    finite: compiled, whether all of a submission is finite.
    hparams: for the program.
    key: of the run.
    exchanges: whether the program state goes to the server too.
  """

  device: Any
  server_device: Any
  source: job_lib.Source
  answer: Callable[..., Any]
  finite: Callable[..., Any]
  hparams: Any
  key: Any
  exchanges: bool

  def load(self, first_batch: int, num_batches: int):
    """The host batches of a ticket, on the device."""
    batches = job_lib.host_batches(self.source, first_batch, num_batches)
    return jax.device_put(batches, self.device)

  def dispatch(self, order: Order, batches):
    """Starts the computation of an order.

    Returns:
      ((submission, program state), whether it is finite), all of them futures.
    """
    sent, state = jax.device_put((order.sent, order.worker_state), self.device)
    answer = self.answer(
      self.hparams,
      state,
      sent,
      batches,
      self.source.resident,
      self.key,
      order.ticket,
    )
    return answer, self.finite(answer[0])

  def to_server(self, answer):
    """Moves what the server needs to its device."""
    submission, state = answer
    submission = jax.device_put(submission, self.server_device)
    if self.exchanges:
      state = jax.device_put(state, self.server_device)
    return submission, state


class Worker:
  """A worker's thread and its mailbox."""

  def __init__(
    self,
    worker_id: int,
    machine: Machine,
    mailbox,
    deliver: Callable[[Any], None],
    delay_fn: Callable[[int, float], float] | None,
    stopping: threading.Event,
  ):
    """Starts the thread.

    Args:
      worker_id: who it is.
      machine: what it computes with.
      mailbox: a queue of `Order`s; None ends the thread.
      deliver: takes `Answer` and `Died`.
      delay_fn: `delay_fn(worker_id, compute_seconds) -> seconds` to sleep after
        a computation, for stragglers.
      stopping: set when the run is over; wakes a worker that sleeps.
    """
    self.worker_id = worker_id
    self.mailbox = mailbox
    self._machine = machine
    self._deliver = deliver
    self._delay_fn = delay_fn
    self._stopping = stopping
    self._prepared = None  # (first_batch, num_batches, batches)
    self.thread = threading.Thread(
      target=self._run, name=f'worker-{worker_id}', daemon=True
    )
    self.thread.start()

  def _run(self):
    try:
      waited = time.perf_counter()
      while (order := self.mailbox.get()) is not None:
        wait = time.perf_counter() - waited
        answer = self._compute(order, wait)
        waited = time.perf_counter()
        self._deliver(answer)
    except Exception:  # whatever it was: the others go on without this worker
      self._deliver(Died(self.worker_id, traceback.format_exc()))

  def _compute(self, order: Order, wait: float) -> Answer:
    machine, ticket = self._machine, order.ticket
    begun = time.perf_counter()
    batches = self._batches(ticket)
    dispatched = time.perf_counter()
    answer, finite = machine.dispatch(order, batches)
    submission, state = machine.to_server(answer)  # as soon as it is there
    self._prepare(order.reserved)
    jax.block_until_ready((submission, state, finite))
    done = time.perf_counter()
    if self._delay_fn is not None:
      seconds = self._delay_fn(self.worker_id, done - dispatched)
      if seconds > 0:
        self._stopping.wait(seconds)
      done = time.perf_counter()
    seconds = Seconds(wait, dispatched - begun, done - dispatched)
    return Answer(ticket, submission, state, bool(finite), seconds)

  def _batches(self, ticket: ledger.Ticket):
    wanted = ticket.first_batch, ticket.num_batches
    prepared, self._prepared = self._prepared, None
    if prepared is not None and prepared[:2] == wanted:
      return prepared[2]
    return self._machine.load(*wanted)

  def _prepare(self, reserved):
    if reserved is not None:
      first, number, _ = reserved
      self._prepared = first, number, self._machine.load(first, number)
