"""The driver of a run on Ray: it starts the actors, waits for the result."""

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import ray
from ray import exceptions

from ga_jax.live import result, server
from ga_jax.live.ray import actors as actors_lib
from ga_jax.live.ray import seats as seats_lib
from ga_jax.live.ray import setup as setup_lib
from ga_jax.live.ray import share as share_lib
from ga_jax.live.ray import waiting

WAIT_SECONDS = 120.0  # for the first worker
_POLL_SECONDS = 0.2


def drive(
  setup: setup_lib.Setup,
  share: share_lib.Share,
  each_fn: Callable[[Any], None],
  wait_for_workers: float = WAIT_SECONDS,
  server_share: share_lib.Share = share_lib.CPU,
  **options,
) -> result.LiveResult:
  """Makes a run on the cluster that Ray is connected to.

  Args:
    setup: the run.
    share: what every worker computes with.
    each_fn: `each_fn(server)`, called again and again, and at the end; `server`
      is the handle of a `RayServer`.
    wait_for_workers: seconds until the server's device is free, and again
      until the first worker has a process.
    server_share: what the server computes with, or each of its shards.
    **options: see `actors.start`.

  Returns:
    The result.

  Raises:
    ClusterLostError: Ray itself ended, or the machine's part of it.
    ServerMissingError: no room for the server.
    WorkersMissingError: nobody came.
  """
  with contextlib.ExitStack() as stack:
    if setup.live.trace_path is None:  # a server that dies goes on from it
      folder = tempfile.TemporaryDirectory(prefix='ga_jax-')
      path = f'{stack.enter_context(folder)}/trace.rows'
      live = dataclasses.replace(setup.live, trace_path=path)
      setup = setup._replace(live=live)
    try:
      kept = seats_lib.kept(server_share, setup.shards, wait_for_workers, _note)
      seats = stack.enter_context(kept)
      actors = actors_lib.start(setup, share, seats, **options)
      stack.callback(actors.end)
      awaited = waiting.Waiting(
        actors.workers, share.resources(), wait_for_workers, _note
      )
      return _result(actors.server, each_fn, awaited)
    except exceptions.RayTaskError:  # of the run
      raise
    except exceptions.RayError as error:
      first = str(error).strip().partition('\n')[0].rstrip('.')
      raise server.ClusterLostError(
        f"the Ray cluster, or this machine's part of it, was lost: {first}"
      ) from error


def _result(actor, each_fn, awaited: waiting.Waiting) -> result.LiveResult:
  found, begun = actor.run.remote(), actor.pid.remote()
  while True:
    ended, _ = ray.wait([found], timeout=_POLL_SECONDS)
    if ray.wait([begun], timeout=0.0)[0]:  # it answers: its process is there
      each_fn(actor)
    if ended:
      return ray.get(found)
    awaited.look()


def _note(line: str):
  print(line, file=sys.stderr)
