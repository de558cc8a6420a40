"""A worker elsewhere as the server sees it: it sends orders and waits."""

import collections
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ray
from ray import exceptions
from ray.experimental.channel import utils as channel_utils

from ga_jax.live.ray import messages, wire
from ga_jax.live.ray import snapshots as snapshots_lib
from ga_jax.programs import base as programs
from ga_jax.server import split
from ga_jax.workers import placement, worker

RETRY_SECONDS = 0.5  # between two tries to reach a worker


class _Sent(NamedTuple):
  """An order on its way."""

  order: worker.Order
  packed: Any  # snapshots.PackedSnapshot, kept as long as the order is out
  reply: Any  # ray.ObjectRef of a messages.Reply
  pieces: tuple[Any, ...] = ()  # those of the gradient's pieces


class RayWorkerHandle:
  """What the server sees of a `RayWorker`: it sends and waits in a thread.

  Attributes:
    may_return: whether the worker is here, or may come.
  """

  def __init__(
    self,
    worker_id: int,
    actor,
    layouts: messages.Layouts,
    snapshots: snapshots_lib.PackedSnapshots,
    device,
    *,
    depth: int,
    channels: bool,
    deliver: Callable[[Any], None],
    check_fn: Callable[[int, messages.Facts], None] | None = None,
  ):
    """Starts to wait for the worker.

    Args:
      worker_id: who it is.
      actor: handle of its `RayWorker`.
      layouts: of the job.
      snapshots: packed, shared by all handles.
      device: where submissions go.
      depth: orders that are sent ahead.
      channels: whether to use them where the worker is on the same host.
      deliver: takes `worker.Here`, `worker.Answer` and `worker.Died`.
      check_fn: `check_fn(worker_id, facts)` raises where the worker cannot be
        let in.
    """
    self.may_return = True
    self._worker_id = worker_id
    self._actor = actor
    self._layouts = layouts
    self._snapshots = snapshots
    self._sharding = placement.Placement((device,)).sharding()
    self._device = device
    self._depth = depth
    self._channels = channels
    self._deliver = deliver
    self._check_fn = check_fn
    self._mailbox = queue.SimpleQueue()
    self._orders = self._answers = None  # channels
    self._channels_made = 0
    self._dismissed = False
    self._thread = threading.Thread(
      target=self._run, name=f'handle-{worker_id}', daemon=True
    )
    self._thread.start()

  def give(self, order: worker.Order):
    """Sends an order."""
    self._mailbox.put(order)

  def dismiss(self):
    """Ends the thread after the order in hand; the actor lives on."""
    self._dismissed, self.may_return = True, False
    self._mailbox.put(None)

  def _run(self):
    while not self._dismissed:
      met = False
      try:
        self._meet()
        met = True
        self._deliver(worker.Here(self._worker_id))
        self._serve()
      except exceptions.RayError as error:
        self._lost(error, gone=not _comes_back(error, met))
      except Exception:
        self._lost(traceback.format_exc(), gone=True)

  def _lost(self, error, gone: bool):
    if gone:
      self.may_return, self._dismissed = False, True
    while not self._mailbox.empty():  # their tickets are taken back
      self._mailbox.get()
    self._deliver(worker.Died(self._worker_id, str(error), gone))
    if not gone:
      time.sleep(RETRY_SECONDS)

  def _meet(self):
    """Waits until the worker is there, and says how to talk."""
    facts = ray.get(self._actor.facts.remote())
    if self._check_fn is not None:
      self._check_fn(self._worker_id, facts)
    here = ray.get_runtime_context().get_node_id()
    self._orders = None
    made = max(self._channels_made, facts.channels)
    near = facts.node_id == here
    if near and self._channels and made < messages.MOST_CHANNELS:
      nbytes = self._layouts.sent.nbytes
      self._orders = messages.channel_to(self._actor, here, nbytes)
      self._channels_made += 1
    me = channel_utils.get_self_actor()
    self._answers = ray.get(self._actor.connect.remote(self._orders, me, here))

  def _serve(self):
    sent = collections.deque()
    while True:
      while len(sent) <= self._depth:
        if sent and self._mailbox.empty():
          break
        order = self._mailbox.get()
        if order is None:
          return
        sent.append(self._send(order))
      try:
        self._deliver(self._receive(sent[0]))
      except exceptions.ObjectLostError:
        self._snapshots.forget(sent[0].order.ticket.version)
        raise
      sent.popleft()

  def _send(self, order: worker.Order) -> _Sent:
    state = order.worker_state
    if not isinstance(state, messages.Kept):
      state = wire.to_host(state)
    note = messages.Note(order.ticket, state, order.reserved)
    if isinstance(order.sent, split.Pieces):
      handles = order.sent.handles
      compute = self._actor.compute.options(num_returns=1 + len(handles))
      reply, *pieces = compute.remote(note, *handles)
      return _Sent(order, None, reply, tuple(pieces))
    packed = self._snapshots.take(order.ticket.version, order.sent)
    if self._orders is None:
      reply = self._actor.compute.remote(note, packed.stored())
    else:
      self._orders.write(packed.buffers, messages.READ_SECONDS)
      reply = self._actor.compute.remote(note)
    return _Sent(order, packed, reply)

  def _submission(self, reply: messages.Reply, pieces):
    if pieces:
      return programs.Submission(split.Pieces(pieces), *reply.buffers)
    layout, buffers = self._layouts.submission, reply.buffers
    if not buffers:  # copied, so that the channel is free for the next answer
      buffers = layout.copied(self._answers.read(messages.READ_SECONDS))
    return layout.unpack(buffers, self._sharding)

  def _receive(self, sent: _Sent) -> worker.Answer:
    reply, ticket = ray.get(sent.reply), sent.order.ticket
    submission = self._submission(reply, sent.pieces)
    state = sent.order.worker_state
    if reply.worker_state is not None:
      state = jax.device_put(reply.worker_state, self._device)
    elif jax.tree.leaves(state):
      state = messages.Kept(ticket.ticket_id)
    return worker.Answer(ticket, submission, state, reply.finite, reply.seconds)


def _comes_back(error: exceptions.RayError, met: bool) -> bool:
  """Whether the worker, or another in its place, can be reached again.

  Args:
    error: what came instead of an answer.
    met: whether the worker was reached before it.
  """
  if isinstance(error, exceptions.RayTaskError):  # raised in its process
    return isinstance(error.cause, exceptions.RayError | messages.Forgotten)
  # Ray starts it again; one that cannot be reached at all has no process more.
  return met or not isinstance(error, exceptions.ActorDiedError)
