"""A worker: it takes orders, computes their answers and sends them back.

While its devices compute, it prepares the batches of its next order.
"""

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ga_jax.guards import memory
from ga_jax.job import compiled as compiled_lib
from ga_jax.job import job as job_lib
from ga_jax.job import source as source_lib
from ga_jax.server import ledger, update
from ga_jax.workers import inheritance
from ga_jax.workers.placement import Placement


class Order(NamedTuple):
  """What a worker is told to compute."""

  ticket: ledger.Ticket
  sent: Any  # update.Snapshot
  worker_state: Any
  reserved: tuple[int, int, int] | None  # batches to prepare meanwhile


class Seconds(NamedTuple):
  """Where a worker's time went, in seconds."""

  wait: float = 0.0  # for an order
  transfer: float = 0.0  # of what was not there when it was needed
  compute: float = 0.0  # from dispatch until the server's device has the answer


class Answer(NamedTuple):
  """What a worker sends back."""

  ticket: ledger.Ticket
  submission: Any
  worker_state: Any
  finite: Any  # a bool or a boolean scalar; None where it is not known yet
  seconds: Seconds


class Here(NamedTuple):
  """A worker is able to take orders."""

  worker_id: int


class Died(NamedTuple):
  """A worker is lost."""

  worker_id: int
  error: str
  gone: bool = True  # for good


class Machine(NamedTuple):
  """What a worker computes with; shared by the workers of a device.

  Attributes:
    placement: where it computes.
    server_device: where its answers go; None where they leave the process.
    source: where batches come from, `resident` on the devices.
    answer: the compiled program, see `compiled.compiled_program`.
    hparams: for the program.
    key: of the run.
    exchanges: whether the program state goes to the server too.
  """

  placement: Placement
  server_device: Any
  source: source_lib.Source
  answer: Callable[..., Any]
  hparams: Any
  key: Any
  exchanges: bool

  def load(self, first_batch: int, num_batches: int):
    """The host batches of a ticket, on the devices."""
    return self.placement.batches(
      source_lib.host_batches(self.source, first_batch, num_batches)
    )

  def dispatch(self, order: Order, batches):
    """Starts the computation of an order.

    Returns:
      (submission, program state), both of them futures.
    """
    sent, state = order.sent, order.worker_state
    if self.server_device is not None:  # else what is sent is here already
      sent = self.placement.replicated(sent)
    if jax.tree.leaves(state):
      state = self.placement.replicated(state)
    return self.answer(
      self.hparams,
      state,
      sent,
      batches,
      self.source.resident,
      self.key,
      order.ticket,
    )

  def to_server(self, answer):
    """Moves what the server needs to its device."""
    submission, state = answer
    if self.server_device is not None:
      submission = jax.device_put(submission, self.server_device)
      if self.exchanges:
        state = jax.device_put(state, self.server_device)
    return submission, state


def machine_of(
  job: job_lib.Job, placement: Placement, server_device: Any = None
) -> Machine:
  """What a worker of a job computes with.

  Args:
    job: what to compute.
    placement: where.
    server_device: where answers go; None where they leave the process.

  Returns:
    A `Machine`; nothing is compiled yet.
  """
  compiled = compiled_lib.compiled_program(
    job.program_fn, job.loss_fn, job.source.load_fn
  )
  resident, hparams, key = placement.replicated(
    (job.source.resident, job.hparams, jax.random.key(job.seed))
  )
  return Machine(
    placement,
    server_device,
    job.source._replace(resident=resident),
    compiled.answer,
    hparams,
    key,
    job.worker_program.exchange is not None,
  )


class Computing:
  """Computes orders one after the other, with the next batches at hand."""

  def __init__(
    self,
    machine: Machine,
    delay_fn: Callable[[float], float] | None = None,
    stopping: threading.Event | None = None,
  ):
    """Begins with nothing prepared.

    Args:
      machine: what to compute with.
      delay_fn: `delay_fn(compute_seconds) -> seconds` to sleep after a
        computation, for stragglers.
      stopping: set when the run is over; wakes a worker that sleeps.
    """
    self._machine = machine
    self._delay_fn = delay_fn
    self._stopping = stopping or threading.Event()
    self._prepared = None  # (first_batch, num_batches, batches)

  def compute(self, order: Order, wait: float = 0.0) -> Answer:
    """Computes an order and waits for it.

    Args:
      order: the order.
      wait: seconds that were waited for it.
    """
    machine, ticket = self._machine, order.ticket
    begun = time.perf_counter()
    batches = self._batches(ticket)
    dispatched = time.perf_counter()
    answer = machine.dispatch(order, batches)
    is_finite = (
      update.finite(answer[0]) if machine.server_device is not None else None
    )
    submission, state = machine.to_server(answer)  # as soon as it is there
    self._prepare(order.reserved)
    jax.block_until_ready((submission, state, is_finite))
    done = time.perf_counter()
    if self._delay_fn is not None:
      seconds = self._delay_fn(done - dispatched)
      if seconds > 0:
        self._stopping.wait(seconds)
      done = time.perf_counter()
    seconds = Seconds(wait, dispatched - begun, done - dispatched)
    return Answer(ticket, submission, state, is_finite, seconds)

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


class Worker:
  """A worker's thread and its mailbox."""

  def __init__(
    self,
    worker_id: int,
    computing: Computing,
    mailbox,
    deliver: Callable[[Any], None],
  ):
    """Starts the thread.

    Args:
      worker_id: who it is.
      computing: what it computes with.
      mailbox: a queue of `Order`s; None ends the thread.
      deliver: takes `Answer` and `Died`.

    Raises:
      TooLargeError: the system gives this process no more threads.
    """
    self.worker_id = worker_id
    self._mailbox = mailbox
    self._computing = computing
    self._deliver = deliver
    self.thread = threading.Thread(
      target=inheritance.inheriting(self._run),
      name=f'worker-{worker_id}',
      daemon=True,
    )
    try:
      self.thread.start()
    except RuntimeError as error:
      raise memory.TooLargeError(
        f'worker {worker_id} cannot be started: {error}'
      ) from error

  def give(self, order: Order):
    """Tells it what to compute next."""
    self._mailbox.put(order)

  def dismiss(self):
    """Ends it after the order in hand."""
    self._mailbox.put(None)

  def _run(self):
    try:
      waited = time.perf_counter()
      while (order := self._mailbox.get()) is not None:
        answer = self._computing.compute(order, time.perf_counter() - waited)
        waited = time.perf_counter()
        self._deliver(answer)
    except Exception:  # whatever it was: the others go on without this worker
      self._deliver(Died(self.worker_id, traceback.format_exc()))
