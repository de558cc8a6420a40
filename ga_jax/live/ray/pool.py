"""Where the workers of a run on Ray come from, as the server sees it."""

from collections.abc import Callable
from typing import Any

import ray

from ga_jax.live.ray import handle, messages
from ga_jax.live.ray import setup as setup_lib
from ga_jax.workers import worker


class RayPool:
  """Workers that are actors; see `roster.WorkerPool`."""

  def __init__(
    self, actors, layouts: messages.Layouts, device, setup: setup_lib.Setup
  ):
    self._actors = actors
    self._layouts = layouts
    self._snapshots = handle.PackedSnapshots(layouts)
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
    one = self._handles[worker_id] = handle.RayWorkerHandle(
      worker_id,
      self._actors[worker_id],
      self._layouts,
      self._snapshots,
      self._device,
      self._setup.live.pipeline_depth,
      self._setup.live.pipeline_depth == 0 and self._setup.shards == 1,
      deliver,
      self._setup.check_fn,
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
