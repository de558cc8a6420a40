"""A worker in a process of its own, on any machine of a Ray cluster.

`RayWorker` is the actor: it computes orders. `handle.RayWorkerHandle` is what
the server sees of it: a thread that sends orders and waits for answers. Between
processes of one host what is sent goes through a shared-memory channel of each
worker, to other hosts through the object store, one object for each version.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ray

from ga_jax.job import job as job_lib
from ga_jax.live.ray import messages, wire
from ga_jax.server import ledger, split, update
from ga_jax.workers import placement, worker


class RayWorker:
  """A worker's process. To be made an actor by `ray.remote`."""

  def __init__(
    self,
    worker_id: int,
    make_fn: Callable[[], job_lib.Job],
    devices_per_worker: int = 1,
    delay_fn: Callable[[int, float], float] | None = None,
    facts_fn: Callable[[], Any] | None = None,
    shards: int = 1,
  ):
    """Builds the job here and compiles it.

    Args:
      worker_id: who it is.
      make_fn: `make_fn() -> Job`.
      devices_per_worker: how many of this process's devices it shares its
        batches over.
      delay_fn: see `threads.Threads`.
      facts_fn: `facts_fn() -> anything` that the server is to know of here.
      shards: of the server.
    """
    job = make_fn()
    self._placement, *_ = placement.shared_out(
      jax.local_devices(), devices_per_worker
    )
    self._layouts = messages.layouts_of(job)
    self._split = split.split(job.params, shards) if shards > 1 else None
    delay = delay_fn and (lambda seconds: delay_fn(worker_id, seconds))
    machine = worker.machine_of(job, self._placement)
    self._computing = worker.Computing(machine, delay)
    self._exchanges = machine.exchanges
    self._states = {}  # ticket_id -> program state that its answer left
    self._connected = False
    self._orders = self._answers = None  # channels
    self._channels_made = 0
    self._waited = time.perf_counter()
    self._facts_fn = facts_fn
    self._warm_up(job, worker_id, machine)

  def _warm_up(self, job, worker_id, machine):
    """Goes once through everything, so that it is compiled."""
    number = job.worker_program.num_batches
    ticket = ledger.Ticket(-1, worker_id, 0, 0, number, 0)
    sent = update.Snapshot(job.params, job.model_state)
    sent = self._placement.replicated(jax.tree.map(jnp.asarray, sent))
    sent = self._layouts.sent.unpack(
      self._layouts.sent.pack(sent), self._placement.sharding()
    )
    state = job.worker_program.init(job.params)
    order = worker.Order(ticket, sent, state, None)
    submission, _ = machine.dispatch(order, machine.load(0, number))
    self._layouts.submission.pack(submission)

  def facts(self) -> messages.Facts:
    """Who this is."""
    where = ray.get_runtime_context().get_node_id()
    device = self._placement.devices[0].device_kind
    found = self._facts_fn() if self._facts_fn else None
    return messages.Facts(
      where, os.getpid(), device, found, self._channels_made
    )

  def connect(self, orders, server, node_id: str):
    """Reads orders from a channel from now on.

    Args:
      orders: the channel; None for orders that come with their snapshots.
      server: handle of the actor that reads the answers.
      node_id: where it is.

    Returns:
      The channel of the answers, or None.
    """
    self._connected, self._orders, self._answers = True, orders, None
    if orders is not None:
      nbytes = self._layouts.submission.nbytes
      self._answers = messages.channel_to(server, node_id, nbytes)
      self._channels_made += 1
    return self._answers

  def compute(self, note: messages.Note, *sent) -> messages.Reply:
    """Computes an order; `sent` are its buffers where no channel is used.

    Raises:
      Forgotten: this process was started again since the server met it.
    """
    ticket, state = note.ticket, note.worker_state
    known = (
      not isinstance(state, messages.Kept) or state.ticket_id in self._states
    )
    if not (self._connected and known):
      raise messages.Forgotten(f'worker {ticket.worker_id} was started again')
    begun = time.perf_counter()
    wait = begun - self._waited
    snapshot = self._unpacked(sent)
    if isinstance(state, messages.Kept):
      state = self._states[state.ticket_id]
    order = worker.Order(ticket, snapshot, state, note.reserved)
    answer = self._computing.compute(order, wait)
    self._keep(note, answer)
    buffers, pieces, is_finite = self._packed(answer.submission)
    if not sent:
      self._answers.write(buffers, messages.READ_SECONDS)
      buffers = ()
    self._waited = time.perf_counter()
    seconds = answer.seconds._replace(
      transfer=self._waited - begun - answer.seconds.compute
    )
    state = wire.to_host(answer.worker_state) if self._exchanges else None
    reply = messages.Reply(state, is_finite, seconds, buffers)
    return (reply, *pieces) if pieces else reply

  def _unpacked(self, sent) -> update.Snapshot:
    """What was sent, on the devices."""
    if self._split is not None:
      params = self._split.join([piece.params for piece in sent])
      whole = update.Snapshot(params, sent[0].model_state)
      return self._placement.replicated(whole)
    if sent:
      (buffers,) = sent
    else:  # copied, so that the channel is free for the next order
      buffers = self._layouts.sent.copied(
        self._orders.read(messages.READ_SECONDS)
      )
    return self._layouts.sent.unpack(buffers, self._placement.sharding())

  def _packed(self, submission):
    """(What is sent of a submission, its pieces, whether it is finite)."""
    if self._split is None:
      buffers = self._layouts.submission.pack(submission)
      return buffers, (), wire.finite(buffers)
    grads, *rest = wire.to_host(submission)
    finite = wire.finite(jax.tree.leaves((grads, rest)))
    return tuple(rest), self._split.pieces(grads), finite

  def state(self, ticket_id: int):
    """The program state that an answer left, as NumPy arrays."""
    return wire.to_host(self._states[ticket_id])

  def _keep(self, note: messages.Note, answer: worker.Answer):
    """Keeps what may be asked for: the last accepted state, and this one."""
    if self._exchanges or not jax.tree.leaves(answer.worker_state):
      return
    kept = {note.ticket.ticket_id: answer.worker_state}
    if isinstance(note.worker_state, messages.Kept):
      accepted = note.worker_state.ticket_id
      kept[accepted] = self._states[accepted]
    self._states = kept
