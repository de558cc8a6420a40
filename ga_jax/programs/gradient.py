"""One mini-batch gradient per ticket, at the parameters that were sent.

References:
  Dean et al., Large Scale Distributed Deep Networks, NIPS 2012.
"""

from collections.abc import Callable
from typing import Any

import jax

from ga_jax.programs import base


def gradient(loss_fn: Callable[..., tuple[Any, Any]]) -> base.Program:
  """Submits the gradient of one batch.

  Args:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.

  Returns:
    A `Program` without worker state.
  """
  value_and_grad = base.value_and_grad(loss_fn)

  def run(worker_state, sent, work):
    batch = jax.tree.map(lambda x: x[0], work.batches)
    (loss, model_state), grads = value_and_grad(
      sent.params, sent.model_state, batch, work.keys[0]
    )
    return base.Submission(grads, model_state, loss), worker_state

  return base.Program(init=lambda params: (), run=run)
