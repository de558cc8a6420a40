"""A rule's updates: as a loop of optax makes them, and as a server does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ga_jax
from ga_jax.server import update

_OLDEST = 5  # of a gradient, in versions


def by_optax(rule: ga_jax.AsyncOptimizer) -> Callable[..., tuple[Any, Any]]:
  """`fn(params, state, grads, stale_params, staleness, worker_id)`.

  Returns:
    A function that makes the next parameters and state.
  """

  def one(params, state, grads, stale_params, staleness, worker_id):
    updates, state = rule.update(
      grads,
      state,
      params,
      stale_params=stale_params,
      staleness=staleness,
      worker_id=worker_id,
      count=staleness,
    )
    return optax.apply_updates(params, updates), state

  return one


def of_a_server(
  rule: ga_jax.AsyncOptimizer,
  params: Any,
  steps: int,
  num_workers: int,
  *,
  in_place: bool = False,
) -> tuple[update.ServerState, list[update.Metrics]]:
  """Updates by gradients of random workers and staleness.

  Args:
    rule: the rule.
    params: pytree of arrays.
    steps: updates.
    num_workers: who the gradients may be of.
    in_place: see `update.apply`.

  Returns:
    The state at the end, and what every update did.
  """
  rng, seen = np.random.default_rng(1), []
  state = update.init(rule, params)

  @jax.jit
  def arrive(state, sent, staleness, worker_id):
    arrival = update.any_arrival(state)._replace(
      grads=jax.tree.map(lambda p: jnp.sin(3 * p), sent.params),
      sent=sent,
      staleness=staleness,
      worker_id=worker_id,
    )
    state, metrics = update.apply(
      rule, state, arrival, lambda *own: own[0], in_place=in_place
    )
    return state, metrics, update.snapshot(rule, state)

  sent = [update.snapshot(rule, state)]
  for step in range(steps):
    staleness = int(rng.integers(0, min(step, _OLDEST) + 1))
    worker_id = jnp.int32(rng.integers(0, num_workers))
    state, metrics, snapshot = arrive(
      state, sent[-1 - staleness], jnp.int32(staleness), worker_id
    )
    sent = [*sent[-1 - _OLDEST :], snapshot]
    seen.append(metrics)
  return state, seen
