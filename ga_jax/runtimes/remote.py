"""A worker in a process of its own, on any machine of a Ray cluster.

`Station` is the actor: it computes orders. `RemoteHand` is what the server sees
of it: a thread that sends orders and waits for answers. Between processes of
one host what is sent goes through a shared-memory channel of each worker, to
other hosts through the object store, one object for each version.
"""

import collections
import os
import queue
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ray
from ray import exceptions
from ray.experimental.channel import shared_memory_channel
from ray.experimental.channel import utils as channel_utils

from ga_jax import kernel, ledger, sharded, sharding
from ga_jax.programs import base as programs
from ga_jax.runtimes import exact, placement, wire, worker
from ga_jax.runtimes import job as job_lib

# What is announced by a call is in the channel already: waiting there would
# take a whole core, for Ray waits by asking again and again.
READ_SECONDS = 60.0
RETRY_SECONDS = 0.5  # between two tries to reach a worker
STATE_SECONDS = 5.0  # for a state that a worker keeps; longer where it is lost
STATES = 'states'  # concurrency group: answers while the worker computes
# Ray keeps a channel's memory until both of its processes have ended: a worker
# that is started again and again, or whose server is, goes on without.
MOST_CHANNELS = 5
_SLACK = 4096  # bytes of a channel for what is not numbers


class Forgotten(Exception):
  """The worker's process is not the one that the server met."""


class Kept(NamedTuple):
  """The program state that an answer left, kept by its worker."""

  ticket_id: int


class Note(NamedTuple):
  """An order without what is large in it."""

  ticket: ledger.Ticket
  worker_state: Any  # `Kept`, or a pytree of NumPy arrays
  reserved: tuple[int, int, int] | None


class Reply(NamedTuple):
  """An answer without what is large in it.

  Attributes:
    worker_state: NumPy arrays where the server takes part in it, else None.
    finite: whether every number is.
    seconds: where the worker's time went.
    buffers: the submission; () where it went through the channel. Where the
      server has shards, what of it is not gradients: (statistics, loss).
  """

  worker_state: Any
  finite: bool
  seconds: worker.Seconds
  buffers: tuple[Any, ...]


class Facts(NamedTuple):
  """Who a worker is.

  Attributes:
    node_id: of its machine, as Ray names it.
    pid: of its process.
    device: what it computes with.
    found: see `Station`'s `facts_fn`.
    channels: how many it has made.
  """

  node_id: str
  pid: int
  device: str
  found: Any
  channels: int


class Layouts(NamedTuple):
  """How what is sent lies in buffers."""

  sent: wire.Layout
  submission: wire.Layout


def layouts_of(job: job_lib.Job) -> Layouts:
  """The layouts of a job; the same in every process."""
  number = job_lib.program_of(job).num_batches
  submission, _ = exact.answer_shape(job, number)
  sent = kernel.Snapshot(job.params, job.model_state)
  return Layouts(
    wire.Layout(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, sent))),
    wire.Layout(submission),
  )


class Station:
  """A worker's process. To be made an actor by `ray.remote`."""

  def __init__(
    self,
    worker_id: int,
    make_fn: Callable[[], Any],
    devices_per_worker: int = 1,
    delay_fn: Callable[[int, float], float] | None = None,
    facts_fn: Callable[[], Any] | None = None,
    shards: int = 1,
  ):
    """Builds the job here and compiles it.

    Args:
      worker_id: who it is.
      make_fn: `make_fn() -> (job, policy)`.
      devices_per_worker: how many of this process's devices it shares its
        batches over.
      delay_fn: see `threads.Threads`.
      facts_fn: `facts_fn() -> anything` that the server is to know of here.
      shards: of the server.
    """
    job, _ = make_fn()
    (where, *_) = placement.shared_out(jax.local_devices(), devices_per_worker)
    self._placement = where
    self._layouts = layouts_of(job)
    self._split = sharding.split(job.params, shards) if shards > 1 else None
    delay = delay_fn and (lambda seconds: delay_fn(worker_id, seconds))
    machine = worker.machine_of(job, where)
    self._hands = worker.Hands(machine, delay)
    self._exchanges = machine.exchanges
    self._states = {}  # ticket_id -> program state that its answer left
    self._connected = False
    self._orders = self._answers = None  # channels
    self._channels_made = 0
    self._waited = time.perf_counter()
    self._facts_fn = facts_fn
    number = job_lib.program_of(job).num_batches
    ticket = ledger.Ticket(-1, worker_id, 0, 0, number, 0)
    # Once through everything, so that it is compiled.
    sent = kernel.Snapshot(job.params, job.model_state)
    sent = where.replicated(jax.tree.map(jnp.asarray, sent))
    sent = self._layouts.sent.unpack(
      self._layouts.sent.pack(sent), where.sharding()
    )
    state = job_lib.program_of(job).init(job.params)
    order = worker.Order(ticket, sent, state, None)
    submission, _ = machine.dispatch(order, machine.load(0, number))
    self._layouts.submission.pack(submission)

  def facts(self) -> Facts:
    """Who this is."""
    where = ray.get_runtime_context().get_node_id()
    device = self._placement.devices[0].device_kind
    found = self._facts_fn() if self._facts_fn else None
    return Facts(where, os.getpid(), device, found, self._channels_made)

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
      self._answers = channel_to(server, node_id, nbytes)
      self._channels_made += 1
    return self._answers

  def compute(self, note: Note, *sent) -> Reply:
    """Computes an order; `sent` are its buffers where no channel is used.

    Raises:
      Forgotten: this process was started again since the server met it.
    """
    ticket, state = note.ticket, note.worker_state
    known = not isinstance(state, Kept) or state.ticket_id in self._states
    if not (self._connected and known):
      raise Forgotten(f'worker {ticket.worker_id} was started again')
    begun = time.perf_counter()
    wait = begun - self._waited
    snapshot = self._unpacked(sent)
    if isinstance(state, Kept):
      state = self._states[state.ticket_id]
    order = worker.Order(ticket, snapshot, state, note.reserved)
    answer = self._hands.compute(order, wait)
    self._keep(note, answer)
    buffers, pieces, is_finite = self._packed(answer.submission)
    if not sent:
      self._answers.write(buffers, READ_SECONDS)
      buffers = ()
    self._waited = time.perf_counter()
    seconds = answer.seconds._replace(
      transfer=self._waited - begun - answer.seconds.compute
    )
    state = wire.to_host(answer.worker_state) if self._exchanges else None
    reply = Reply(state, is_finite, seconds, buffers)
    return (reply, *pieces) if pieces else reply

  def _unpacked(self, sent) -> kernel.Snapshot:
    """What was sent, on the devices."""
    if self._split is not None:
      params = self._split.join([piece.params for piece in sent])
      whole = kernel.Snapshot(params, sent[0].model_state)
      return self._placement.replicated(whole)
    if sent:
      (buffers,) = sent
    else:  # copied, so that the channel is free for the next order
      buffers = self._layouts.sent.copied(self._orders.read(READ_SECONDS))
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

  def _keep(self, note: Note, answer: worker.Answer):
    """Keeps what may be asked for: the last accepted state, and this one."""
    if self._exchanges or not jax.tree.leaves(answer.worker_state):
      return
    kept = {note.ticket.ticket_id: answer.worker_state}
    if isinstance(note.worker_state, Kept):
      accepted = note.worker_state.ticket_id
      kept[accepted] = self._states[accepted]
    self._states = kept


def channel_to(reader, node_id: str, nbytes: int):
  """A shared-memory channel from this actor to another on the same host."""
  return shared_memory_channel.Channel(
    channel_utils.get_self_actor(), [(reader, node_id)], nbytes + _SLACK
  )


class _Packed:
  """A version's buffers, and where they are in the object store."""

  def __init__(self, buffers):
    self.buffers = buffers
    self.lock = threading.Lock()
    self.ref = None

  def stored(self):
    """The object; put there once."""
    with self.lock:
      if self.ref is None:
        self.ref = ray.put(self.buffers)
      return self.ref


class Shelf:
  """What is sent, packed once for each version as long as somebody needs it."""

  def __init__(self, layouts: Layouts):
    self._layout = layouts.sent
    self._lock = threading.Lock()
    self._packed = weakref.WeakValueDictionary()  # version -> _Packed

  def take(self, version: int, sent: kernel.Snapshot) -> _Packed:
    """A version's buffers; the caller holds on to them while it needs them."""
    with self._lock:
      packed = self._packed.get(version)
      if packed is None:
        packed = _Packed(self._layout.pack(sent))
        self._packed[version] = packed
      return packed

  def forget(self, version: int):
    """A version's object was lost."""
    with self._lock:
      self._packed.pop(version, None)


class _Sent:
  """An order on its way."""

  def __init__(self, order: worker.Order, packed, reply, *pieces):
    self.order = order
    self.packed = packed  # kept as long as the order is out
    self.reply = reply  # ray.ObjectRef of a Reply
    self.pieces = pieces  # those of the gradient's pieces


class RemoteHand:
  """What the server sees of a `Station`: it sends and waits in a thread."""

  def __init__(
    self,
    worker_id: int,
    actor,
    layouts: Layouts,
    shelf: Shelf,
    device,
    depth: int,
    channels: bool,
    deliver: Callable[[Any], None],
    check_fn: Callable[[int, Facts], None] | None = None,
  ):
    """Starts to wait for the worker.

    Args:
      worker_id: who it is.
      actor: handle of its `Station`.
      layouts: of the job.
      shelf: shared by all hands.
      device: where submissions go.
      depth: orders that are sent ahead.
      channels: whether to use them where the worker is on the same host.
      deliver: takes `worker.Here`, `worker.Answer` and `worker.Died`.
      check_fn: `check_fn(worker_id, facts)` raises where the worker cannot be
        let in.
    """
    self.worker_id = worker_id
    self.hopes = True
    self.actor = actor
    self._layouts = layouts
    self._shelf = shelf
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
      target=self._run, name=f'hand-{worker_id}', daemon=True
    )
    self._thread.start()

  def give(self, order: worker.Order):
    """Sends an order."""
    self._mailbox.put(order)

  def dismiss(self):
    """Ends the thread after the order in hand; the actor lives on."""
    self._dismissed, self.hopes = True, False
    self._mailbox.put(None)

  def _run(self):
    while not self._dismissed:
      met = False
      try:
        self._meet()
        met = True
        self._deliver(worker.Here(self.worker_id))
        self._serve()
      except exceptions.RayError as error:
        self._lost(error, gone=not _comes_back(error, met))
      except Exception:
        self._lost(traceback.format_exc(), gone=True)

  def _lost(self, error, gone: bool):
    if gone:
      self.hopes, self._dismissed = False, True
    while not self._mailbox.empty():  # their tickets are taken back
      self._mailbox.get()
    self._deliver(worker.Died(self.worker_id, str(error), gone))
    if not gone:
      time.sleep(RETRY_SECONDS)

  def _meet(self):
    """Waits until the worker is there, and says how to talk."""
    facts = ray.get(self.actor.facts.remote())
    if self._check_fn is not None:
      self._check_fn(self.worker_id, facts)
    here = ray.get_runtime_context().get_node_id()
    self._orders = None
    made = max(self._channels_made, facts.channels)
    if facts.node_id == here and self._channels and made < MOST_CHANNELS:
      nbytes = self._layouts.sent.nbytes
      self._orders = channel_to(self.actor, here, nbytes)
      self._channels_made += 1
    me = channel_utils.get_self_actor()
    self._answers = ray.get(self.actor.connect.remote(self._orders, me, here))

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
        self._shelf.forget(sent[0].order.ticket.version)
        raise
      sent.popleft()

  def _send(self, order: worker.Order) -> _Sent:
    state = order.worker_state
    if not isinstance(state, Kept):
      state = wire.to_host(state)
    note = Note(order.ticket, state, order.reserved)
    if isinstance(order.sent, exact.Pieces):
      handles = order.sent.handles
      compute = self.actor.compute.options(num_returns=1 + len(handles))
      return _Sent(order, None, *compute.remote(note, *handles))
    packed = self._shelf.take(order.ticket.version, order.sent)
    if self._orders is None:
      return _Sent(
        order, packed, self.actor.compute.remote(note, packed.stored())
      )
    self._orders.write(packed.buffers, READ_SECONDS)
    return _Sent(order, packed, self.actor.compute.remote(note))

  def _submission(self, reply: Reply, pieces):
    if pieces:
      return programs.Submission(exact.Pieces(pieces), *reply.buffers)
    layout, buffers = self._layouts.submission, reply.buffers
    if not buffers:  # copied, so that the channel is free for the next answer
      buffers = layout.copied(self._answers.read(READ_SECONDS))
    return layout.unpack(buffers, self._sharding)

  def _receive(self, sent: _Sent) -> worker.Answer:
    reply, ticket = ray.get(sent.reply), sent.order.ticket
    submission = self._submission(reply, sent.pieces)
    state = sent.order.worker_state
    if reply.worker_state is not None:
      state = jax.device_put(reply.worker_state, self._device)
    elif jax.tree.leaves(state):
      state = Kept(ticket.ticket_id)
    return worker.Answer(ticket, submission, state, reply.finite, reply.seconds)


class Shard(sharded.Shard):
  """A server shard in a process of its own."""

  def hold(self, version: int):
    return wire.to_host(super().hold(version))

  def read(self, version: int):
    return wire.to_host(super().read(version))


class ShardCalls:
  """A `Shard` elsewhere: its methods return handles."""

  def __init__(self, *args):
    actor = ray.remote(Shard).options(num_cpus=0, scheduling_strategy='SPREAD')
    self._actor = actor.remote(*args)

  def __getattr__(self, method: str):
    return getattr(self._actor, method).remote


def _comes_back(error: exceptions.RayError, met: bool) -> bool:
  """Whether the worker, or another in its place, can be reached again.

  Args:
    error: what came instead of an answer.
    met: whether the worker was reached before it.
  """
  if isinstance(error, exceptions.RayTaskError):  # raised in its process
    return isinstance(error.cause, exceptions.RayError | Forgotten)
  # Ray starts it again; one that cannot be reached at all has no process more.
  return met or not isinstance(error, exceptions.ActorDiedError)
