"""Workers that have not come: who they are, what they ask for, how long.

A worker has come when the cluster has given it a process; what it compiles
there may take longer.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import ray

from ga_jax.live import server

_EVERY = 1.0  # seconds between two looks at the cluster
_TELL_SECONDS = 5.0  # that nothing has changed
# Where there is room for all, processes take a while to start; or others, who
# are not seen here, have the room.
_SLOW_SECONDS = 30.0


class Waiting:
  """Tells who has not come, and gives up where nobody does."""

  def __init__(
    self,
    workers: dict[int, Any],
    resources: dict[str, float],
    seconds: float,
    tell: Callable[[str], None],
    clock_fn: Callable[[], float] = time.monotonic,
  ):
    """Begins to wait.

    Args:
      workers: handles of actors, by worker_id.
      resources: what each asks for.
      seconds: to wait for the first one.
      tell: `tell(line)`, what is to be known.
      clock_fn: seconds.
    """
    self._names = {one._actor_id.hex(): w for w, one in workers.items()}
    self._resources = resources
    self._seconds = seconds
    self._tell = tell
    self._clock_fn = clock_fn
    self._began = self._changed = clock_fn()
    self._looked = -_EVERY
    self._missing = self._told = frozenset()
    self._anybody = False
    self._pids = {}  # worker_id -> its process before it was started again

  def look(self):
    """Looks at the cluster, unless it just has.

    Raises:
      WorkersMissingError: nobody came in time.
    """
    now = self._clock_fn()
    if now < self._looked + _EVERY:
      return
    self._looked = now
    missing = self._found()
    self._anybody |= len(missing) < len(self._names)
    if missing != self._missing:
      self._missing, self._changed = missing, now
    if not self._anybody and now > self._began + self._seconds:
      raise server.WorkersMissingError(
        f'no worker came in {self._seconds:g} s: {self._asked()}'
      )
    if missing and missing != self._told and self._is_settled(now):
      self._told = missing
      self._tell(self._said())

  def _found(self) -> frozenset[int]:
    """The workers that no node has given a process."""
    states = ray._private.state.actors()
    return frozenset(
      worker_id
      for name, worker_id in self._names.items()
      if name in states and not self._has_process(worker_id, states[name])
    )

  def _has_process(self, worker_id: int, actor: dict[str, Any]) -> bool:
    """Whether a worker is somewhere, or will never be."""
    state, pid = actor['State'], actor['Pid']
    if state == 'RESTARTING':  # Ray names the lost process until it has another
      return pid not in (0, self._pids.get(worker_id, 0))
    self._pids[worker_id] = pid
    return bool(pid) or state == 'DEAD'

  def _is_settled(self, now: float) -> bool:
    """Whether nobody else is to be expected in a moment."""
    here = len(self._names) - len(self._missing)
    all_in = here >= min(len(self._names), _room(self._resources))
    seconds = _TELL_SECONDS if all_in else _SLOW_SECONDS
    return now >= self._changed + seconds

  def _said(self) -> str:
    several = len(self._missing) > 1
    who = ', '.join(map(str, sorted(self._missing)))
    line = (
      f'note: worker{"s" if several else ""} {who} of {len(self._names)} '
      f'{"find" if several else "finds"} no room: {self._asked()}; '
      f'{"they come" if several else "it comes"} in when a node joins'
    )
    if self._anybody:
      return line
    return f'{line}; where nobody does, the run ends after {self._seconds:g} s'

  def _asked(self) -> str:
    return (
      f'each asks for {listed(self._resources)}, and the cluster has '
      f'{all_have(self._resources)}'
    )


def _room(resources: dict[str, float]) -> int:
  """How many workers all nodes together have room for, were they empty."""
  return sum(
    min(
      int(node['Resources'].get(name, 0.0) / number + 1e-6)
      for name, number in resources.items()
    )
    for node in ray.nodes()
    if node['Alive']
  )


def all_have(names: Iterable[str]) -> str:
  """What all nodes together have of some resources, in words."""
  there = dict.fromkeys(names, 0.0) | ray.cluster_resources()
  nodes = sum(node['Alive'] for node in ray.nodes())
  has = listed({name: there[name] for name in names})
  return f'{has} on {nodes} node{"s" if nodes > 1 else ""}'


def listed(resources: dict[str, float]) -> str:
  """Resources by Ray's names, in words."""
  return ' and '.join(f'{n:g} {name}' for name, n in resources.items())
