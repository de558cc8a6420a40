"""Stale synchronous parallel (SSP): a bounded lead over the slowest worker.

Every gradient is applied at once. A worker that completed c steps starts its
next one only where c − min ≤ s, min taken over the live workers; otherwise it
waits until the slowest has caught up.

Our reading: workers read the server's parameters at every step, never older
ones of a cache. A worker that joins begins at the minimum of that moment.

References:
  Ho et al., `More Effective Distributed ML via a Stale Synchronous Parallel
  Parameter Server <https://papers.nips.cc/paper/4894>`_, NIPS 2013.
"""

from typing import NamedTuple

from ga_jax.guards import checks
from ga_jax.policies.parts import base


class SSPState(NamedTuple):
  """How far the live workers are; nothing of it is changed in place."""

  # Steps by worker, in groups: {worker // _GROUP: {worker: steps}}. A change
  # copies two small dicts, not a large one.
  completed: dict[int, dict[int, int]]
  waiting: tuple[int, ...]  # all of them lead by s + 1
  slowest: int  # the least number of steps
  num_slowest: int  # workers that completed no more than that


_GROUP = 32
_NOBODY = {}


def _set(state: SSPState, worker_id: int, steps: int | None) -> SSPState:
  """Sets a worker's steps; None takes it out."""
  completed, waiting, slowest, number = state
  group = completed.get(worker_id // _GROUP, _NOBODY).copy()
  before = group.pop(worker_id, None)
  if steps is not None:
    group[worker_id] = steps
  completed = {**completed, worker_id // _GROUP: group}
  number += (steps == slowest) - (before == slowest)
  if not number:
    everyone = [n for group in completed.values() for n in group.values()]
    slowest = min(everyone, default=slowest)
    number = everyone.count(slowest)
  return SSPState(completed, waiting, slowest, number)


def ssp(max_staleness: int = 3) -> base.Policy:
  """Applies each gradient as it arrives; fast workers wait for the slowest.

  Args:
    max_staleness: s, steps that a worker may lead by when it starts one, at
      least 0; 0 is lockstep.

  Returns:
    A `Policy` whose rounds hold one gradient.

  Raises:
    ValueError: `max_staleness` is out of its range.
  """
  max_staleness = checks.integer('max_staleness', max_staleness, 0)

  def released(state, before):
    """Who waited for the slowest worker, where it has moved on."""
    if state.slowest == before:
      return state, ()
    return state._replace(waiting=()), state.waiting

  def arrive(state, worker_id):
    before = state.slowest
    group = state.completed.get(worker_id // _GROUP, _NOBODY)
    steps = group.get(worker_id, before) + 1
    state, start = released(_set(state, worker_id, steps), before)
    if steps - state.slowest <= max_staleness:
      start = (*start, worker_id)
    else:
      state = state._replace(waiting=(*state.waiting, worker_id))
    return state, base.Decision(base.Action.APPLY, 1.0, start)

  def lose(state, worker_id, start):
    waiting = tuple(w for w in state.waiting if w != worker_id)
    before = state.slowest
    state = _set(state._replace(waiting=waiting), worker_id, None)
    state, others = released(state, before)
    return state, base.Decision(start=others + start)

  def decide(state, event):
    worker_id = event.worker_id
    if event.kind == base.Kind.ARRIVE:
      return arrive(state, worker_id)
    if event.kind == base.Kind.JOIN:
      state = _set(state, worker_id, state.slowest)
      return state, base.Decision(start=(worker_id,))
    return lose(
      state, worker_id, (worker_id,) if event.kind == base.Kind.EXPIRE else ()
    )

  return base.Policy(lambda: SSPState({}, (), 0, 0), decide)
