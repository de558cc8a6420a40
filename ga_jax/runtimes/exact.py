"""The exact executor: a trace, event by event, with a live run's functions.

Gradient and update are compiled separately and dispatched one event at a time,
as a live run does, so the result has its bits.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from ga_jax import kernel, ledger, recovery, sharded
from ga_jax.policies.base import Action, Kind
from ga_jax.runtimes import checkpoints as checkpoints_lib
from ga_jax.runtimes import job as job_lib
from ga_jax.runtimes.checkpoints import Checkpoints
from ga_jax.runtimes.placement import Placement


class CompiledProgram(NamedTuple):
  """What a worker does, and what is done with its answer at arrival.

  Attributes:
    answer: `answer(hparams, worker_state, sent, host_batches, resident, key,
      ticket) -> (Submission, worker_state)`.
    decode: `decode(hparams, message, params) -> grads`.
    exchange: `exchange(hparams, worker_state, submission, sent, params) ->
      (Submission, worker_state, sent)`.
  """

  answer: Callable[..., Any]
  decode: Callable[..., Any]
  exchange: Callable[..., Any]


@functools.lru_cache(maxsize=64)
def compiled_program(program_fn, loss_fn, load_fn) -> CompiledProgram:
  """Compiles a worker program; each of its steps on its own."""

  def program(hparams, resident=()):
    return job_lib.worker_program(
      program_fn, hparams, loss_fn, load_fn, resident
    )

  @jax.jit
  def compute(
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

  def answer(hparams, worker_state, sent, host_batches, resident, key, ticket):
    first_batch, attempt = (
      np.int32(ticket.first_batch),
      np.int32(ticket.attempt),
    )
    return compute(
      hparams,
      worker_state,
      sent,
      host_batches,
      resident,
      key,
      first_batch,
      attempt,
    )

  @jax.jit
  def decode(hparams, message, params):
    return program(hparams).decode(message, params)

  @jax.jit
  def exchange(hparams, worker_state, submission, sent, params):
    return job_lib.received(
      program(hparams), worker_state, submission, sent, params
    )

  return CompiledProgram(answer, decode, exchange)


class Pieces(NamedTuple):
  """Parameters or gradients that are with, or on their way to, the shards.

  Attributes:
    handles: one for each shard.
  """

  handles: tuple[Any, ...]


class Remote(NamedTuple):
  """Server shards that are elsewhere; see `sharded.core`."""

  shard_fn: Callable[..., Any]
  gather_fn: Callable[[list[Any]], list[Any]]


class Execution:
  """A server and its workers, computed row by row of a trace.

  Attributes:
    state: the server's state.
  """

  def __init__(
    self,
    job: job_lib.Job,
    device=None,
    placement: Placement | None = None,
    shards: int = 1,
    remote: Remote | None = None,
  ):
    """Starts a server.

    Args:
      job: what to compute.
      device: where the server's arrays are; by default the first of
        `placement`, or JAX's default device.
      placement: where workers compute that are played here; by default where
        the server is.
      shards: of the server; another number gives other bits.
      remote: where the shards are, if not here.

    Raises:
      ValueError: the job cannot run on so many shards.
    """
    if placement is not None:
      device = device or placement.devices[0]
    self._job = job
    check_shards(job, shards)
    self._remote = remote if shards > 1 else None
    self._core = sharded.core(
      job.rule_fn,
      job.fold_fn,
      job.accumulates,
      job.hparams,
      job.params,
      job.model_state,
      shards=shards,
      **(
        {'device': device} if self._remote is None else self._remote._asdict()
      ),
    )
    self._compiled = compiled_program(
      job.program_fn, job.loss_fn, job.source.load_fn
    )
    self._program = job_lib.program_of(job)
    self._device, self._placement = device, placement
    self._workers = {}  # worker_id -> committed program state
    self._answers = {}  # ticket_id -> (submission, program state), not entered

  @property
  def state(self) -> kernel.ServerState:
    return self._core.state

  @property
  def version(self) -> int:
    """Updates made."""
    return self._core.version

  def holders(self) -> dict[int, int]:
    """By version, how many tickets hold its snapshot."""
    return self._core.store.holders()

  def loss(self, ticket: ledger.Ticket) -> float:
    """The loss of a ticket that is about to be answered."""
    answer = self._compute(ticket)
    self.deposit(ticket, *answer)
    return float(answer[0].loss)

  def save(self):
    """All arrays: server, workers, live snapshots; a pytree."""
    return {'core': self._core.save(), 'workers': dict(self._workers)}

  def like(self, workers: Iterable[int], versions: Iterable[int]):
    """What `save` returns, for these workers and versions: shapes to load."""
    state = self._program.init(self._job.params)
    return {
      'core': self._core.like(versions),
      'workers': dict.fromkeys(workers, state),
    }

  def restore(self, saved, holders: dict[int, int]):
    """Goes on where `save` was called.

    Args:
      saved: what it returned.
      holders: by version, tickets that hold its snapshot.
    """
    self._core.restore(saved['core'], holders)
    self._workers = dict(saved['workers'])
    self._answers = {}

  def snapshot(self) -> kernel.Snapshot:
    """What a worker that starts now would be sent."""
    return self._core.snapshot()

  def warm_up(self, submission, worker_state):
    """Compiles what arrivals are computed with; nothing is changed.

    Args:
      submission: any submission, on the server's device.
      worker_state: its worker's program state, likewise.
    """
    submission, _, sent = self._receive(submission, worker_state, self.snapshot)
    arguments = submission.grads, submission.model_state
    self._core.warm_up(*arguments, sent or self.snapshot())
    if self._job.layer_metrics:
      self._core.layer_metrics(
        ledger.Ticket(0, 0, 0, 0, 1, 0),
        *arguments,
        weight=1.0,
        staleness=0,
        sent=sent or self.snapshot(),
      )

  def sent(self, ticket: ledger.Ticket) -> kernel.Snapshot | Pieces:
    """What the worker of an outstanding ticket is sent."""
    if self._remote is not None:
      return Pieces(tuple(self._core.pieces(ticket.version)))
    return self._core.store.read(ticket.version)

  def worker_state(self, worker_id: int):
    """The program state of a worker, as its last accepted answer left it."""
    if worker_id not in self._workers:
      self._workers[worker_id] = self._program.init(self._job.params)
    return self._workers[worker_id]

  def deposit(self, ticket: ledger.Ticket, submission, worker_state):
    """Brings the answer to a ticket, before its row is processed."""
    self._answers[ticket.ticket_id] = submission, worker_state

  def process(self, row) -> dict[str, Any] | None:
    """Computes what a row says.

    Args:
      row: values in the order of `trace.EVENT_DTYPE`.

    Returns:
      The metrics of a gradient that entered a round, else None.
    """
    (_, event, worker, ticket_id, version, *fields, action, weight, stale) = row
    if event == Kind.ISSUE:
      self._core.keep(version)
    elif event == Kind.CLOSE:
      self._core.close()
    elif event == Kind.LEAVE:
      self._workers.pop(worker, None)
      self._core.leave(worker)
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
      metrics['time'] = row[0]
    self._core.release(version)
    return metrics

  def _compute(self, ticket):
    state = self.worker_state(ticket.worker_id)
    sent = self._core.store.read(ticket.version)
    if self._placement is None:
      return self._compiled.answer(*self._inputs(ticket, state, sent), ticket)
    state, sent = self._placement.replicated((state, sent))
    answer = self._compiled.answer(*self._inputs(ticket, state, sent), ticket)
    return jax.device_put(answer, self._device)

  @functools.cached_property
  def _constants(self):
    """Hyper-parameters, data and key; no copies where nothing is computed."""
    job = self._job
    constants = job.hparams, job.source.resident, jax.random.key(job.seed)
    if self._placement is None:
      return constants
    return self._placement.replicated(constants)

  def _inputs(self, ticket, worker_state, sent):
    source = self._job.source
    hparams, resident, key = self._constants
    batches = job_lib.host_batches(
      source, ticket.first_batch, ticket.num_batches
    )
    if self._placement is not None:
      batches = self._placement.batches(batches)
    return hparams, worker_state, sent, batches, resident, key

  def _receive(self, submission, worker_state, sent_fn):
    """What an answer is to the server: see `job.received`.

    Returns:
      (submission, program state, what it was computed at, where that is other
      than what was sent).
    """
    hparams, sent = self._job.hparams, None
    if self._program.exchange is not None:
      submission, worker_state, sent = self._compiled.exchange(
        hparams, worker_state, submission, sent_fn(), self._core.params
      )
    elif self._program.decode is not None:
      params = self._core.params
      grads = self._compiled.decode(hparams, submission.grads, params)
      submission = submission._replace(grads=grads)
    return submission, worker_state, sent

  def _enter(self, ticket, submission, worker_state, action, weight, stale):
    submission, worker_state, sent = self._receive(
      submission,
      worker_state,
      lambda: self._core.store.read(ticket.version),
    )
    self._workers[ticket.worker_id] = worker_state
    how = {'weight': weight, 'staleness': stale if sent is None else 0}
    grads, model_state, _ = submission
    layers = None
    if self._job.layer_metrics:
      layers = self._core.layer_metrics(
        ticket, grads, model_state, sent=sent, **how
      )
    how['action'] = action
    if isinstance(grads, Pieces):
      metrics = self._core.enter_pieces(
        ticket, grads.handles, model_state, **how
      )
    else:
      metrics = self._core.enter(ticket, grads, model_state, sent=sent, **how)
    number = ticket.num_batches
    return job_lib.record(submission, metrics, layers, stale, number)


def check_shards(job: job_lib.Job, shards: int):
  """Refuses a job that cannot run on so many server shards.

  Raises:
    ValueError: says why.
  """
  if shards > 1 and job.layer_metrics:
    raise ValueError(
      'layer_metrics are measured where a layer is whole: take one server '
      'shard, or no layer_metrics'
    )
  program = job_lib.program_of(job)
  sharded.check(shards, job.rule_fn(job.hparams), job.params, program)
  if shards > 1 and program.decode is not None:
    raise ValueError(
      'a compressed gradient is a message that no shard can read alone: take '
      'one server shard, or no compression'
    )


def answer_shape(job: job_lib.Job, num_batches: int):
  """Shapes and dtypes of (submission, program state) for so many batches."""
  ticket = ledger.Ticket(-1, 0, 0, 0, num_batches, 0)
  compiled = compiled_program(job.program_fn, job.loss_fn, job.source.load_fn)
  return jax.eval_shape(
    lambda *args: compiled.answer(*args, ticket),
    job.hparams,
    job_lib.program_of(job).init(job.params),
    kernel.Snapshot(job.params, job.model_state),
    job_lib.host_batches(job.source, 0, num_batches),
    job.source.resident,
    jax.random.key(job.seed),
  )


def execute(
  job: job_lib.Job,
  trace,
  observe: Callable[[int, kernel.ServerState, Any], bool] | None = None,
  block: int | None = None,
  align: int | None = None,
  checkpoints: Checkpoints | None = None,
  device=None,
  placement: Placement | None = None,
  shards: int = 1,
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
    checkpoints: where to save the run, and how often; what is there already is
      gone on with, to the same bits.
    device: of the server, see `Execution`.
    placement: of the workers, see `Execution`.
    shards: of the server, see `Execution`.

  Returns:
    The final state, metrics per applied arrival, and how many were executed.

  Raises:
    RecoveryError: the checkpoint is of another run.
  """
  job_lib.expect(job.source, trace)
  rows = trace.events.tolist()
  execution = Execution(job, device, placement, shards)
  run = checkpoints_lib.of_trace(job, trace, executor='exact')
  return Run(execution, checkpoints, run).consume(
    rows, trace.num_batches, observe, block or align
  )


class Run:
  """An execution of rows that can be saved and gone on with.

  Attributes:
    losses: by ticket, what `loss` returned; they stand for the computations of
      an earlier process.
  """

  def __init__(
    self,
    execution: Execution,
    checkpoints: Checkpoints | None = None,
    run: dict[str, Any] | None = None,
  ):
    """Goes on where there is something to go on with.

    Args:
      execution: of the rows.
      checkpoints: see `execute`.
      run: see `Checkpoints.resume`.

    Raises:
      RecoveryError: what is there is of another run.
    """
    self.losses = {}
    self._execution = execution
    self._checkpoints = checkpoints
    self._log = []  # metrics of entered arrivals
    self._rows = 0  # processed
    self._digest = hashlib.sha256()  # of them
    self._saved = checkpoints and checkpoints.resume(run)
    if self._saved:
      self.losses = dict(self._saved.host['losses'])
      self._log = list(self._saved.host['log'])

  def loss(self, ticket: ledger.Ticket) -> float:
    """The loss of a ticket that is about to be answered."""
    if ticket.ticket_id not in self.losses:
      self.losses[ticket.ticket_id] = self._execution.loss(ticket)
    return self.losses[ticket.ticket_id]

  def consume(
    self, rows: Iterable, num_batches: int, observe, block
  ) -> tuple[kernel.ServerState, dict[str, np.ndarray], int]:
    """Computes rows as they come; see `execute`."""
    execution, log = self._execution, self._log
    observed = len(log)
    batches = sum(metrics['num_batches'] for metrics in log)
    for row in rows:
      metrics = self._process(row)
      if metrics is None:
        continue
      log.append(metrics)
      batches += metrics['num_batches']
      if self._checkpoints and self._checkpoints.due(execution.version):
        self._save()
      full = len(log) % (block or 1) == 0
      if observe and full and batches < num_batches:
        fresh, observed = stacked(log[observed:]), len(log)
        if observe(batches, execution.state, fresh):
          break
    if self._saved:
      raise recovery.RecoveryError(
        f'the checkpoint {self._saved.path} is of another run: it was saved '
        f'after {self._saved.host["rows"]} events, and there are only '
        f'{self._rows}'
      )
    # Only now: after the last arrival its round may still have been closed.
    if observe and batches == num_batches and observed < len(log):
      observe(batches, execution.state, stacked(log[observed:]))
    if self._checkpoints and self._rows:
      self._save()
    return execution.state, stacked(log), len(log)

  def _process(self, row):
    """Computes a row, unless an earlier process did."""
    self._rows += 1
    self._digest.update(repr(tuple(row)).encode())
    if not self._saved:
      return self._execution.process(row)
    if self._rows == self._saved.host['rows']:
      self._restore()
    return None

  def _restore(self):
    host = self._saved.host
    if self._digest.hexdigest() != host['digest']:
      raise recovery.RecoveryError(
        f'the checkpoint {self._saved.path} is of another run: its events '
        'differ from this one'
      )
    like = self._execution.like(host['workers'], host['versions'])
    self._execution.restore(self._saved.load(like), host['versions'])
    self._saved = None

  def _save(self):
    arrays = self._execution.save()
    self._log[:] = [
      {name: np.asarray(value) for name, value in metrics.items()}
      for metrics in self._log
    ]
    host = {
      'rows': self._rows,
      'digest': self._digest.hexdigest(),
      'losses': self.losses,
      'log': self._log,
      'workers': sorted(arrays['workers']),
      'versions': self._execution.holders(),
    }
    self._checkpoints.save(self._execution.version, arrays, host)


def stacked(log) -> dict[str, np.ndarray]:
  """A list of metric dicts as a dict of host arrays."""
  if not log:
    return {}
  return {k: np.stack([np.asarray(m[k]) for m in log]) for k in log[0]}
