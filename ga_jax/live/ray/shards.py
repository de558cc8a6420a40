"""Server shards that are processes of their own."""

from typing import Any

import jax
import ray

from ga_jax.live.ray import seats, wire
from ga_jax.server import shard


class RayShard(shard.Shard):
  """A server shard in a process of its own, on its device."""

  def __init__(self, *args):
    super().__init__(*args)
    seats.tell_unused()

  def offer(self, ticket, grads, model_state, weight, staleness):
    # Once: whatever is computed with them finds them there.
    grads, model_state = jax.device_put((grads, model_state))
    super().offer(ticket, grads, model_state, weight, staleness)

  def hold(self, version: int):
    return wire.to_host(super().hold(version))

  def read(self, version: int):
    return wire.to_host(super().read(version))


class RayShardCalls:
  """A `RayShard` elsewhere: its methods return handles."""

  def __init__(self, options: dict[str, Any], *args):
    """Starts it with Ray's options; the others as of `shard.Shard`."""
    self._actor = ray.remote(RayShard).options(**options).remote(*args)

  def __getattr__(self, method: str):
    return getattr(self._actor, method).remote
