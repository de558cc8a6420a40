"""LAGA-style accumulation: gradients are summed while messages are under way.

A worker does not wait for its last submission: it goes on computing gradients
and submits their sum. Our reading for a server with tickets: a ticket holds
`local_steps` batches, all at the parameters that were sent, the *sum* of their
gradients is submitted, and the simulated clock hides the messages behind the
computation (a ticket takes the longer of the two instead of both). The paper
describes it for a lagging all-reduce.

References:
  Hakimi, Barkai, Gabel, Schuster and others, LAGA: Lagged AllReduce with
  Gradient Accumulation for Minimal Idle Time, ICDM 2021.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ga_jax.guards import checks
from ga_jax.programs import base


def laga(
  loss_fn: Callable[..., tuple[Any, Any]], local_steps: int = 4
) -> base.Program:
  """Submits the sum of `local_steps` gradients at the parameters sent.

  Args:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.
    local_steps: gradients per submission, at least 1.

  Returns:
    A `Program` without worker state that overlaps computation and messages.
  """
  local_steps = checks.integer('local_steps', local_steps, 1)
  value_and_grad = base.value_and_grad(loss_fn)

  def run(worker_state, sent, work):
    def step(carry, batch, key, batch_id):
      del batch_id
      total, model_state = carry
      (loss, model_state), grads = value_and_grad(
        sent.params, model_state, batch, key
      )
      return (jax.tree.map(jnp.add, total, grads), model_state), loss

    zeros = jax.tree.map(jnp.zeros_like, sent.params)
    (total, model_state), loss = base.fold_batches(
      step, (zeros, sent.model_state), work
    )
    return base.Submission(total, model_state, loss), worker_state

  return base.Program(
    init=lambda params: (), run=run, num_batches=local_steps, overlaps=True
  )
