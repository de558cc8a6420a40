"""What server and workers on Ray say to each other, and how."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ray.experimental.channel import shared_memory_channel
from ray.experimental.channel import utils as channel_utils

from ga_jax.job import compiled
from ga_jax.job import job as job_lib
from ga_jax.live.ray import wire
from ga_jax.server import ledger, update
from ga_jax.workers import worker

# What is announced by a call is in the channel already: waiting there would
# take a whole core, for Ray waits by asking again and again.
READ_SECONDS = 60.0


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
    found: see `RayWorker`'s `facts_fn`.
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
  number = job.worker_program.num_batches
  submission, _ = compiled.answer_shape(job, number)
  sent = update.Snapshot(job.params, job.model_state)
  return Layouts(
    wire.Layout(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, sent))),
    wire.Layout(submission),
  )


def channel_to(reader, node_id: str, nbytes: int):
  """A shared-memory channel from this actor to another on the same host."""
  return shared_memory_channel.Channel(
    channel_utils.get_self_actor(), [(reader, node_id)], nbytes + _SLACK
  )
