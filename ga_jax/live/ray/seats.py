"""Where the server, or each of its shards, computes: Ray keeps it for them.

What is kept is there for a server that is started again, too; workers that wait
for room do not get it.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ga_jax.live import server
from ga_jax.live.ray import share as share_lib
from ga_jax.live.ray import waiting

ACCELERATORS = ('auto', *share_lib.ACCELERATORS)
_POLL_SECONDS = 1.0
_TELL_SECONDS = 5.0
_SLACK = 1e-6  # of sums of parts


class Seats(NamedTuple):
  """What Ray keeps for the server, or one for each of its shards.

  Attributes:
    share: what is kept for each.
    group: Ray's placement group; None on the CPU, for which nothing is kept.
  """

  share: share_lib.Share = share_lib.CPU
  group: Any = None

  def options(self, strategy: Any, env: dict[str, str]) -> dict[str, Any]:
    """Ray's options for an actor in such a seat.

    Args:
      strategy: where it goes if nothing is kept.
      env: environment variables beside those of the seat.
    """
    needs = _needs(self.share)
    if self.group is not None:
      strategy = PlacementGroupSchedulingStrategy(self.group)
    return {
      'num_cpus': 0,
      'num_gpus': needs.pop('GPU', 0),
      'resources': needs,
      'scheduling_strategy': strategy,
      'runtime_env': {'env_vars': env | self.share.environment()},
    }


CPU = Seats()  # nothing is kept


def share_of(
  accelerator: str, workers: share_lib.Share, num_workers: int, shards: int
) -> share_lib.Share:
  """What the server computes with, or each of its shards.

  Where workers share a device of the same kind, it is one of those who do.

  Args:
    accelerator: one of `ACCELERATORS`; 'auto' for one that the cluster that Ray
      is connected to has beside those that the workers ask for, else the CPU.
    workers: what every worker computes with.
    num_workers: how many there are.
    shards: of the server.

  Raises:
    ValueError: it is none of them.
  """
  if accelerator not in ACCELERATORS:
    raise ValueError(
      f'server_accelerator must be one of {ACCELERATORS}, got {accelerator!r}'
    )
  for name in ('tpu', 'gpu') if accelerator == 'auto' else ():
    share = _share(name, workers)
    if _leaves_room(share, shards, workers, num_workers):
      return share
  return _share('cpu' if accelerator == 'auto' else accelerator, workers)


@contextlib.contextmanager
def kept(
  share: share_lib.Share,
  shards: int,
  seconds: float,
  tell: Callable[[str], None],
) -> Iterator[Seats]:
  """Has Ray keep a seat for the server, or one for each shard, meanwhile.

  Args:
    share: what is kept for each.
    shards: of the server; one alone stays on the driver's machine.
    seconds: to wait for it.
    tell: `tell(line)`, what is to be known.

  Yields:
    The `Seats`.

  Raises:
    ServerMissingError: there is no room.
  """
  if share.accelerator == 'cpu':
    yield CPU
    return
  here = {'ray.io/node-id': ray.get_runtime_context().get_node_id()}
  group = placement_group(
    [_needs(share)] * shards,
    strategy='SPREAD',
    bundle_label_selector=[here] if shards == 1 else None,
  )
  try:
    _wait(group, share, shards, seconds, tell)
    yield Seats(share, group)
  finally:
    with contextlib.suppress(ray.exceptions.RayError):  # the cluster is lost
      remove_placement_group(group)


def tell_unused():
  """Says so where Ray gave this process a device that JAX does not use."""
  given = ray.get_runtime_context().get_accelerator_ids()
  if any(given.values()) and jax.default_backend() == 'cpu':
    names = ' and '.join(name for name, ids in given.items() if ids)
    print(
      f'note: Ray gave the server a {names}, and JAX computes on the CPU '
      'there: is it installed for it?',
      file=sys.stderr,
    )


def _share(accelerator: str, workers: share_lib.Share) -> share_lib.Share:
  together = accelerator == workers.accelerator
  return share_lib.Share(
    accelerator, 1, workers.workers_per_device if together else 1
  )


def _needs(share: share_lib.Share) -> dict[str, float]:
  """What Ray keeps; not a CPU, for a server waits most of its time."""
  needs = share.resources()
  del needs['CPU']
  return needs


def _leaves_room(
  share: share_lib.Share, shards: int, workers: share_lib.Share, num_workers
) -> bool:
  """Whether all workers have room beside the server."""
  ((name, number),) = _needs(share).items()
  each = workers.resources().get(name, 0.0)
  has = {node: found.get(name, 0.0) for node, found in _nodes().items()}
  if shards > 1:  # Ray chooses where
    return sum(has.values()) >= shards * number + num_workers * each - _SLACK
  here = ray.get_runtime_context().get_node_id()
  has[here] -= number
  if has[here] < 0:
    return False
  return not each or num_workers <= sum(
    int(left / each + _SLACK) for left in has.values()
  )


def _nodes() -> dict[str, dict[str, float]]:
  """What every node has, by its id."""
  alive = [node for node in ray.nodes() if node['Alive']]
  return {node['NodeID']: node['Resources'] for node in alive}


def _here() -> dict[str, float]:
  """What the driver's machine has."""
  return _nodes()[ray.get_runtime_context().get_node_id()]


def _wait(group, share, shards, seconds, tell):
  """Waits for the seats; tells it after a few seconds."""
  needs = _needs(share)
  has_none = shards == 1 and any(
    _here().get(name, 0.0) < number for name, number in needs.items()
  )
  end, told = time.monotonic() + seconds, False
  tell_at = time.monotonic() + _TELL_SECONDS
  while has_none or not group.wait(_POLL_SECONDS):
    if has_none or time.monotonic() > end:
      where = '' if has_none else f' in {seconds:g} s'
      raise server.ServerMissingError(
        f'no room for the server{where}: {_asked(needs, shards)}'
      )
    if not told and time.monotonic() > tell_at:
      told = True
      tell(
        f'note: the server finds no room: {_asked(needs, shards)}; others may '
        f'have it; the run begins with it, or ends after {seconds:g} s'
      )


def _asked(needs, shards) -> str:
  asked, there = waiting.listed(needs), waiting.all_have(needs)
  if shards > 1:
    return (
      f'each of its {shards} shards asks for {asked}, and the cluster has '
      f'{there}'
    )
  here = waiting.listed({name: _here().get(name, 0.0) for name in needs})
  return (
    f"it asks for {asked} of the driver's machine, which has {here}; the "
    f'cluster has {there}'
  )
