"""The server of a live run, whoever its workers are and wherever they compute.

The thread that calls `run` is the server: it alone touches the ledger, the
kernel and the snapshots, so nothing is locked. Workers get orders and send
messages into its inbox. The server only dispatches, and reads no value but
where the policy needs a loss. Everything that happens is written down as it
happens, before anybody is told of it, and computed by the exact executor's
`Execution`: the trace replays to the same bits, and a server that died goes on
from its last checkpoint and the record, losing nothing.
"""

import collections
import contextlib
import functools
import heapq
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from ga_jax.executors import execution
from ga_jax.executors import saving as checkpoints_lib
from ga_jax.guards import checks, locks
from ga_jax.job import compiled
from ga_jax.job import job as job_lib
from ga_jax.live import observer as observer_lib
from ga_jax.live import options
from ga_jax.live.result import LiveResult, Telemetry
from ga_jax.policies.parts.base import Kind
from ga_jax.record import trace as trace_lib
from ga_jax.server import alike, ledger, recovery, split, update
from ga_jax.server import shards as shards_lib
from ga_jax.workers import worker
from ga_jax.workers.placement import Placement


class WorkersLostError(RuntimeError):
  """Every worker has died and batches are left."""


class WorkerHandle(Protocol):
  """A worker, as the server sees it."""

  def give(self, order: worker.Order):
    """Tells it what to compute next."""

  def dismiss(self):
    """Ends it after the order in hand."""


class WorkerPool(Protocol):
  """Where workers come from."""

  def warm_up(self, order: worker.Order):
    """Compiles what workers compute, where that happens in this process."""

  def hire(
    self, worker_id: int, deliver: Callable[[Any], None]
  ) -> WorkerHandle:
    """A worker, which delivers `Here` when it is able to take orders.

    Args:
      worker_id: who it is.
      deliver: takes `worker.Here`, `worker.Answer` and `worker.Died`.
    """

  def fetch(self, worker_id: int, worker_state):
    """The arrays of a program state that was in a worker's answer.

    Returns:
      A pytree of arrays; None where they are lost.
    """

  @property
  def may_return(self) -> bool:
    """Whether workers may come although none is here."""

  def end(self):
    """Ends every worker."""


class LiveRun:
  """A live run.

  `add_worker`, `remove_worker` and `stop` may be called from other threads.
  """

  def __init__(
    self,
    job: job_lib.Job,
    pool: WorkerPool,
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
    policy = job.policy
    num_workers = job.check_workers(num_workers)
    shards = checks.integer('shards', shards, 1)
    self._job = job
    self._needs_loss = policy.needs_loss
    self._pool = pool
    self._device = device
    self._lease = live.lease_seconds
    self._depth = live.pipeline_depth
    self._allow_non_finite = live.allow_non_finite
    self._deliver_fn = deliver_fn
    self._clock_fn = clock_fn
    self._started = clock_fn()
    self._latest = 0.0  # time
    self._program = program = job.worker_program
    if self._depth and jax.tree.leaves(program.init(job.params)):
      raise ValueError(
        f'pipeline_depth must be 0 with a worker program that keeps a state, '
        f'got {self._depth}'
      )
    self._book = ledger.Ledger(
      policy,
      num_batches=num_batches,
      batches_per_ticket=program.num_batches,
      depth=self._depth,
      streams=job.batches.streams,
    )
    self._execution = execution.Execution(
      job, device, placement, shards, remote
    )
    self._expected = None  # shapes and dtypes of a submission
    self._checkpoints = live.checkpoints
    self._of_run = checkpoints_lib.of_job(
      job, num_batches=num_batches, policy=checkpoints_lib.of_policy(policy)
    )
    self._trace_path = live.trace_path
    self._recover = live.recover
    self._writer = None
    self._begun = threading.Lock()  # never given back: a run is made once
    self._inbox = queue.SimpleQueue()
    self._stop_wanted = False
    self._hands = {}  # worker_id -> WorkerHandle, those that were hired
    self._here = set()  # worker_ids of those that take orders
    self._last_error = ''  # of a worker that died
    self._orders = collections.Counter()  # worker_id -> orders in its hands
    self._deadlines = []  # heap of (time, serial, still wanted, do)
    self._serial = itertools.count()
    self._telemetry = collections.defaultdict(Telemetry)
    self._largest = num_workers - 1
    self._first_workers = range(num_workers)

  # What other threads may call.

  @property
  def version(self) -> int:
    """Updates made; all of them are written down."""
    return self._execution.version

  def telemetry(self) -> dict[int, Telemetry]:
    """Of the workers so far, by worker."""
    return dict(self._telemetry)

  def add_worker(self, worker_id: int):
    """A worker comes in while the run goes on.

    Raises:
      ValueError: the rule has no buffer for it.
    """
    worker_id = ledger.check_worker_id(worker_id)
    self._job.check_workers(worker_id + 1)
    self._inbox.put(functools.partial(self._hire, worker_id))

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
  ) -> LiveResult:
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
    with self._owned():
      return self._run(observe, block)

  @contextlib.contextmanager
  def _owned(self):
    """Keeps others from record and checkpoints."""
    with contextlib.ExitStack() as stack:
      try:
        if self._checkpoints:
          stack.enter_context(self._checkpoints.owned())
        self._writer = trace_lib.TraceWriter(self._trace_path, None)
      except locks.OccupiedError:
        self._begun.release()  # nothing was begun: it may be tried again
        raise
      stack.enter_context(contextlib.closing(self._writer))
      yield

  def _run(self, observe, block) -> LiveResult:
    self._warm_up()
    observer = observer_lib.Observer(
      observe, block, self._book.num_batches, self.stop
    )
    try:
      self._begin(observer)
      while not (self._book.done or self._stop_wanted):
        self._issue()
        self._handle(self._receive())
        self._meet_deadlines()
        self._compute_rows(observer)
        if self._checkpoints and self._checkpoints.due(self._book.version):
          self._save(observer)
      if not self._stop_wanted:
        self._book.finish(self._now())
      self._compute_rows(observer)
      if not self._stop_wanted:
        observer.close(self._execution.state)
      if self._checkpoints:
        self._save(observer)
    finally:
      self._pool.end()
      metrics = observer.end(self._execution.state)
      self._writer.flush()
    trace = self._writer.trace(self._largest + 1, self._book.num_batches)
    return LiveResult(
      self._execution.state,
      trace,
      metrics,
      dict(self._book.refused),
      self.telemetry(),
      self._stop_wanted,
    )

  def _now(self) -> float:
    """Seconds; never the same twice: `recovery` tells events apart by them."""
    now = self._clock_fn() - self._started
    self._latest = max(now, math.nextafter(self._latest, math.inf))
    return self._latest

  def _begin(self, observer):
    """Hires the workers; goes on with a checkpoint or a record, if any."""
    saved = self._checkpoints and self._checkpoints.resume(self._of_run)
    rows, done = [], saved.host['rows'] if saved else 0
    if saved or self._recover:
      try:
        rows = trace_lib.read_rows(self._trace_path, done)
      except trace_lib.TraceError as error:
        raise recovery.RecoveryError(
          f'{error}, after which {saved.path} was saved: it is another record'
        ) from error
    self._writer.keep(done + len(rows))
    if saved:
      self._restore(saved.host, saved.load, observer)
    if rows:
      self._follow(rows, observer)
    for ticket in list(self._book.outstanding.values()):
      self._book.expire(ticket, self._now(), 'restart')
    for worker_id in sorted(self._book.workers.union(self._first_workers)):
      self._hire(worker_id)
    for worker_id in self._book.workers:
      self._at(
        self._now() + self._lease,
        lambda worker_id=worker_id: worker_id not in self._here,
        functools.partial(self._leave, worker_id),
      )
    while not self._inbox.empty():  # those that are here at once
      self._handle(self._inbox.get())

  def _restore(self, host, load, observer):
    """Goes on where a checkpoint was saved."""
    self._book.restore(host['book'])
    self._go_on_at(host['elapsed'])
    self._telemetry.update(host['telemetry'])
    self._largest = host['largest']
    observer.restore(*host['observer'])
    holders = collections.Counter(
      ticket.version for ticket in self._book.outstanding.values()
    )
    arrays = load(self._execution.like(host['workers'], host['versions']))
    if self._device is not None:
      arrays = jax.device_put(arrays, self._device)
    self._execution.restore(arrays, holders)

  def _follow(self, rows, observer):
    """Computes what the record holds beyond the checkpoint."""
    beyond = itertools.count(-len(rows))

    def process(row):
      if next(beyond) >= 0:  # the record ends inside an event
        self._writer.write([row])
      self._process(row, observer)

    recovery.follow(
      self._book,
      rows,
      process=process,
      loss=self._execution.loss if self._needs_loss else None,
    )
    self._book.forget_rows()
    joined = (row[2] for row in rows if row[1] == Kind.JOIN)
    self._largest = max([self._largest, *joined])
    self._go_on_at(max(self._latest, rows[-1][0]))

  def _go_on_at(self, seconds):
    """Sets the time."""
    self._started, self._latest = self._clock_fn() - seconds, seconds

  def _save(self, observer):
    """Writes a checkpoint of everything; none where a worker is just lost.

    It may be out of reach for long: nobody waits for it twice.
    """
    self._writer.flush()
    arrays = self._execution.save()
    for worker_id, state in arrays['workers'].items():
      fetched = self._pool.fetch(worker_id, state)
      if fetched is None:
        self._checkpoints.put_off(self._book.version)
        return
      arrays['workers'][worker_id] = fetched
    host = {
      'book': self._book.save(),
      'rows': self._writer.num_rows,
      'elapsed': self._now(),
      'telemetry': self.telemetry(),
      'largest': self._largest,
      'observer': observer.save(),
      'workers': sorted(arrays['workers']),
      'versions': sorted(arrays['core']['snapshots']),
    }
    self._checkpoints.save(self._book.version, arrays, host)

  def _want_stop(self):
    self._stop_wanted = True

  def _warm_up(self):
    """Compiles everything before any worker starts."""
    number = min(self._program.num_batches, self._book.num_batches)
    shape = compiled.answer_shape(self._job, number)
    self._expected = alike.form(shape[0])
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shape)
    if self._device is not None:
      zeros = jax.device_put(zeros, self._device)
    self._execution.warm_up(*zeros)
    ticket = ledger.Ticket(-1, 0, 0, 0, number, 0)
    sent, state = self._execution.snapshot(), self._execution.worker_state(0)
    self._pool.warm_up(worker.Order(ticket, sent, state, None))

  def _hire(self, worker_id: int):
    if worker_id not in self._hands:
      self._hands[worker_id] = self._pool.hire(worker_id, self._deliver)

  def _join(self, worker_id: int):
    """A worker is able to take orders; it may be a member already."""
    if worker_id not in self._hands or worker_id in self._here:
      return
    self._here.add(worker_id)
    self._orders.pop(worker_id, None)
    if worker_id not in self._book.workers:
      self._book.join(worker_id, self._now())
      self._largest = max(self._largest, worker_id)

  def _dismiss(self, worker_id: int):
    if worker_id in self._hands:
      self._hands.pop(worker_id).dismiss()
      self._leave(worker_id)

  def _leave(self, worker_id: int):
    self._here.discard(worker_id)
    self._orders.pop(worker_id, None)
    if worker_id in self._book.workers:
      self._book.leave(worker_id, self._now())
    if not (self._here or self._pool.may_return or self._book.done):
      raise WorkersLostError(
        f'all workers have left or died at version {self._book.version}; the '
        'last one: ' + (self._last_error or 'was removed')
      )

  def _deliver(self, message):
    if self._deliver_fn is None or isinstance(message, worker.Here):
      self._inbox.put(message)
    else:
      self._deliver_fn(self._inbox.put, message)

  def _at(self, time_, still_wanted, do):
    """Has something done at a time, if it is still wanted then."""
    if time_ < float('inf'):
      item = time_, next(self._serial), still_wanted, do
      heapq.heappush(self._deadlines, item)

  def _receive(self):
    """The next message, or None where a deadline came first."""
    while self._deadlines:
      at, _, still_wanted, _ = self._deadlines[0]
      if not still_wanted():
        heapq.heappop(self._deadlines)
        continue
      try:
        wait = min(max(0.0, at - self._now()), threading.TIMEOUT_MAX)
        return self._inbox.get(timeout=wait)
      except queue.Empty:
        return None
    return self._inbox.get()

  def _meet_deadlines(self):
    while self._deadlines and self._deadlines[0][0] <= self._now():
      _, _, still_wanted, do = heapq.heappop(self._deadlines)
      if still_wanted():
        do()

  def _handle(self, message):
    if isinstance(message, worker.Answer):
      self._arrive(message)
    elif isinstance(message, worker.Here):
      self._join(message.worker_id)
    elif isinstance(message, worker.Died):
      self._last_error = message.error
      if message.gone:
        self._hands.pop(message.worker_id, None)
      self._leave(message.worker_id)
    elif callable(message):
      message()

  def _issue(self):
    """Gives tickets to the workers that may start and have their hands free."""
    for worker_id in list(self._book.ready):
      free = self._orders[worker_id] <= self._depth
      if worker_id not in self._here or not free:
        continue
      now = self._now()
      ticket = self._book.ticket(worker_id, now)
      if ticket is None:
        return
      self._orders[worker_id] += 1
      self._at(
        now + self._lease,
        functools.partial(self._is_out, ticket),
        functools.partial(self._lease_over, ticket),
      )
      self._compute_rows(None)  # so that its version is held
      self._hands[worker_id].give(
        worker.Order(
          ticket,
          self._execution.sent(ticket),
          self._execution.worker_state(worker_id),
          self._book.reserve(worker_id),
        )
      )

  def _arrive(self, answer: worker.Answer):
    ticket, now = answer.ticket, self._now()
    worker_id = ticket.worker_id
    if self._orders[worker_id]:
      self._orders[worker_id] -= 1
    stands = self._book.outstanding.get(ticket.ticket_id) == ticket
    cause = self._no_use(answer) if stands else ''
    if cause:
      self._book.expire(ticket, now, cause)
      if cause == 'non-finite':
        self._book.count_not_finite(ticket)
      return
    loss = None
    if stands:
      self._telemetry[worker_id] = self._telemetry[worker_id].plus(
        answer.seconds
      )
      self._execution.deposit(ticket, answer.submission, answer.worker_state)
      if self._needs_loss:
        loss = float(answer.submission.loss)
    self._book.arrive(ticket, now, loss)

  def _no_use(self, answer: worker.Answer) -> str:
    """Why an answer cannot be used; '' where it can."""
    pieces = isinstance(answer.submission.grads, split.Pieces)
    if not pieces and alike.form(answer.submission) != self._expected:
      return 'misshapen'
    return '' if self._allow_non_finite or answer.finite else 'non-finite'

  def _is_out(self, ticket: ledger.Ticket) -> bool:
    return ticket.ticket_id in self._book.outstanding

  def _lease_over(self, ticket: ledger.Ticket):
    self._book.expire(ticket, self._now())

  def _compute_rows(self, observer):
    """Writes down what is new and computes it."""
    rows = self._book.rows(self._writer.num_rows)
    if not rows:
      return
    self._writer.write(rows)
    self._book.forget_rows()
    for row in rows:
      self._process(row, observer)

  def _process(self, row, observer):
    metrics = self._execution.process(row)
    if metrics is not None:
      observer.take(metrics, lambda: self._execution.state)
