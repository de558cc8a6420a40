"""What is to be computed, whoever computes it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax import programs


class Source(NamedTuple):
  """Where batches come from: pure functions of the batch's id.

  Attributes:
    batch_fn: `batch_fn(batch_id) -> pytree of NumPy arrays`, on the host.
    load_fn: `load_fn(resident, host_batch, key) -> batch`, in compiled code; by
      default the host batch as it is.
    resident: pytree of arrays kept on the device and handed to `load_fn`.
  """

  batch_fn: Callable[[int], Any]
  load_fn: Callable[..., Any] = lambda resident, host_batch, key: host_batch
  resident: Any = ()


class Job(NamedTuple):
  """A training job.

  Attributes:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.
    source: where batches come from.
    rule_fn: `rule_fn(hparams) -> rule`, hashable.
    hparams: pytree of numbers given to `rule_fn`; changing them compiles
      nothing again.
    params: initial parameters.
    model_state: initial model statistics.
    stats_momentum: their momentum.
    program: `program(loss_fn) -> Program`.
    accumulates: whether the policy averages rounds.
    seed: of everything random in a batch.
  """

  loss_fn: Callable[..., Any]
  source: Source
  rule_fn: Callable[[Any], Any]
  hparams: Any
  params: Any
  model_state: Any
  stats_momentum: float
  program: Callable[..., programs.Program]
  accumulates: bool
  seed: int


def worker_program(job_program, loss_fn, load_fn, resident) -> programs.Program:
  """The worker program over host batches, loading included."""

  def loss_of_host_batch(params, model_state, host_batch, key):
    load_key, loss_key = jax.random.split(key)
    batch = load_fn(resident, host_batch, load_key)
    return loss_fn(params, model_state, batch, loss_key)

  return job_program(loss_of_host_batch)


def batch_keys(key, first_batch, num_batches: int, attempt):
  """A key per batch: fold_in(seed, batch, attempt), shape [num_batches]."""

  def one(batch_id):
    return jax.random.fold_in(jax.random.fold_in(key, batch_id), attempt)

  ids = jnp.asarray(first_batch, jnp.int32) + jnp.arange(
    num_batches, dtype=jnp.int32
  )
  return jax.vmap(one)(ids)


def host_batches(source: Source, first_batch: int, num_batches: int):
  """The host batches of a ticket, stacked on a leading axis [num_batches]."""
  batches = [
    source.batch_fn(batch_id)
    for batch_id in range(first_batch, first_batch + num_batches)
  ]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def record(submission: programs.Submission, metrics, staleness):
  """The metrics of one applied arrival, by name."""
  return {
    'loss': submission.loss,
    'staleness': staleness,
    **metrics._asdict(),
  }
