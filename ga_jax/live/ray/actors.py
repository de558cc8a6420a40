"""The actors of a run on Ray: its server and its workers, and who starts them.

Every worker is an independent JAX process that owns its devices.
"""

import contextlib
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.util import scheduling_strategies

from ga_jax.live.ray import cluster, messages
from ga_jax.live.ray import seats as seats_lib
from ga_jax.live.ray import server as server_lib
from ga_jax.live.ray import setup as setup_lib
from ga_jax.live.ray import share as share_lib
from ga_jax.live.ray import worker as worker_lib


class Actors(NamedTuple):
  """The actors of a run.

  Attributes:
    server: handle of a `RayServer`.
    workers: handles of `worker.RayWorker`s, by worker_id.
  """

  server: Any
  workers: dict[int, Any]

  def end(self):
    """Ends every process of the run."""
    with contextlib.suppress(ray.exceptions.RayError):  # the cluster is lost
      for actor in (self.server, *self.workers.values()):
        ray.kill(actor)


def start(
  setup: setup_lib.Setup,
  share: share_lib.Share = share_lib.CPU,
  seats: seats_lib.Seats = seats_lib.CPU,
  *,
  delay_fn: Callable[[int, float], float] | None = None,
  facts_fn: Callable[[], Any] | None = None,
  env: dict[str, str] | None = None,
) -> Actors:
  """Creates the actors of a run on the cluster that Ray is connected to.

  A worker for which the cluster has no room comes in when a node joins.

  Args:
    setup: the run.
    share: what every worker computes with.
    seats: where the server computes, or each of its shards.
    delay_fn: see `threads.Threads`.
    facts_fn: see `worker.RayWorker`.
    env: environment variables of every process beside those that are taken from
      this one; they win, also over the memory allocator's settings.

  Returns:
    The `Actors`.

  Raises:
    ValueError: an argument is out of its range.
  """
  share = share.checked()
  shared = cluster.environment(share.devices_per_worker, env)
  run = uuid.uuid4().hex[:8]
  names = {w: f'ga_jax-{run}-worker-{w}' for w in range(setup.num_workers)}
  worker = _worker(share, shared)
  workers = {
    worker_id: worker.options(name=name).remote(
      worker_id,
      setup.make_fn,
      share.devices_per_worker,
      delay_fn,
      facts_fn,
      setup.shards,
    )
    for worker_id, name in names.items()
  }
  return Actors(_server(setup, names, seats, shared), workers)


def _worker(share: share_lib.Share, shared: dict[str, str]):
  """What workers are made of."""
  needs = share.resources()
  return ray.remote(
    concurrency_groups={messages.STATES: 1},
    max_restarts=-1,
    runtime_env={'env_vars': shared | share.environment()},
    num_cpus=needs.pop('CPU'),
    num_gpus=needs.pop('GPU', 0),
    resources=needs,
  )(worker_lib.RayWorker)


def _server(setup, names, seats: seats_lib.Seats, shared: dict[str, str]):
  """Starts the server, on the driver's machine; its shards are anywhere."""
  here = scheduling_strategies.NodeAffinitySchedulingStrategy(
    ray.get_runtime_context().get_node_id(), soft=False
  )
  of_server, of_shards = seats, None
  if setup.shards > 1:
    of_server = seats_lib.CPU
    # They inherit the server's environment, of which nothing can be taken away.
    of_shards = seats.options('SPREAD', shared | {'JAX_PLATFORMS': ''})
  made = ray.remote(
    max_restarts=-1,
    max_task_retries=-1,
    max_concurrency=4,
    **of_server.options(here, shared),
  )(server_lib.RayServer)
  return made.remote(setup, names, of_shards)
