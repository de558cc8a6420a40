"""What is to be computed, whoever computes it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ga_jax import programs
from ga_jax.guards import checks
from ga_jax.job import source as source_lib
from ga_jax.policies.parts import base as policies
from ga_jax.policies.parts.base import Policy
from ga_jax.programs import gradient
from ga_jax.server import core, statistics, update

# Of what is larger JAX takes 32 bits: two seeds would be one.
_LARGEST_SEED = 2**32 - 1


class Job(NamedTuple):
  """A training job.

  Attributes:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`;
      what `programs.recurrent` says where that is the program.
    source: where batches come from.
    rule_fn: `rule_fn(hparams) -> rule`, hashable.
    hparams: pytree of numbers given to `rule_fn` and `program_fn`; changing
      them compiles nothing again.
    params: initial parameters.
    model_state: initial model statistics.
    fold_fn: how they are folded, hashable; see `statistics`.
    program_fn: `program_fn(hparams)(loss_fn) -> Program`, hashable.
    accumulates: whether the policy averages rounds.
    seed: of everything random in a batch.
    layer_metrics: whether gap and penalty are measured by layer too.
  """

  loss_fn: Callable[..., Any]
  source: source_lib.Source
  rule_fn: Callable[[Any], Any]
  hparams: Any
  params: Any
  model_state: Any
  fold_fn: statistics.FoldFn
  program_fn: Callable[[Any], Callable[..., programs.Program]]
  accumulates: bool
  seed: int
  layer_metrics: bool = False


class Fixed(NamedTuple):
  """A program as a function of hyper-parameters that ignores them."""

  program: Callable[..., programs.Program]

  def __call__(self, hparams):
    del hparams
    return self.program


def build(
  loss_fn: Callable[..., Any],
  params,
  batches: source_lib.Source | Callable[[int], Any],
  rule,
  *,
  policy: Policy,
  model_state=(),
  stats_momentum: float | None = None,
  fold_fn: statistics.FoldFn | None = None,
  seed: int = 0,
  hparams: Any = None,
  program: Callable[..., Any] | None = None,
  layer_metrics: bool = False,
) -> Job:
  """A job from what users give; see `simulate` for the arguments.

  Raises:
    ValueError: the program remembers other streams than the batches have, or
      the rule's penalties are not known by layer where they are asked for.
    TypeError: an argument is something else than it should be.
  """
  policies.check(policy)
  if not isinstance(batches, source_lib.Source):
    if not callable(batches):
      raise TypeError(
        'batches must be a function of the batch id, batch_fn(batch_id) -> '
        f'batch, or a Source, got {type(batches)}'
      )
    batches = source_lib.Source(batches)
  params, model_state, resident, hparams = update.owned(
    (params, model_state, batches.resident, hparams)
  )
  resident = jax.tree.map(jnp.asarray, resident)  # moved only once
  if hparams is None:
    rule_fn, program_fn = core.fixed(rule), Fixed(program or gradient)
  else:
    rule_fn, program_fn = rule, program or Fixed(gradient)
  job = Job(
    loss_fn=loss_fn,
    source=batches._replace(resident=resident),
    rule_fn=rule_fn,
    # Arrays, so that a momentum of 0 means the same inside and outside jit.
    hparams=() if hparams is None else jax.tree.map(jnp.asarray, hparams),
    params=params,
    model_state=model_state,
    fold_fn=statistics.fold_of(model_state, stats_momentum, fold_fn),
    program_fn=program_fn,
    accumulates=policy.accumulates,
    seed=checks.integer('seed', seed, 0, _LARGEST_SEED),
    layer_metrics=layer_metrics,
  )
  if layer_metrics:
    update.check_layer_metrics(
      job.rule_fn(job.hparams), params, model_state, job.accumulates
    )
  streams = program_of(job).streams
  if streams not in (0, batches.streams):
    raise ValueError(
      f'the worker program remembers {streams} streams, the source of the '
      f'batches has streams={batches.streams}'
    )
  return job


def check_workers(job: Job, num_workers: int):
  """Raises a ValueError where a job's rule does not fit so many workers."""
  update.check_rule(
    job.rule_fn(job.hparams), job.accumulates, num_workers, job.params
  )


def worker_program(
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
  if jnp.shape(returned[0]):
    raise TypeError(
      f'{form}: the loss must be a scalar, got shape {jnp.shape(returned[0])}'
    )


def program_of(job: Job) -> programs.Program:
  """The worker program of a job, not compiled."""
  return worker_program(
    job.program_fn,
    job.hparams,
    job.loss_fn,
    job.source.load_fn,
    job.source.resident,
  )


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
