"""Local SGD: several steps on the worker, one pseudo-gradient for the server.

U inner steps go from the parameters that were sent to x; θ_sent − x is
submitted, so that an outer SGD with rate 1 and without momentum gives θ ← x for
one worker. With U = 1 that is ASGD at the inner learning rate. An inner
momentum buffer is kept from ticket to ticket (our reading).

References:
  Stich, `Local SGD Converges Fast and Communicates Little
  <https://arxiv.org/abs/1805.09767>`_, ICLR 2019;
  Douillard et al., `DiLoCo <https://arxiv.org/abs/2311.08105>`_, 2023.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ga_jax.guards import checks
from ga_jax.programs import base
from ga_jax.rules.parts.arguments import check_number
from ga_jax.rules.parts.links import (
  decayed_weights,
  descend,
  momentum_trace,
  rate_at,
)
from ga_jax.rules.parts.numbers import float_scalar


def local_sgd(
  loss_fn: Callable[..., tuple[Any, Any]],
  learning_rate: optax.ScalarOrSchedule,
  local_steps: int = 4,
  local_momentum: float = 0.0,
  weight_decay: float = 0.0,
) -> base.Program:
  """Submits θ_sent − x after `local_steps` steps of SGD.

  Args:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.
    learning_rate: of the inner steps, a number or a schedule of batch ids.
    local_steps: U, batches per ticket, at least 1.
    local_momentum: of the inner steps, in [0, 1); 0 keeps no buffer.
    weight_decay: L2 coefficient of the inner steps.

  Returns:
    A `Program` whose worker state is the inner momentum.
  """
  local_steps = checks.integer('local_steps', local_steps, 1)
  check_number('learning_rate', learning_rate, low=0.0, schedule=True)
  check_number('local_momentum', local_momentum, low=0.0, below=1.0)
  inner = optax.chain(
    decayed_weights(weight_decay), momentum_trace(local_momentum)
  )
  value_and_grad = base.value_and_grad(loss_fn)

  def run(worker_state, sent, work):
    def step(carry, batch, key, batch_id):
      params, model_state, trace = carry
      (loss, model_state), grads = value_and_grad(
        params, model_state, batch, key
      )
      direction, trace = inner.update(grads, trace, params)
      rate = float_scalar(rate_at(learning_rate, batch_id))
      return (descend(params, rate, direction), model_state, trace), loss

    start = sent.params, sent.model_state, worker_state
    (params, model_state, trace), loss = base.fold_batches(step, start, work)
    moved = jax.tree.map(jnp.subtract, sent.params, params)  # θ_sent − x
    return base.Submission(moved, model_state, loss), trace

  return base.Program(init=inner.init, run=run, num_batches=local_steps)
