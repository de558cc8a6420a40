"""Rounds without a barrier: every worker goes on at once.

A round closes with the gradient that fills the buffer, whoever sent it.
"""

import functools
from typing import NamedTuple

from ga_jax.policies.parts import base


class BufferState(NamedTuple):
  """What the open round holds."""

  held: int = 0  # gradients


_EMPTY = BufferState()


@functools.cache
def _go_on(action: base.Action, worker_id: int) -> base.Decision:
  """The worker starts again; kept, since few different answers exist."""
  weight = 0.0 if action == base.Action.DISCARD else 1.0
  return base.Decision(action, weight, (worker_id,))


def buffer(size: int, max_staleness: int | None = None) -> base.Policy:
  """Averages a number of gradients per update.

  Args:
    size: gradients per update.
    max_staleness: those with more are discarded; None for no limit.

  Returns:
    A `Policy`.
  """
  limit = float('inf') if max_staleness is None else max_staleness

  def decide(state, event):
    worker_id = event.worker_id
    if event.kind == base.Kind.ARRIVE:
      if event.staleness > limit:
        return state, _go_on(base.Action.DISCARD, worker_id)
      if state.held + 1 < size:
        state = BufferState(state.held + 1)
        return state, _go_on(base.Action.ACCUMULATE, worker_id)
      return _EMPTY, _go_on(base.Action.APPLY, worker_id)
    if event.kind == base.Kind.LEAVE:
      return state, base.Decision()
    return state, _go_on(base.Action.NONE, worker_id)

  return base.Policy(
    BufferState,
    decide,
    accumulates=size > 1,
    pipelines=True,
    round_size=size,
  )
