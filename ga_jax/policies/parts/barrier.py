"""Rounds with a barrier: a worker that arrived waits until its round closes.

A round closes when it holds K gradients, or when every live worker waits: with
fewer than K of them it would stay open for ever otherwise.
"""

from typing import NamedTuple

from ga_jax.guards import checks
from ga_jax.policies.parts import base


class BarrierState(NamedTuple):
  """Who is there and who waits."""

  live: frozenset[int] = frozenset()
  waiting: tuple[int, ...] = ()  # in order of arrival
  held: int = 0  # gradients in the open round, also of workers that left


def step(
  state: BarrierState, event: base.Event, wait_for: int | None = None
) -> tuple[BarrierState, base.Decision]:
  """One event of a run with a barrier.

  Args:
    state: before it.
    event: ARRIVE, EXPIRE, JOIN or LEAVE.
    wait_for: K, gradients that close a round; None for all live workers.

  Returns:
    The state after it and the decision, APPLY where the round is closed.
  """
  live, waiting, held = state
  worker_id = event.worker_id
  action, start = base.Action.NONE, ()
  if event.kind == base.Kind.ARRIVE:
    if worker_id not in live:
      live = live | {worker_id}
    waiting, held = (*waiting, worker_id), held + 1
    action = base.Action.ACCUMULATE
  elif event.kind == base.Kind.JOIN:
    live, start = live | {worker_id}, (worker_id,)
  else:
    live = live - {worker_id}
    waiting = tuple(w for w in waiting if w != worker_id)
    if event.kind == base.Kind.EXPIRE:
      start = (worker_id,)
  if held and (held == wait_for or len(waiting) >= len(live)):
    return (
      BarrierState(live),
      base.Decision(base.Action.APPLY, 1.0, waiting + start),
    )
  return BarrierState(live, waiting, held), base.Decision(action, 1.0, start)


def barrier(
  wait_for: int | None = None, *, fresh: bool = False, cancels: bool = False
) -> base.Policy:
  """Averages K gradients per update.

  Args:
    wait_for: K; None for all live workers.
    fresh: whether gradients of an earlier version are discarded.
    cancels: whether workers that still run are restarted when a round closes.

  Returns:
    A `Policy`.
  """

  def decide(state, event):
    if fresh and event.kind == base.Kind.ARRIVE and event.staleness:
      state = state._replace(live=state.live | {event.worker_id})
      return state, base.Decision(base.Action.DISCARD, 0.0, (event.worker_id,))
    state, decision = step(state, event, wait_for)
    if cancels and decision.action == base.Action.APPLY:
      others = state.live.difference(decision.start)
      decision = decision._replace(restart=tuple(sorted(others)))
    return state, decision

  return base.Policy(
    BarrierState, decide, accumulates=wait_for != 1, round_size=wait_for or 0
  )


def wait_for_or_half(num_workers: int, wait_for: int | None) -> int:
  """K of K-sync and K-async: as asked for, or half of the workers.

  Raises:
    ValueError: `num_workers` or `wait_for` is out of its range.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  if wait_for is None:
    return max(1, num_workers // 2)
  wait_for = checks.integer('wait_for', wait_for, 1, num_workers, 'num_workers')
  return wait_for
