"""How many bytes a simulated run keeps from update to update.

They are the server's parameters, its optimiser's state (and open round), one
snapshot per version that a worker still holds, and what worker programs keep:
GA with N asynchronous workers has θ, v, s and N snapshots, 3 + N copies. What
one gradient needs while it is computed comes on top, and so do the data and the
caller's own initial parameters.
"""

from typing import NamedTuple

import jax

from ga_jax import programs
from ga_jax.guards import checks
from ga_jax.programs import base as programs_base
from ga_jax.rules.parts import optimizer as rules_base
from ga_jax.server import update


class Resident(NamedTuple):
  """Bytes by what they are for.

  Attributes:
    params: the server's parameters and model statistics.
    state: the optimiser's state and, where a policy averages, the open round.
    snapshots: what workers were sent, once per version.
    workers: what the worker programs keep from ticket to ticket.
  """

  params: int
  state: int
  snapshots: int
  workers: int

  @property
  def total(self) -> int:
    return sum(self)


def resident(
  rule: rules_base.AsyncOptimizer,
  params,
  *,
  num_workers: int,
  versions: int | None = None,
  accumulates: bool = False,
  model_state=(),
  program: programs_base.Program | None = None,
) -> Resident:
  """Counts what a run keeps, without computing anything.

  Args:
    rule: the server rule.
    params: parameters, or their shapes.
    num_workers: N.
    versions: how many versions are ever alive at once, `slots.plan(trace).rows`
      of a schedule; by default N, which is what asynchronous workers hold.
    accumulates: whether the policy averages, see `Policy`.
    model_state: statistics, or their shapes.
    program: the worker program; by default `programs.gradient`, which keeps
      nothing.

  Returns:
    A `Resident`.

  Examples:
    >>> import ga_jax, jax.numpy as jnp
    >>> params = jnp.zeros(1000)  # 4,000 bytes
    >>> found = ga_jax.resident(ga_jax.gap_aware(0.1), params, num_workers=8)
    >>> [round(part / params.nbytes, 1) for part in found]
    [1.0, 2.0, 8.0, 0.0]
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  if versions is None:
    versions = num_workers
  versions = checks.integer('versions', versions, 1)
  program = program or programs.gradient(lambda *_: None)

  def kept(params, model_state):
    state = update.init(rule, params, model_state, accumulates=accumulates)
    return state, update.snapshot(rule, state), program.init(params)

  state, sent, worker = jax.eval_shape(kept, params, model_state)
  size = programs_base.nbytes
  return Resident(
    params=size((state.params, state.model_state)),
    state=size((state.opt_state, state.round)),
    snapshots=size(sent) * versions,
    workers=size(worker) * num_workers,
  )
