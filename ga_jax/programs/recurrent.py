"""One mini-batch gradient per ticket, by a model that remembers the last one.

The memory (of Transformer-XL: hidden states of the segment before) stays with
the worker. It is what it was where a submission is refused, and empty, all
zeros, where the batch is not the one that continues it: a worker that was lost,
or that takes over another's stream, begins a new one. Batches come from S
streams: batch b continues batch b − S (`source.Source.streams`).

References:
  Dai et al., `Transformer-XL <https://arxiv.org/abs/1901.02860>`_, ACL 2019.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ga_jax.guards import checks
from ga_jax.programs import base


class RecurrentState(NamedTuple):
  """State of a worker."""

  memory: Any
  continued_by: jax.Array  # batch id; −1 for none, shape=(), dtype=int32.


def recurrent(
  loss_fn: Callable[..., tuple[Any, Any]],
  memory: Callable[[], Any],
  streams: int,
) -> base.Program:
  """Submits the gradient of one batch, and remembers.

  Args:
    loss_fn: `loss_fn(params, (model_state, memory), batch, key) -> (loss,
      (model_state, memory))`. A memory of zeros is an empty one; no gradient
      flows into it.
    memory: `memory() -> empty memory`, a pytree of arrays.
    streams: S, at least 1.

  Returns:
    A `Program` whose worker state is the memory and what continues it.

  Raises:
    ValueError: `streams` is less than 1.
  """
  streams = checks.integer('streams', streams, 1)
  value_and_grad = base.value_and_grad(loss_fn)

  def init(params):
    del params
    empty = jax.tree.map(lambda x: jnp.zeros_like(jnp.asarray(x)), memory())
    return RecurrentState(empty, jnp.full((), -1, jnp.int32))

  def run(worker_state, sent, work):
    batch_id = work.batch_ids[0]
    continues = worker_state.continued_by == batch_id
    remembered = jax.tree.map(
      lambda x: jnp.where(continues, x, jnp.zeros_like(x)), worker_state.memory
    )
    batch = jax.tree.map(lambda x: x[0], work.batches)
    (loss, (model_state, new)), grads = value_and_grad(
      sent.params, (sent.model_state, remembered), batch, work.keys[0]
    )
    state = RecurrentState(new, batch_id + jnp.int32(streams))
    return base.Submission(grads, model_state, loss), state

  return base.Program(init=init, run=run, streams=streams)
