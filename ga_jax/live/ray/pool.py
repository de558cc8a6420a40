"""Where the workers of a run on Ray come from, as the server sees it."""

from collections.abc import Callable
from typing import Any

import ray

from ga_jax.live.ray import handle, messages, snapshots
from ga_jax.live.ray import setup as setup_lib
from ga_jax.workers import worker


class RayPool:
  """Workers that are actors; see `roster.WorkerPool`."""

  def __init__(
    self,
    actors: dict[int, Any],
    layouts: messages.Layouts,
    device: Any,
    setup: setup_lib.Setup,
  ):
    """Meets nobody yet.

    Args:
      actors: handles of `worker.RayWorker`s, by worker_id.
      layouts: of the job.
      device: the server's.
      setup: the run.
    """
    self._actors = actors
    self._layouts = layouts
    self._snapshots = snapshots.PackedSnapshots(layouts)
    self._device = device
    self._setup = setup
    self._handles = {}

  @property
  def may_return(self) -> bool:
    """Whether workers may come although none is here."""
    return any(one.may_return for one in self._handles.values())

  def warm_up(self, order: worker.Order):
    """Workers compile on their own."""

  def hire(self, worker_id: int, deliver: Callable[[Any], None]):
    """Waits for an actor, as long as it takes until there is room for it."""
    if worker_id not in self._actors:
      raise ValueError(
        f'worker {worker_id} has no actor, only {sorted(self._actors)}'
      )
    depth = self._setup.live.pipeline_depth
    one = self._handles[worker_id] = handle.RayWorkerHandle(
      worker_id,
      self._actors[worker_id],
      self._layouts,
      self._snapshots,
      self._device,
      depth=depth,
      channels=depth == 0 and self._setup.shards == 1,
      deliver=deliver,
      check_fn=self._setup.check_fn,
    )
    return one

  def fetch(self, worker_id: int, worker_state):
    """Asks a worker for a state that it keeps; None where it is lost."""
    if not isinstance(worker_state, messages.Kept):
      return worker_state
    method = self._actors[worker_id].state
    asked = method.options(concurrency_group=messages.STATES)
    try:
      return ray.get(
        asked.remote(worker_state.ticket_id), timeout=messages.STATE_SECONDS
      )
    except ray.exceptions.RayError:
      return None

  def end(self):
    """Lets go of the workers; the driver ends them."""
    for one in self._handles.values():
      one.dismiss()
