"""A server and its workers, computed row by row of a trace."""

import functools
from collections.abc import Iterable
from typing import Any

import jax

from ga_jax.job import compiled as compiled_lib
from ga_jax.job import job as job_lib
from ga_jax.job import metrics as metrics_lib
from ga_jax.job import source as source_lib
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.server import core, ledger, split, update
from ga_jax.server import shards as shards_lib
from ga_jax.workers.placement import Placement


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
    remote: shards_lib.Remote | None = None,
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
    _check_program(job, shards)
    self._core = shards_lib.core(
      job.rule_fn,
      job.fold,
      job.accumulates,
      job.hparams,
      job.params,
      job.model_state,
      layer_metrics=job.layer_metrics,
      shards=shards,
      device=device,
      remote=remote,
    )
    self._compiled = compiled_lib.compiled_program(
      job.program_fn, job.loss_fn, job.source.load_fn
    )
    self._program = job.worker_program
    self._device, self._placement = device, placement
    self._workers = {}  # worker_id -> committed program state
    self._answers = {}  # ticket_id -> (submission, program state), not entered

  @property
  def state(self) -> update.ServerState:
    return self._core.state

  @property
  def version(self) -> int:
    """Updates made."""
    return self._core.version

  def holders(self) -> dict[int, int]:
    """By version, how many tickets hold its snapshot."""
    return self._core.holders()

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

  def snapshot(self) -> update.Snapshot:
    """What a worker that starts now would be sent."""
    return self._core.snapshot()

  def warm_up(self, submission, worker_state):
    """Compiles what arrivals are computed with; nothing is changed.

    Args:
      submission: any submission, on the server's device.
      worker_state: its worker's program state, likewise.
    """
    submission, _, sent = self._receive(submission, worker_state, self.snapshot)
    self._core.warm_up(submission.grads, submission.model_state, sent)

  def sent(self, ticket: ledger.Ticket) -> update.Snapshot | split.Pieces:
    """What the worker of an outstanding ticket is sent."""
    return self._core.to_send(ticket.version)

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
      self._core.hold(version)
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
    sent = self._core.read(ticket.version)
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
    batches = source_lib.host_batches(
      source, ticket.first_batch, ticket.num_batches
    )
    if self._placement is not None:
      batches = self._placement.batches(batches)
    return hparams, worker_state, sent, batches, resident, key

  def _receive(self, submission, worker_state, sent_fn):
    """What an answer is to the server: see `program.received`.

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
      lambda: self._core.read(ticket.version),
    )
    self._workers[ticket.worker_id] = worker_state
    grads, model_state, _ = submission
    fresh = stale if sent is None else 0
    metrics, layers = self._core.enter(
      core.Entry(ticket, grads, model_state, weight, fresh, sent), action
    )
    number = ticket.num_batches
    return metrics_lib.record(submission, metrics, layers, stale, number)


def check_shards(job: job_lib.Job, shards: int):
  """Refuses a job that cannot run on so many server shards.

  Raises:
    ValueError: says why.
  """
  _check_program(job, shards)
  rule = job.rule_fn(job.hparams)
  shards_lib.check(shards, rule, job.params, job.layer_metrics)


def _check_program(job: job_lib.Job, shards: int):
  """Raises a ValueError where a worker program needs a whole server."""
  program = job.worker_program
  if shards > 1 and program.exchange is not None:
    raise ValueError(
      "this worker program exchanges with the whole of the server's "
      'parameters at arrival (EASGD, EAMSGD), which no shard has: take one '
      'server shard, or another program'
    )
  if shards > 1 and program.decode is not None:
    raise ValueError(
      'a compressed gradient is a message that no shard can read alone: take '
      'one server shard, or no compression'
    )
