"""What a worker program is: what a worker submits for the batches of a ticket.

A program is a pair of pure functions. What it keeps from ticket to ticket is
its worker's state; the server's acknowledgement commits it, so that a refused
or discarded submission leaves the old one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LONGEST_UNROLL = 8  # steps; convolutions inside XLA's CPU loops are slow


class Work(NamedTuple):
  """The batches of a ticket; a leading axis [num_batches] on every leaf."""

  batches: Any
  keys: jax.Array  # typed keys, one per batch
  batch_ids: jax.Array  # int32; learning-rate schedules are functions of them


class Submission(NamedTuple):
  """What a worker answers, in gradient sign.

  Attributes:
    grads: pytree like the parameters, complex leaves conjugated (see
      `value_and_grad`); a message where the program has a `decode`.
    model_state: the model's statistics after the batches.
    loss: mean training loss over the batches, scalar.
  """

  grads: Any
  model_state: Any
  loss: Any


def nbytes(tree) -> int:
  """Bytes of all arrays of a tree (or of their shapes)."""
  shapes = jax.eval_shape(lambda tree: tree, tree)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


class Program(NamedTuple):
  """What a worker does with a ticket.

  Attributes:
    init: `init(params) -> worker_state`; only shapes and dtypes of `params` may
      be read, for a worker that was lost begins with it again; () for nothing.
    run: `run(worker_state, sent, work) -> (Submission, worker_state)`, with
      `sent` what the worker was sent (`params`, `model_state`). A ticket may
      hold fewer batches than `num_batches`.
    num_batches: batches per ticket.
    exchange: `exchange(worker_state, submission, params) -> (Submission,
      worker_state)`, done at arrival with the server's parameters of then; None
      where a submission is whole when it leaves its worker.
    overlaps: whether the worker computes while its messages are under way.
    message_bytes: `message_bytes(params) -> int`, bytes of one submission on
      the wire, model statistics not counted.
    decode: `decode(message, params) -> grads`, done at arrival where what is
      submitted is a message; None where it is the gradients themselves.
    streams: S where the state is what was remembered of batch b − S when batch
      b is computed; 0 where the order of batches does not matter.
  """

  init: Callable[[Any], Any]
  run: Callable[..., tuple[Submission, Any]]
  num_batches: int = 1
  exchange: Callable[..., tuple[Submission, Any]] | None = None
  overlaps: bool = False
  message_bytes: Callable[[Any], int] = nbytes
  decode: Callable[[Any, Any], Any] | None = None
  streams: int = 0


def value_and_grad(loss_fn: Callable[..., tuple[Any, Any]]):
  """`jax.value_and_grad` whose gradient points uphill for complex parameters.

  For a real loss of complex p, JAX returns ∂L/∂Re p − i ∂L/∂Im p, the conjugate
  of the direction of steepest ascent: descending along it goes uphill in Im p.

  Args:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.

  Returns:
    A function of the same arguments, `-> ((loss, model_state), grads)`, whose
    complex leaves are ∂L/∂Re p + i ∂L/∂Im p; real ones are as JAX gives them.
  """
  of_jax = jax.value_and_grad(loss_fn, has_aux=True)

  def uphill(*args):
    value, grads = of_jax(*args)
    return value, jax.tree.map(
      lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, grads
    )

  return uphill


def fold_batches(step, carry, work: Work):
  """Takes one step per batch.

  Args:
    step: `step(carry, batch, key, batch_id) -> (carry, loss)`.
    carry: a pytree.
    work: the batches.

  Returns:
    The last carry, and the mean loss.
  """

  def one(carry, item):
    return step(carry, *item)

  carry, losses = jax.lax.scan(
    one,
    carry,
    (work.batches, work.keys, work.batch_ids),
    unroll=min(LONGEST_UNROLL, len(work.batch_ids)),
  )
  return carry, losses.mean()
