"""Worker programs: what a worker submits for the batches of a ticket."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Submission(NamedTuple):
  """What a worker answers, in gradient sign.

  Attributes:
    grads: pytree like the parameters.
    model_state: the model's statistics after the batches.
    loss: mean training loss over the batches, scalar.
  """

  grads: Any
  model_state: Any
  loss: Any


class Program(NamedTuple):
  """What a worker does with a ticket.

  Attributes:
    init: `init(params) -> worker_state`, kept from ticket to ticket; () where
      nothing is.
    run: `run(worker_state, sent, batches, keys) -> (Submission, worker_state)`,
      with `sent` a `kernel.Snapshot` and a leading axis [num_batches] on every
      leaf of `batches` and on `keys`.
    num_batches: batches per ticket.
  """

  init: Callable[[Any], Any]
  run: Callable[..., tuple[Submission, Any]]
  num_batches: int = 1


def gradient(loss_fn: Callable[..., tuple[Any, Any]]) -> Program:
  """One mini-batch gradient per ticket.

  Args:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.

  Returns:
    A `Program` without worker state.
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

  def run(worker_state, sent, batches, keys):
    batch = jax.tree.map(lambda x: x[0], batches)
    (loss, model_state), grads = value_and_grad(
      sent.params, sent.model_state, batch, keys[0]
    )
    return Submission(grads, model_state, loss), worker_state

  return Program(init=lambda params: (), run=run)


PROGRAMS = {'gradient': gradient}
