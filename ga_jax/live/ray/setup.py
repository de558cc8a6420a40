"""A run on Ray, as it is sent to the processes that make it."""

from collections.abc import Callable
from typing import NamedTuple

from ga_jax.job import job as job_lib
from ga_jax.live import options
from ga_jax.live.ray import messages


class Setup(NamedTuple):
  """A run as it is sent to the processes that make it.

  Attributes:
    make_fn: `make_fn() -> Job`, called in every process.
    num_workers: how many workers are asked for.
    num_batches: batches to apply.
    live: how it is made.
    observe_fn: `observe_fn(tell, live_run) -> observe`, called in the server's
      process; what it has `tell(item)` is the server's `news`, `live_run` is
      its `LiveRun`. For observe see `LiveRun.run`.
    block: see `LiveRun.run`.
    check_fn: see `handle.RayWorkerHandle`.
    shards: of the server, each in a process of its own; 1 keeps everything in
      the server's.
  """

  make_fn: Callable[[], job_lib.Job]
  num_workers: int
  num_batches: int
  live: options.Live = options.Live()
  observe_fn: Callable[..., Callable[..., bool]] | None = None
  block: int | None = None
  check_fn: Callable[[int, messages.Facts], None] | None = None
  shards: int = 1
