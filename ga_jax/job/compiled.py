"""What workers do, compiled once and shared by all who run it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ga_jax.job import job as job_lib
from ga_jax.job import program as program_lib
from ga_jax.job import source as source_lib
from ga_jax.server import ledger, update


class CompiledProgram(NamedTuple):
  """What a worker does, and what is done with its answer at arrival.

  Attributes:
    answer: `answer(hparams, worker_state, sent, host_batches, resident, key,
      ticket) -> (Submission, worker_state)`.
    decode: `decode(hparams, message, params) -> grads`.
    exchange: `exchange(hparams, worker_state, submission, sent, params) ->
      (Submission, worker_state, sent)`.
  """

  answer: Callable[..., Any]
  decode: Callable[..., Any]
  exchange: Callable[..., Any]


@functools.lru_cache(maxsize=64)
def compiled_program(program_fn, loss_fn, load_fn) -> CompiledProgram:
  """Compiles a worker program; each of its steps on its own."""

  def program(hparams, resident=()):
    return program_lib.over_host_batches(
      program_fn, hparams, loss_fn, load_fn, resident
    )

  @jax.jit
  def compute(
    hparams,
    worker_state,
    sent,
    host_batches,
    resident,
    key,
    first_batch,
    attempt,
  ):
    work = program_lib.work(key, host_batches, first_batch, attempt)
    return program(hparams, resident).run(worker_state, sent, work)

  def answer(hparams, worker_state, sent, host_batches, resident, key, ticket):
    first_batch, attempt = (
      np.int32(ticket.first_batch),
      np.int32(ticket.attempt),
    )
    return compute(
      hparams,
      worker_state,
      sent,
      host_batches,
      resident,
      key,
      first_batch,
      attempt,
    )

  @jax.jit
  def decode(hparams, message, params):
    return program(hparams).decode(message, params)

  @jax.jit
  def exchange(hparams, worker_state, submission, sent, params):
    return program_lib.received(
      program(hparams), worker_state, submission, sent, params
    )

  return CompiledProgram(answer, decode, exchange)


def answer_shape(job: job_lib.Job, num_batches: int):
  """Shapes and dtypes of (submission, program state) for so many batches."""
  ticket = ledger.Ticket(-1, 0, 0, 0, num_batches, 0)
  compiled = compiled_program(job.program_fn, job.loss_fn, job.source.load_fn)
  return jax.eval_shape(
    lambda *args: compiled.answer(*args, ticket),
    job.hparams,
    job.worker_program.init(job.params),
    update.Snapshot(job.params, job.model_state),
    source_lib.host_batches(job.source, 0, num_batches),
    job.source.resident,
    jax.random.key(job.seed),
  )
