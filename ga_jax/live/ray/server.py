"""The server of a run on Ray: an actor that makes the live run.

It lives on the driver's machine, computes with what Ray gave it there, and is
started again when it dies: it then goes on from its last checkpoint and the
record that it wrote ahead.
"""

import dataclasses
import functools
import os
import time
import warnings
from concurrent import futures
from typing import Any

import jax
import ray

from ga_jax.guards import locks
from ga_jax.live import server as server_lib
from ga_jax.live.ray import messages, pool, seats, wire
from ga_jax.live.ray import setup as setup_lib
from ga_jax.live.ray import shards as shards_lib
from ga_jax.live.result import LiveResult
from ga_jax.server import shards as server_shards

# Ray ends the server of a driver that was killed a moment later: until then it
# has record and checkpoints, which the next driver's server waits for.
_ORPHAN_SECONDS, _ORPHAN_PAUSE = 30.0, 0.2


class RayServer:
  """The server's process. To be made an actor by `ray.remote`."""

  def __init__(
    self,
    setup: setup_lib.Setup,
    names: dict[int, str],
    shard_options: dict[str, Any] | None = None,
  ):
    """Begins.

    Args:
      setup: the run.
      names: of `worker.RayWorker`s by worker_id.
      shard_options: Ray's options for its shards, where it has any.
    """
    self._setup = setup
    self._names = names
    self._shard_options = shard_options
    self._live_run = None
    self._stop_wanted = False
    self._news = []
    # At once: an actor that was started again is told only seconds later to.
    self._result = futures.ThreadPoolExecutor(1).submit(self._run)

  def run(self) -> LiveResult:
    """Waits for the end; the result's arrays are NumPy's."""
    return self._result.result()

  def _run(self) -> LiveResult:
    self._live_run = self._built()
    if self._stop_wanted:
      self._live_run.stop()
    observe = None
    if self._setup.observe_fn is not None:
      observe = self._setup.observe_fn(self._news.append, self._live_run)
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while True:
      try:
        result = self._live_run.run(observe, self._setup.block)
        break
      except ray.exceptions.RayActorError:  # a shard is lost
        os._exit(1)  # Ray starts the server again, with other shards
      except locks.OccupiedError:
        if time.monotonic() > deadline:
          raise
        time.sleep(_ORPHAN_PAUSE)
    return dataclasses.replace(result, state=wire.to_host(result.state))

  def _built(self) -> server_lib.LiveRun:
    setup = self._setup
    actors = {w: ray.get_actor(name) for w, name in self._names.items()}
    job = setup.make_fn()
    device = jax.local_devices()[0]
    seats.tell_unused()
    recover = setup.live.recover or _started_again()
    return server_lib.LiveRun(
      job,
      pool.RayPool(actors, messages.layouts_of(job), device, setup),
      num_workers=setup.num_workers,
      num_batches=setup.num_batches,
      live=dataclasses.replace(setup.live, recover=recover),
      device=device,
      shards=setup.shards,
      remote=server_shards.Remote(
        functools.partial(shards_lib.RayShardCalls, self._shard_options),
        ray.get,
      ),
    )

  def news(self, pid: int, start: int) -> tuple[int, list[Any]]:
    """What was observed.

    Args:
      pid: of the server's process when it was asked last.
      start: items that are known from it.

    Returns:
      (its pid now, the items that are not known).
    """
    return os.getpid(), self._news[start if pid == os.getpid() else 0 :]

  def version(self) -> int:
    """Updates made."""
    return 0 if self._live_run is None else self._live_run.version

  def stop(self):
    """Ends the run after the update in hand."""
    self._stop_wanted = True
    if self._live_run is not None:
      self._live_run.stop()

  def pid(self) -> int:
    """Of the server's process."""
    return os.getpid()


def _started_again() -> bool:
  """Whether Ray started this actor again."""
  with warnings.catch_warnings():  # of a method that Ray itself calls
    warnings.simplefilter('ignore')
    return ray.get_runtime_context().was_current_actor_reconstructed
