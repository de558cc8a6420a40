"""Real asynchrony on one machine: a thread per worker, on any local devices.

The calling thread is the server: it alone touches the ledger, the kernel and
the snapshots, so nothing is locked. Workers get orders and send answers through
queues. Arrays stay on devices: the server's thread only dispatches, and reads
no value but where the policy needs a loss. Everything that happens is written
down as it happens, and computed by the exact executor's `Execution`, so that
the trace replays to the same bits.
"""

import collections
import functools
import heapq
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax import kernel, ledger
from ga_jax import trace as trace_lib
from ga_jax.policies.base import Policy
from ga_jax.runtimes import exact, worker
from ga_jax.runtimes import job as job_lib
from ga_jax.runtimes import observer as observer_lib
from ga_jax.runtimes.checkpoints import Checkpoints

MAX_ATTEMPTS = 5  # of batches whose gradient is not finite
JOIN_SECONDS = 5.0  # what a hung worker is given at the end


class NotFiniteError(FloatingPointError):
  """The same batches gave no finite gradient again and again."""


class WorkersLostError(RuntimeError):
  """Every worker has died and batches are left."""


class Telemetry(NamedTuple):
  """Where one worker's time went, in seconds, and what it did."""

  wait: float = 0.0
  transfer: float = 0.0
  compute: float = 0.0
  answers: int = 0

  def plus(self, seconds: worker.Seconds) -> 'Telemetry':
    """With one more answer."""
    wait, transfer, compute = seconds
    return Telemetry(
      self.wait + wait,
      self.transfer + transfer,
      self.compute + compute,
      self.answers + 1,
    )

  @property
  def utilisation(self) -> float:
    """The part of its time in which the worker computed."""
    total = self.wait + self.transfer + self.compute
    return self.compute / total if total else 0.0


class Result(NamedTuple):
  """What a run leaves behind.

  Attributes:
    state: the server's state.
    trace: what happened.
    metrics: host arrays with an entry per applied arrival.
    refused: answers and tickets that were refused, by cause.
    workers: telemetry by worker.
    stopped: whether it was stopped before its end.
  """

  state: kernel.ServerState
  trace: trace_lib.Trace
  metrics: dict[str, np.ndarray]
  refused: dict[str, int]
  workers: dict[int, Telemetry]
  stopped: bool

  @property
  def params(self):
    return self.state.params

  @property
  def executed(self) -> int:
    return len(self.metrics['loss']) if self.metrics else 0


@jax.jit
def finite(submission) -> jax.Array:
  """Whether every number of a submission is finite."""
  leaves = [
    jnp.all(jnp.isfinite(leaf))
    for leaf in jax.tree.leaves(submission)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  ]
  return jnp.all(jnp.stack(leaves))


class Threads:
  """A run on threads.

  `add_worker`, `remove_worker` and `stop` may be called from other threads.
  """

  def __init__(
    self,
    job: job_lib.Job,
    policy: Policy,
    *,
    num_workers: int,
    num_batches: int,
    devices: Sequence[Any] | None = None,
    lease_seconds: float = float('inf'),
    pipeline_depth: int = 0,
    delay_fn: Callable[[int, float], float] | None = None,
    deliver_fn: Callable[[Callable[[Any], None], Any], None] | None = None,
    trace_path: str | None = None,
    checkpoints: Checkpoints | None = None,
    clock_fn: Callable[[], float] = time.monotonic,
  ):
    """Prepares a run; nothing is computed yet.

    Args:
      job: what to compute.
      policy: whom the server waits for.
      num_workers: workers, shared out over the devices in turn.
      num_batches: batches to apply.
      devices: of the workers; the first is the server's too. By default all
        local devices.
      lease_seconds: how long a ticket may be out, in seconds.
      pipeline_depth: snapshots that a worker reads ahead.
      delay_fn: `delay_fn(worker_id, compute_seconds) -> seconds` that a worker
        sleeps after a computation, for stragglers.
      deliver_fn: `deliver_fn(deliver, message)`, between workers and server;
        for tests that lose, double and forge messages.
      trace_path: file to write the rows to as they happen; None keeps them in
        memory.
      checkpoints: where to save the run, and how often; what is there already
        is gone on with (`trace_path` must be the one of then). Tickets that
        were out are issued again.
      clock_fn: seconds, for the trace and the leases.

    Raises:
      ValueError: an argument is out of its range, or the parts do not fit.
    """
    if num_workers < 1:
      raise ValueError(f'num_workers must be at least 1, got {num_workers}')
    if not lease_seconds > 0:
      raise ValueError(f'lease_seconds must be positive, got {lease_seconds}')
    kernel.check_rule(job.rule_fn(job.hparams), job.accumulates, num_workers)
    self._job = job
    self._needs_loss = policy.needs_loss
    self._devices = list(devices or jax.local_devices())
    self._lease = lease_seconds
    self._depth = pipeline_depth
    self._delay_fn = delay_fn
    self._deliver_fn = deliver_fn
    self._clock_fn = clock_fn
    self._started = clock_fn()
    self._program = program = job_lib.program_of(job)
    if pipeline_depth and jax.tree.leaves(program.init(job.params)):
      raise ValueError(
        f'pipeline_depth must be 0 with a worker program that keeps a state, '
        f'got {pipeline_depth}'
      )
    self._book = ledger.Ledger(
      policy,
      num_batches=num_batches,
      batches_per_ticket=program.num_batches,
      depth=pipeline_depth,
    )
    self._execution = exact.Execution(job, self._devices[0])
    self._answer, _ = exact.compiled_program(
      job.program_fn, job.loss_fn, job.source.load_fn
    )
    self._expected = None  # shapes and dtypes of a submission
    self._checkpoints = checkpoints
    self._trace_path = trace_path
    self._writer = None
    self._inbox = queue.SimpleQueue()
    self._stopping = threading.Event()
    self._stop_wanted = False
    self._workers = {}  # worker_id -> Worker, those that live
    self._last_error = ''  # of a worker that died
    self._orders = collections.Counter()  # worker_id -> orders in its hands
    self._deadlines = []  # heap of (time, ticket)
    self._telemetry = collections.defaultdict(Telemetry)
    self._largest = num_workers - 1
    self._first_workers = range(num_workers)

  # What other threads may call.

  def add_worker(self, worker_id: int):
    """A worker comes in while the run goes on."""
    self._inbox.put(functools.partial(self._join, worker_id))

  def remove_worker(self, worker_id: int):
    """A worker goes; its batches are issued again."""
    self._inbox.put(functools.partial(self._leave, worker_id))

  def stop(self):
    """Ends the run after the update in hand."""
    self._inbox.put(self._want_stop)

  # The server's thread.

  def run(
    self,
    observe: Callable[[int, kernel.ServerState, Any], bool] | None = None,
    block: int | None = None,
  ) -> Result:
    """Runs to the end.

    Args:
      observe: `observe(batches, state, metrics) -> stop`, called in a thread of
        its own every `block` applied arrivals.
      block: arrivals between two observations; 64 by default.

    Returns:
      A `Result`.

    Raises:
      NotFiniteError: the same batches gave no finite gradient again and again.
      WorkersLostError: every worker died and batches are left.
    """
    self._warm_up()
    observer = observer_lib.Observer(observe, block or 64, self.stop)
    try:
      self._begin(observer)
      while not (self._book.done or self._stop_wanted):
        self._issue()
        self._handle(self._receive())
        self._expire()
        self._compute_rows(observer)
        if self._checkpoints and self._checkpoints.due(self._book.version):
          self._save(observer)
      if not self._stop_wanted:
        self._book.finish(self._now())
      self._compute_rows(observer)
      if self._checkpoints:
        self._save(observer)
    finally:
      self._end_workers()
      metrics = observer.end(self._execution.state)
      if self._writer is not None:
        self._writer.flush()
    trace = self._writer.trace(self._largest + 1, self._book.num_batches)
    self._writer.close()
    return Result(
      self._execution.state,
      trace,
      metrics,
      dict(self._book.refused),
      dict(self._telemetry),
      self._stop_wanted,
    )

  def _now(self) -> float:
    return self._clock_fn() - self._started

  def _begin(self, observer):
    """Lets the workers in; goes on with a checkpoint where there is one."""
    saved = self._checkpoints and self._checkpoints.resume()
    if not saved:
      self._writer = trace_lib.TraceWriter(self._trace_path)
      for worker_id in self._first_workers:
        self._join(worker_id)
      return
    host = saved.host
    self._writer = trace_lib.TraceWriter(self._trace_path, host['rows'])
    self._book.restore(host['book'])
    self._started = self._clock_fn() - host['elapsed']
    self._telemetry.update(host['telemetry'])
    self._largest = host['largest']
    observer.restore(*host['observer'])
    arrays = self._execution.like(host['workers'], host['versions'])
    holders = collections.Counter(
      ticket.version for ticket in self._book.outstanding.values()
    )
    arrays = jax.device_put(saved.load(arrays), self._devices[0])
    self._execution.restore(arrays, holders)
    for ticket in list(self._book.outstanding.values()):
      self._book.expire(ticket, self._now(), 'restart')
    for worker_id in sorted(self._book.workers):
      self._start(worker_id)

  def _save(self, observer):
    """Writes a checkpoint of everything."""
    self._writer.flush()
    arrays = self._execution.save()
    host = {
      'book': self._book.save(),
      'rows': self._writer.num_rows,
      'elapsed': self._now(),
      'telemetry': dict(self._telemetry),
      'largest': self._largest,
      'observer': observer.save(),
      'workers': sorted(arrays['workers']),
      'versions': sorted(arrays['core']['snapshots']),
    }
    self._checkpoints.save(self._book.version, arrays, host)

  def _want_stop(self):
    self._stop_wanted = True

  def _warm_up(self):
    """Compiles everything before any thread starts: compiling holds the GIL."""
    number = min(self._program.num_batches, self._book.num_batches)
    ticket = ledger.Ticket(-1, 0, 0, 0, number, 0)
    order = worker.Order(
      ticket, self._execution.snapshot(), self._execution.worker_state(0), None
    )
    for device in dict.fromkeys(self._devices):
      machine = self._machine(device)
      answer, _ = machine.dispatch(order, machine.load(0, number))
      if self._expected is None:
        self._expected = _spec(answer[0])
        self._execution.warm_up(*jax.device_put(answer, self._devices[0]))

  @functools.cache  # noqa: B019  a run's machines live as long as the run
  def _machine(self, device) -> worker.Machine:
    job = self._job
    resident = jax.device_put(job.source.resident, device)
    return worker.Machine(
      device,
      self._devices[0],
      job.source._replace(resident=resident),
      self._answer,
      finite,
      job.hparams,
      jax.random.key(job.seed),
      self._program.exchange is not None,
    )

  def _join(self, worker_id: int):
    self._book.join(worker_id, self._now())
    self._largest = max(self._largest, worker_id)
    self._start(worker_id)

  def _start(self, worker_id: int):
    device = self._devices[worker_id % len(self._devices)]
    self._workers[worker_id] = worker.Worker(
      worker_id,
      self._machine(device),
      queue.SimpleQueue(),
      self._deliver,
      self._delay_fn,
      self._stopping,
    )

  def _leave(self, worker_id: int):
    if worker_id not in self._workers:
      return
    self._workers.pop(worker_id).mailbox.put(None)
    self._orders.pop(worker_id, None)
    self._book.leave(worker_id, self._now())
    if not self._workers and not self._book.done:
      raise WorkersLostError(
        f'all workers have left or died at version {self._book.version}; the '
        'last one: ' + (self._last_error or 'was removed')
      )

  def _deliver(self, message):
    if self._deliver_fn is None:
      self._inbox.put(message)
    else:
      self._deliver_fn(self._inbox.put, message)

  def _receive(self):
    """The next message, or None where a lease ran out first."""
    while self._deadlines:
      at, ticket = self._deadlines[0]
      if ticket.ticket_id not in self._book.outstanding:
        heapq.heappop(self._deadlines)
        continue
      try:
        return self._inbox.get(timeout=max(0.0, at - self._now()))
      except queue.Empty:
        return None
    return self._inbox.get()

  def _handle(self, message):
    if isinstance(message, worker.Answer):
      self._arrive(message)
    elif isinstance(message, worker.Died):
      self._last_error = message.error
      self._leave(message.worker_id)
    elif callable(message):
      message()

  def _issue(self):
    """Gives tickets to the workers that may start and have their hands free."""
    for worker_id in list(self._book.ready):
      free = self._orders[worker_id] <= self._depth
      if worker_id not in self._workers or not free:
        continue
      now = self._now()
      ticket = self._book.ticket(worker_id, now)
      if ticket is None:
        return
      self._orders[worker_id] += 1
      if self._lease < float('inf'):
        heapq.heappush(self._deadlines, (now + self._lease, ticket))
      self._compute_rows(None)  # so that its version is held
      self._workers[worker_id].mailbox.put(
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
      if ticket.attempt + 1 >= MAX_ATTEMPTS and cause == 'non-finite':
        raise NotFiniteError(
          f'batch {ticket.first_batch} gave no finite gradient in '
          f'{MAX_ATTEMPTS} attempts, the last at version {ticket.version}'
        )
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
    if _spec(answer.submission) != self._expected:
      return 'misshapen'
    return '' if answer.finite else 'non-finite'

  def _expire(self):
    """Takes back tickets whose lease ran out."""
    now = self._now()
    while self._deadlines and self._deadlines[0][0] <= now:
      _, ticket = heapq.heappop(self._deadlines)
      if ticket.ticket_id in self._book.outstanding:
        self._book.expire(ticket, now)

  def _compute_rows(self, observer):
    """Writes down what is new and computes it."""
    rows = self._book.rows(self._writer.num_rows)
    if not rows:
      return
    self._writer.write(rows)
    self._book.forget_rows()
    for row in rows:
      metrics = self._execution.process(row)
      if metrics is not None:
        observer.take(metrics, self._execution.state)

  def _end_workers(self):
    self._stopping.set()
    for one in self._workers.values():
      one.mailbox.put(None)
    deadline = time.monotonic() + JOIN_SECONDS
    for one in self._workers.values():
      one.thread.join(max(0.0, deadline - time.monotonic()))


def run_on_threads(
  loss_fn: Callable[..., Any],
  params,
  batches: job_lib.Source | Callable[[int], Any],
  rule,
  *,
  policy: Policy,
  num_workers: int,
  num_batches: int,
  model_state=(),
  stats_momentum: float | None = None,
  seed: int = 0,
  hparams: Any = None,
  program: Callable[..., Any] | None = None,
  observe: Callable[[int, kernel.ServerState, Any], bool] | None = None,
  block: int | None = None,
  **options,
) -> Result:
  """Trains with N workers on this machine's devices, nobody waiting.

  Args:
    loss_fn: and all that follow up to `program` as for `simulate`.
    params: see `simulate`.
    batches: see `simulate`; `batch_fn` is called from the workers' threads.
    rule: see `simulate`.
    policy: whom the server waits for.
    num_workers: number of workers; they share the devices where these are less.
    num_batches: batches to apply.
    model_state: see `simulate`.
    stats_momentum: see `simulate`.
    seed: see `simulate`.
    hparams: see `simulate`.
    program: see `simulate`.
    observe: see `Threads.run`.
    block: see `Threads.run`.
    **options: of `Threads`: devices, lease_seconds, pipeline_depth, ...

  Returns:
    A `Result`; its trace replays to the same bits in the exact executor.

  Examples:
    >>> import ga_jax, jax.numpy as jnp, numpy as np
    >>> loss = lambda p, s, x, key: (jnp.mean((x - p) ** 2), s)
    >>> result = ga_jax.run_on_threads(
    ...     loss, jnp.zeros(()), lambda i: np.ones(4, np.float32),
    ...     ga_jax.gap_aware(0.02), policy=ga_jax.policies.asynchronous(),
    ...     num_workers=2, num_batches=500)
    >>> print(round(float(result.params), 2))
    1.0
  """
  job = job_lib.build(
    loss_fn,
    params,
    batches,
    rule,
    policy=policy,
    model_state=model_state,
    stats_momentum=stats_momentum,
    seed=seed,
    hparams=hparams,
    program=program,
  )
  threads = Threads(
    job, policy, num_workers=num_workers, num_batches=num_batches, **options
  )
  return threads.run(observe, block)


def _spec(submission):
  """Structure, shapes and dtypes of a submission."""
  leaves, structure = jax.tree.flatten(submission)
  return structure, tuple(
    (jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves
  )
