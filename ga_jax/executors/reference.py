"""The reference: a trace in plain Python, nothing compiled, nothing shared.

It exists to be read, and to be what the executors are compared with.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ga_jax.job import job as job_lib
from ga_jax.job import program as program_lib
from ga_jax.job import source as source_lib
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.server import statistics, update


class ReferenceResult(NamedTuple):
  """What is left at the end."""

  params: Any
  opt_state: Any
  model_state: Any
  losses: np.ndarray  # per applied arrival


def execute(job: job_lib.Job, trace):
  """Computes a trace.

  Args:
    job: what to compute.
    trace: a `Trace`.

  Returns:
    A `ReferenceResult`.
  """
  rule = job.rule_fn(job.hparams)
  params, stats = jax.tree.map(jnp.asarray, (job.params, job.model_state))
  state = rule.init(params)
  program = job.worker_program
  published = (rule.lookahead(params, state), stats)
  sent, workers, losses = {}, {}, []
  round_, count, in_round = [], 0, 0

  for row in trace.events:
    ticket, worker = int(row['ticket_id']), int(row['worker_id'])
    entered = row['action'] in (Action.APPLY, Action.ACCUMULATE)
    if row['event'] == Kind.ISSUE:
      sent[ticket] = published
    if row['event'] == Kind.LEAVE:
      workers.pop(worker, None)
      state = rule.leave(state, worker)
    if row['event'] == Kind.ARRIVE and entered:
      snapshot = update.Snapshot(*sent[ticket])
      own = workers.get(worker, program.init(job.params))
      answer, own = program.run(own, snapshot, work(job, row))
      answer, workers[worker], snapshot = program_lib.received(
        program, own, answer, snapshot, params
      )
      stale = 0 if program.exchange else row['staleness']
      extra = {
        'stale_params': snapshot.params,
        'staleness': np.int32(stale),
        'worker_id': np.int32(worker),
        'count': np.int32(count),
      }
      corrected, state = rule.correct(answer.grads, state, params, **extra)
      round_.append((float(row['weight']), corrected))
      number = int(row['num_batches'])
      in_round += number
      three = answer.model_state, stats, snapshot.model_state
      stats = folded(job.fold, *three, number)
      losses.append(float(answer.loss))
    if row['action'] == Action.APPLY:
      mean = weighted_mean(round_)
      alone = extra if not job.accumulates else {'count': np.int32(count)}
      updates, state = rule.step(mean, state, params, **alone)
      params = optax.apply_updates(params, updates)
      published = (rule.lookahead(params, state), stats)
      round_, count, in_round = [], count + in_round, 0
  return ReferenceResult(params, state, stats, np.array(losses))


def work(job: job_lib.Job, row):
  """The batches of a row's ticket, with their keys."""
  first, number = int(row['first_batch']), int(row['num_batches'])
  batches = source_lib.host_batches(job.source, first, number)
  key = jax.random.key(job.seed)
  return program_lib.work(key, batches, first, int(row['attempt']))


def folded(fold_fn, returned, now, sent, number: int):
  """Model statistics after an arrival of so many batches."""
  if not isinstance(fold_fn, statistics.Averages):
    return fold_fn(returned, now, sent, jnp.int32(number))
  kept = fold_fn.momentum**number
  return jax.tree.map(
    lambda r, n, s: (
      n + (r - s)
      if jnp.issubdtype(n.dtype, jnp.integer)
      else r + kept * (n - s)
    ),
    returned,
    now,
    sent,
  )


def weighted_mean(round_):
  """Of a list of (weight, tree)."""
  total = sum(weight for weight, _ in round_) or 1.0
  scaled = [jax.tree.map(lambda g, w=w: w * g, tree) for w, tree in round_]
  return jax.tree.map(lambda *gs: sum(gs) / total, *scaled)
