"""Synchronous SGD (SSGD): a barrier per update.

The server waits for one gradient of every live worker, all of the same version,
averages them, updates once and sends everybody on. Where a worker leaves or its
lease expires, the barrier stands among those that are left.

References:
  Chen et al., `Revisiting Distributed Synchronous SGD
  <https://arxiv.org/abs/1604.00981>`_, 2016.
"""

from typing import NamedTuple

from ga_jax.policies import base


class SynchronousState(NamedTuple):
  """Who is there and who waits at the barrier."""

  live: frozenset[int] = frozenset()
  waiting: tuple[int, ...] = ()  # in order of arrival
  open: int = 0  # gradients in the open round, also of workers that left


def synchronous() -> base.Policy:
  """Averages one gradient of every live worker per update.

  Returns:
    A `Policy` that accumulates.
  """

  def close(state):
    state = state._replace(waiting=(), open=0)
    return state

  def arrive(state, worker_id):
    waiting = state.waiting + (worker_id,)
    state = state._replace(waiting=waiting, open=state.open + 1)
    if len(waiting) < len(state.live):
      return state, base.Decision(base.Action.ACCUMULATE)
    return close(state), base.Decision(base.Action.APPLY, 1.0, waiting)

  def lose(state, worker_id):
    state = state._replace(
      live=state.live - {worker_id},
      waiting=tuple(w for w in state.waiting if w != worker_id),
    )
    if state.open and len(state.waiting) >= len(state.live):
      start = state.waiting
      return close(state), base.Decision(base.Action.APPLY, 1.0, start)
    return state, base.Decision()

  def decide(state, event):
    if event.kind == base.Kind.ARRIVE:
      if event.worker_id not in state.live:  # back after its lease expired
        state = state._replace(live=state.live | {event.worker_id})
      return arrive(state, event.worker_id)
    if event.kind == base.Kind.JOIN:
      state = state._replace(live=state.live | {event.worker_id})
      return state, base.Decision(start=(event.worker_id,))
    return lose(state, event.worker_id)

  return base.Policy(init=SynchronousState, decide=decide, accumulates=True)
