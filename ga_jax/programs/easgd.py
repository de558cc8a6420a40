"""EASGD and EAMSGD: workers keep their own parameters on an elastic leash.

Each worker walks its own x; every `local_steps` batches E = α (x − θ) is
computed at arrival with the θ of then, x ← x − E and θ ← θ + E. What is
submitted is −E, in gradient sign, for an outer SGD with rate 1 and no momentum;
since E is computed at the server's own parameters it is never stale, and no
rule corrects it. With momentum δ (EAMSGD) a step is v ← δ v − η ∇f(x + δ v),
x ← x + v. A worker begins at the first parameters it is sent, also when it
comes back after it was lost (our reading).

References:
  Zhang, Choromanska, LeCun, `Deep learning with Elastic Averaging SGD
  <https://arxiv.org/abs/1412.6651>`_, NIPS 2015, algorithms 1 and 2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.guards import checks
from ga_jax.programs import base
from ga_jax.rules.parts.arguments import check_number
from ga_jax.rules.parts.links import decayed_weights, descend, rate_at
from ga_jax.rules.parts.numbers import float_scalar


class EasgdState(NamedTuple):
  """State of a worker."""

  started: jax.Array  # whether it has parameters, shape=(), dtype=bool.
  params: Any  # x, like the parameters.
  velocity: Any  # v, like the parameters.


def easgd(
  loss_fn: Callable[..., tuple[Any, Any]],
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  local_steps: int = 4,
  local_momentum: float = 0.0,
  elasticity: float | None = None,
  weight_decay: float = 0.0,
) -> base.Program:
  """Elastic averaging; with `local_momentum` EAMSGD.

  Args:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.
    learning_rate: η, a number or a schedule of batch ids.
    num_workers: N, for the default elasticity.
    local_steps: batches between two exchanges, at least 1.
    local_momentum: δ in [0, 1).
    elasticity: α in (0, 1); by default 0.9 / N as in the paper.
    weight_decay: L2 coefficient of the worker's steps.

  Returns:
    A `Program` that exchanges with the server at arrival.
  """
  local_steps = checks.integer('local_steps', local_steps, 1)
  check_number('learning_rate', learning_rate, low=0.0, schedule=True)
  check_number('local_momentum', local_momentum, low=0.0, below=1.0)
  num_workers = checks.integer('num_workers', num_workers, 1)
  if elasticity is None:
    elasticity = 0.9 / num_workers
  check_number('elasticity', elasticity, above=0.0, below=1.0)
  decay = decayed_weights(weight_decay)
  value_and_grad = base.value_and_grad(loss_fn)

  def init(params):
    zeros = jax.tree.map(
      lambda p: jnp.zeros(jnp.shape(p), jnp.result_type(p)), params
    )
    return EasgdState(jnp.zeros([], bool), zeros, zeros)

  def run(worker_state, sent, work):
    def step(carry, batch, key, batch_id):
      params, model_state, velocity = carry
      ahead = jax.tree.map(
        lambda x, v: x + local_momentum * v, params, velocity
      )
      (loss, model_state), grads = value_and_grad(
        ahead, model_state, batch, key
      )
      grads, _ = decay.update(grads, decay.init(ahead), ahead)
      velocity = descend(  # v ← δ v − η ∇f(x + δ v)
        jax.tree.map(lambda v: local_momentum * v, velocity),
        float_scalar(rate_at(learning_rate, batch_id)),
        grads,
      )
      params = jax.tree.map(jnp.add, params, velocity)
      return (params, model_state, velocity), loss

    own = jax.tree.map(
      lambda x, p: jnp.where(worker_state.started, x, p),
      worker_state.params,
      sent.params,
    )
    start = own, sent.model_state, worker_state.velocity
    (params, model_state, velocity), loss = base.fold_batches(step, start, work)
    state = EasgdState(jnp.ones([], bool), params, velocity)
    return base.Submission(params, model_state, loss), state

  def exchange(worker_state, submission, params):
    elastic = jax.tree.map(  # E = α (x − θ)
      lambda x, p: jnp.asarray(elasticity, x.dtype) * (x - p),
      worker_state.params,
      params,
    )
    own = jax.tree.map(jnp.subtract, worker_state.params, elastic)
    grads = jax.tree.map(jnp.negative, elastic)
    return submission._replace(grads=grads), worker_state._replace(params=own)

  return base.Program(init, run, local_steps, exchange)
