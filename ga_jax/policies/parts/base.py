"""What a policy is: whom the server waits for.

A policy is told of events and answers with decisions. It is a pure pair of
functions on the host: no clock, no lock, no JAX. Its state is a value of plain
Python objects (see `saved`), so that it can be kept with a checkpoint and a
decision can be taken again.

What every policy keeps to:

* The live workers never all wait: where the last one that runs stops, others
  are started by the same decision.
* After LEAVE and EXPIRE nobody waits for that worker; its gradients stay in the
  open round. After EXPIRE it may start again when it asks, and its next answer
  brings it back, as a JOIN does.
* A worker whose gradient is discarded starts again at the current version. The
  ledger issues its batches again, also where the paper drops them for good.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(enum.IntEnum):
  """What happened; the `event` column of a trace."""

  ISSUE = 0  # a worker was given a ticket
  ARRIVE = 1  # a worker answered a ticket
  RESTART = 2  # a ticket was revoked, its worker begins again
  EXPIRE = 3  # a ticket's lease ran out
  JOIN = 4  # a worker joined
  LEAVE = 5  # a worker left
  CLOSE = 6  # the open round was closed without a new gradient


class Action(enum.IntEnum):
  """What the server did with it; the `action` column of a trace."""

  NONE = 0
  APPLY = 1  # add to the open round and close it: one update
  ACCUMULATE = 2  # add to the open round
  DISCARD = 3  # throw the gradient away, issue its batches again
  REFUSE = 4  # not the answer to an outstanding ticket


class Event(NamedTuple):
  """What a policy is told."""

  kind: Kind  # ARRIVE, EXPIRE, JOIN or LEAVE
  worker_id: int
  version: int  # the version its gradient is computed at; -1 without one
  staleness: int  # server updates since; 0 without a gradient
  time: float  # seconds, or units of the simulated clock
  loss: float | None  # of its batches, where the policy needs it


class Decision(NamedTuple):
  """What a policy answers.

  Attributes:
    action: APPLY, ACCUMULATE or DISCARD for an arrival; for any event APPLY
      without an arrival closes the round that is open; NONE does nothing.
    weight: of the gradient in its round's weighted mean, >= 0.
    start: workers that get a ticket now; all others go on or wait.
    restart: workers whose tickets are revoked; they begin again at once.
    max_staleness: the most that what is being computed may have once this is
      carried out, in updates; workers whose tickets were read longer ago are
      restarted too, the oldest first. None for no limit.
  """

  action: Action = Action.NONE
  weight: float = 1.0
  start: tuple[int, ...] = ()
  restart: tuple[int, ...] = ()
  max_staleness: int | None = None


class Policy(NamedTuple):
  """A policy.

  Attributes:
    init: `init() -> state`.
    decide: `decide(state, event) -> (state, decision)`.
    accumulates: whether a round may hold more than one gradient.
    needs_loss: whether decisions depend on `event.loss`.
    pipelines: whether a worker may hold several tickets, since it never waits
      for others and is never restarted.
    round_size: gradients per round; 0 for one of every live worker, None where
      it changes in the course of a run.
  """

  init: Callable[[], Any]
  decide: Callable[[Any, Event], tuple[Any, Decision]]
  accumulates: bool = False
  needs_loss: bool = False
  pipelines: bool = False
  round_size: int | None = 1


def check(policy):
  """Raises a TypeError where something else stands for a policy."""
  if not isinstance(policy, Policy):
    raise TypeError(
      'policy must be a Policy, such as ga_jax.policies.asynchronous(), got '
      f'{policy!r}'
    )
