"""What a worker does with a ticket, and the server with its answer."""

import jax
import jax.numpy as jnp

from ga_jax import programs


def over_host_batches(
  program_fn, hparams, loss_fn, load_fn, resident
) -> programs.Program:
  """The worker program over host batches, loading included."""

  def loss_of_host_batch(params, model_state, host_batch, key):
    load_key, loss_key = jax.random.split(key)
    batch = load_fn(resident, host_batch, load_key)
    returned = loss_fn(params, model_state, batch, loss_key)
    _check_loss(returned)
    return returned

  return program_fn(hparams)(loss_of_host_batch)


def _check_loss(returned):
  """Raises a TypeError where a loss function returns something else."""
  form = 'loss_fn(params, model_state, batch, key) -> (loss, model_state)'
  if not (isinstance(returned, tuple) and len(returned) == 2):
    raise TypeError(
      f'{form}: it must return two values; model_state is () without statistics'
    )
  loss, _ = returned
  if loss is not None and jnp.shape(loss):
    raise TypeError(
      f'{form}: the loss must be a scalar, got shape {jnp.shape(loss)}'
    )
  dtype = getattr(loss, 'dtype', type(loss))
  if dtype is not float and not jnp.issubdtype(dtype, jnp.floating):
    got = getattr(dtype, 'name', repr(loss))
    raise TypeError(f'{form}: the loss must be a real number, got {got}')


def work(key, host_batches, first_batch, attempt) -> programs.Work:
  """The work of a ticket.

  Args:
    key: of the run.
    host_batches: stacked on a leading axis [num_batches].
    first_batch: id of the first batch.
    attempt: how often these batches had been issued before.

  Returns:
    `Work`, with a key per batch: fold_in(seed, batch, attempt).
  """

  def batch_key(batch_id):
    return jax.random.fold_in(jax.random.fold_in(key, batch_id), attempt)

  number = jax.tree.leaves(host_batches)[0].shape[0]
  ids = jnp.asarray(first_batch, jnp.int32) + jnp.arange(
    number, dtype=jnp.int32
  )
  return programs.Work(host_batches, jax.vmap(batch_key)(ids), ids)


def received(program: programs.Program, worker_state, submission, sent, params):
  """What the server makes of a submission at arrival.

  Args:
    program: the worker program.
    worker_state: after its run.
    submission: what it submitted.
    sent: the snapshot it was sent.
    params: the server's parameters now.

  Returns:
    (submission, worker_state, sent): a message is decoded to gradients. An
    exchanged submission was computed at the parameters of now, so these take
    the place of those that were sent.
  """
  if program.decode is not None:
    grads = program.decode(submission.grads, params)
    submission = submission._replace(grads=grads)
  if program.exchange is None:
    return submission, worker_state, sent
  submission, worker_state = program.exchange(worker_state, submission, params)
  return submission, worker_state, sent._replace(params=params)
