"""Server shards that are processes of their own."""

import ray

from ga_jax.live.ray import wire
from ga_jax.server import shard


class RayShard(shard.Shard):
  """A server shard in a process of its own."""

  def hold(self, version: int):
    return wire.to_host(super().hold(version))

  def read(self, version: int):
    return wire.to_host(super().read(version))


class RayShardCalls:
  """A `RayShard` elsewhere: its methods return handles."""

  def __init__(self, *args):
    actor = ray.remote(RayShard).options(
      num_cpus=0, scheduling_strategy='SPREAD'
    )
    self._actor = actor.remote(*args)

  def __getattr__(self, method: str):
    return getattr(self._actor, method).remote
