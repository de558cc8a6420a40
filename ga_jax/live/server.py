"""The server of a live run, whoever its workers are and wherever they compute.

The thread that calls `run` is the server: it alone touches the ledger, the
arrays and the snapshots, so nothing is locked. Workers get orders and send
messages into its inbox. The server only dispatches, and reads no value but
where the policy needs a loss. Everything that happens is written down as it
happens, before anybody is told of it, and computed by the exact executor's
`Execution`: the trace replays to the same bits, and a server that died goes on
from its last checkpoint and the record, losing nothing.

Here is the loop: what is done with a message, and with a lease that is over.
What it asks stands beside it and knows nothing of it: `roster` who is there,
`leases` who is waited for, `journal` what happened, `saving` how that is kept.
"""

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ga_jax.executors import execution
from ga_jax.guards import checks, locks
from ga_jax.job import compiled
from ga_jax.job import job as job_lib
from ga_jax.live import journal as journal_lib
from ga_jax.live import leases as leases_lib
from ga_jax.live import observer as observer_lib
from ga_jax.live import options, result, saving, stopwatch
from ga_jax.live import roster as roster_lib
from ga_jax.record import trace
from ga_jax.server import alike, ledger, split, update
from ga_jax.server import shards as shards_lib
from ga_jax.workers import worker
from ga_jax.workers.placement import Placement


class WorkersLostError(RuntimeError):
  """Every worker has died and batches are left."""


class WorkersMissingError(RuntimeError):
  """No worker came although one was waited for."""


class ServerMissingError(RuntimeError):
  """The cluster has no room for the server where it is to compute."""


class ClusterLostError(RuntimeError):
  """What a run computes on is gone; its record and checkpoints are not."""


class LiveRun:
  """A live run.

  `add_worker`, `remove_worker` and `stop` may be called from other threads.
  """

  def __init__(
    self,
    job: job_lib.Job,
    pool: roster_lib.WorkerPool,
    *,
    num_workers: int,
    num_batches: int,
    live: options.Live = options.Live(),
    device: Any = None,
    placement: Placement | None = None,
    shards: int = 1,
    remote: shards_lib.Remote | None = None,
    deliver_fn: Callable[[Callable[[Any], None], Any], None] | None = None,
    clock_fn: Callable[[], float] = time.monotonic,
  ):
    """Prepares a run; nothing is computed yet.

    Args:
      job: what is trained.
      pool: where workers come from.
      num_workers: how many are hired at the start, also of a run that goes on.
      num_batches: batches to apply.
      live: how.
      device: where the server's arrays are; by default JAX's default device.
      placement: where workers compute, for what is computed again; by default
        the server's device alone.
      shards: of the server, see `execution.Execution`.
      remote: where they are, see `execution.Execution`.
      deliver_fn: `deliver_fn(deliver, message)`, between workers and server;
        for tests that lose, double and forge messages.
      clock_fn: seconds, for the trace and the leases.

    Raises:
      ValueError: an argument is out of its range, or the parts do not fit.
    """
    num_workers = job.check_workers(num_workers)
    shards = checks.integer('shards', shards, 1)
    self._job = job
    self._live = live
    self._pool = pool
    self._device = device
    self._deliver_fn = deliver_fn
    self._clock = stopwatch.Stopwatch(clock_fn)
    self._book = _ledger_of(job, num_batches, live.pipeline_depth)
    self._execution = execution.Execution(
      job, device, placement, shards, remote
    )
    self._journal = journal_lib.Journal(
      self._book, self._execution, self._clock, num_workers
    )
    self._roster = roster_lib.Roster(pool, self._deliver, live.pipeline_depth)
    self._leases = leases_lib.Leases(live.lease_seconds, self._is_waited_for)
    self._expected = None  # shapes and dtypes of a submission
    self._begun = threading.Lock()  # never given back: a run is made once
    self._inbox = queue.SimpleQueue()  # messages, and calls of other threads
    self._stop_wanted = False
    self._first_workers = range(num_workers)

  # What other threads may call.

  @property
  def version(self) -> int:
    """Updates made; all of them are written down."""
    return self._execution.version

  def telemetry(self) -> dict[int, result.Telemetry]:
    """Of the workers so far, by worker."""
    return dict(self._journal.telemetry)

  def missing(self) -> tuple[int, ...]:
    """Of the workers that the run was to begin with, those not here now."""
    here = self._roster.is_here
    return tuple(w for w in self._first_workers if not here(w))

  def add_worker(self, worker_id: int):
    """A worker comes in while the run goes on.

    Raises:
      ValueError: the rule has no buffer for it.
    """
    worker_id = ledger.check_worker_id(worker_id)
    self._job.check_workers(worker_id + 1)
    self._inbox.put(functools.partial(self._roster.hire, worker_id))

  def remove_worker(self, worker_id: int):
    """A worker goes; its batches are issued again."""
    self._inbox.put(functools.partial(self._dismiss, worker_id))

  def stop(self):
    """Ends the run after the update in hand."""
    self._inbox.put(self._want_stop)

  # The server's thread.

  def run(
    self,
    observe: Callable[[int, update.ServerState, Any], bool] | None = None,
    block: int | None = None,
  ) -> result.LiveResult:
    """Runs to the end.

    Args:
      observe: `observe(batches, state, metrics) -> stop`, called in a thread of
        its own every `block` applied arrivals.
      block: arrivals between two observations; 64 by default.

    Returns:
      A `LiveResult`.

    Raises:
      RuntimeError: it was called before.
      ledger.NotFiniteError: the same batches gave no finite gradient again and
        again.
      OccupiedError: another process is at work in the record or the
        checkpoints.
      LostError: one of them was removed or replaced meanwhile.
      RecoveryError: the record is of another run than the checkpoint, or one of
        them than this one.
      WorkersLostError: every worker died and batches are left.
    """
    block = 64 if block is None else checks.integer('block', block, 1)
    if not self._begun.acquire(blocking=False):
      raise RuntimeError('this run was begun already: make another one')
    with self._owned() as writer:
      self._warm_up()
      observer = observer_lib.Observer(
        observe, block, self._book.num_batches, self.stop
      )
      self._journal.begin(writer, observer)
      return self._run(writer, observer)

  @contextlib.contextmanager
  def _owned(self):
    """Keeps others from record and checkpoints; gives the record."""
    with contextlib.ExitStack() as stack:
      try:
        if self._live.checkpoints:
          stack.enter_context(self._live.checkpoints.owned())
        writer = trace.TraceWriter(self._live.trace_path, None)
      except locks.OccupiedError:
        self._begun.release()  # nothing was begun: it may be tried again
        raise
      yield stack.enter_context(contextlib.closing(writer))

  def _warm_up(self):
    """Compiles everything before any worker starts."""
    program = self._job.worker_program
    number = min(program.num_batches, self._book.num_batches)
    shape = compiled.answer_shape(self._job, number)
    self._expected = alike.form(shape[0])
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shape)
    if self._device is not None:
      zeros = jax.device_put(zeros, self._device)
    self._execution.warm_up(*zeros)
    ticket = ledger.Ticket(-1, 0, 0, 0, number, 0)
    sent, state = self._execution.snapshot(), self._execution.worker_state(0)
    self._pool.warm_up(worker.Order(ticket, sent, state, None))

  def _run(self, writer, observer) -> result.LiveResult:
    try:
      saving.resume(self._journal, self._job, self._live, self._device)
      self._hire_all()
      while not (self._book.done or self._stop_wanted):
        self._issue()
        self._handle(self._receive())
        self._end_leases()
        self._journal.compute()
        checkpoints = self._live.checkpoints
        if checkpoints and checkpoints.due(self._book.version):
          self._save()
      if not self._stop_wanted:
        self._book.finish(self._clock.now())
      self._journal.compute()
      if not self._stop_wanted:
        observer.close(self._execution.state)
      if self._live.checkpoints:
        self._save()
    finally:
      self._pool.end()
      metrics = observer.end(self._execution.state)
      writer.flush()
    return result.LiveResult(
      self._execution.state,
      writer.trace(self._journal.largest + 1, self._book.num_batches),
      metrics,
      dict(self._book.refused),
      self.telemetry(),
      self._stop_wanted,
    )

  def _save(self):
    saving.save(self._journal, self._live.checkpoints, self._pool.fetch)

  def _hire_all(self):
    """Hires the first workers, and the members of a run that goes on."""
    for worker_id in sorted(self._book.workers.union(self._first_workers)):
      self._roster.hire(worker_id)
    for worker_id in self._book.workers:
      self._leases.begin(worker_id, self._clock.now())
    while not self._inbox.empty():  # those that are here at once
      self._handle(self._inbox.get())

  def _issue(self):
    """Gives tickets to the workers that may start and are free."""
    for worker_id in list(self._book.ready):
      if not self._roster.is_free(worker_id):
        continue
      now = self._clock.now()
      ticket = self._book.ticket(worker_id, now)
      if ticket is None:
        return
      self._leases.begin(ticket, now)
      self._journal.compute()  # so that its version is held
      self._roster.give(
        worker.Order(
          ticket,
          self._execution.sent(ticket),
          self._execution.worker_state(worker_id),
          self._book.reserve(worker_id),
        )
      )

  def _deliver(self, message):
    """Brings a message to the inbox; called by the workers' threads."""
    if self._deliver_fn is None or isinstance(message, worker.Here):
      self._inbox.put(message)
    else:
      self._deliver_fn(self._inbox.put, message)

  def _receive(self):
    """The next message, or None where a lease was over first."""
    end = self._leases.first_end()
    if end is None:
      return self._inbox.get()
    try:
      wait = min(max(0.0, end - self._clock.now()), threading.TIMEOUT_MAX)
      return self._inbox.get(timeout=wait)
    except queue.Empty:
      return None

  def _handle(self, message):
    if isinstance(message, worker.Answer):
      self._arrive(message)
    elif isinstance(message, worker.Here):
      self._join(message.worker_id)
    elif isinstance(message, worker.Died):
      self._roster.died(message)
      self._leave(message.worker_id)
    elif callable(message):
      message()

  def _arrive(self, answer: worker.Answer):
    book, ticket, now = self._book, answer.ticket, self._clock.now()
    self._roster.answered(ticket.worker_id)
    stands = book.outstanding.get(ticket.ticket_id) == ticket
    cause = self._no_use(answer) if stands else ''
    if cause:
      book.expire(ticket, now, cause)
      if cause == 'non-finite':
        book.count_not_finite(ticket)
      return
    loss = None
    if stands:
      telemetry, worker_id = self._journal.telemetry, ticket.worker_id
      telemetry[worker_id] = telemetry[worker_id].plus(answer.seconds)
      self._execution.deposit(ticket, answer.submission, answer.worker_state)
      if self._job.policy.needs_loss:
        loss = float(answer.submission.loss)
    book.arrive(ticket, now, loss)

  def _no_use(self, answer: worker.Answer) -> str:
    """Why an answer cannot be used; '' where it can."""
    pieces = isinstance(answer.submission.grads, split.Pieces)
    if not pieces and alike.form(answer.submission) != self._expected:
      return 'misshapen'
    usable = self._live.allow_non_finite or answer.finite
    return '' if usable else 'non-finite'

  def _join(self, worker_id: int):
    """A worker is able to take orders; it may be a member already."""
    if self._roster.enter(worker_id) and worker_id not in self._book.workers:
      self._book.join(worker_id, self._clock.now())

  def _dismiss(self, worker_id: int):
    if self._roster.dismiss(worker_id):
      self._leave(worker_id)

  def _leave(self, worker_id: int):
    self._roster.leave(worker_id)
    if worker_id in self._book.workers:
      self._book.leave(worker_id, self._clock.now())
    if self._roster.deserted and not self._book.done:
      raise WorkersLostError(
        f'all workers have left or died at version {self._book.version}; the '
        'last one: ' + (self._roster.last_error or 'was removed')
      )

  def _is_waited_for(self, holder: leases_lib.Holder) -> bool:
    if isinstance(holder, ledger.Ticket):
      return holder.ticket_id in self._book.outstanding
    return not self._roster.is_here(holder)

  def _end_leases(self):
    """Takes back the tickets that are out too long; lets members go."""
    for holder in self._leases.over(self._clock.now):
      if isinstance(holder, ledger.Ticket):
        self._book.expire(holder, self._clock.now())
      else:
        self._leave(holder)

  def _want_stop(self):
    self._stop_wanted = True


def _ledger_of(job: job_lib.Job, num_batches: int, depth: int) -> ledger.Ledger:
  """The empty ledger of a run.

  Raises:
    ValueError: an argument is out of its range, or the parts do not fit.
  """
  program = job.worker_program
  if depth and jax.tree.leaves(program.init(job.params)):
    raise ValueError(
      f'pipeline_depth must be 0 with a worker program that keeps a state, '
      f'got {depth}'
    )
  return ledger.Ledger(
    job.policy,
    num_batches=num_batches,
    batches_per_ticket=program.num_batches,
    depth=depth,
    streams=job.batches.streams,
  )
