"""A trace is all it takes: what happened is computed again to the same bits."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, policies, programs, rules
from ga_jax.executors import exact, fast, reference
from ga_jax.policies.parts.base import Action, Kind
from tests import cases, cluster

WORKERS = 4
NEEDS_LOSS = ('adasync', 'abs')
RULE = rules.gap_aware(0.05)  # one object: compiled once


@functools.cache
def job_of(accumulates: bool, dtype=np.float32):
  """The tiny problem, with workers that keep a momentum."""
  return cases.tiny_job(
    rules.gap_aware(0.02, momentum=0.0),
    policies.synchronous() if accumulates else policies.asynchronous(),
    dtype,
    program=programs.dana_slim,
  )


def accidents(name: str, seed: int, tmp_path, num_batches: int = 48):
  """A run with stalls, leaves, joins and returns: (policy, trace, loaded)."""
  rng = np.random.default_rng(seed)
  policy = policies.make(name, WORKERS)
  book = cluster.play(
    policy,
    cluster.stalling(seed),
    num_workers=WORKERS,
    num_batches=num_batches,
    loss_fn=lambda ticket: float(rng.exponential()),
    accidents=rng,
  )
  trace = book.trace(WORKERS + cluster.NEWCOMERS)
  trace.verify()
  path = str(tmp_path / 'trace.npz')
  trace.save(path)
  return policy, trace, ga_jax.Trace.load(path)


@pytest.mark.parametrize('name', policies.POLICIES)
def test_a_loaded_trace_executes_to_the_same_bits(name, tmp_path):
  policy, trace, loaded = accidents(name, 0, tmp_path)
  assert trace.number_of(Kind.LEAVE)
  job = job_of(policy.accumulates)
  state, metrics, executed = exact.execute(job, trace)
  again, metrics_again, _ = exact.execute(job, loaded)
  assert executed == 48
  assert int(state.version) == trace.updates()
  assert cases.same_bits(state, again)
  assert cases.same_bits(metrics, metrics_again)
  assert np.isfinite(metrics['loss']).all()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['asynchronous', 'k_sync'])
def test_lost_workers_begin_again_in_every_executor(name, tmp_path, x64):
  del x64
  policy, trace, _ = accidents(name, 3, tmp_path)
  job = job_of(policy.accumulates, np.float64)
  plain = reference.execute(job, trace)
  for execute in (exact.execute, fast.execute):
    state, _, _ = execute(job, trace)
    assert cases.distance(state.params, plain.params) < 1e-9
  # That a worker's momentum was lost can be seen in the parameters.
  events = trace.events.copy()
  events['event'][events['event'] == Kind.LEAVE] = Kind.JOIN
  kept = reference.execute(job, trace._replace(events=events))
  assert cases.distance(kept.params, plain.params) > 1e-6


def interleaved(name: str, seed: int = 0, **own):
  job = cases.tiny_job(RULE, policies.make(name, 8))
  if 'batch_fn' in own:
    job = dataclasses.replace(job, batches=own.pop('batch_fn'))
  clock = own.pop('clock', None) or clocks.with_fault(
    clocks.heterogeneous(seed), worker_id=3, time=8.0
  )
  return ga_jax.simulate(
    job, clock, **{'num_workers': 8, 'num_batches': 150, **own}
  )


@pytest.mark.parametrize('name', NEEDS_LOSS)
def test_policies_that_need_losses_replay_to_the_same_bits(name, tmp_path):
  result = interleaved(name)
  trace = result.trace
  trace.verify()
  assert result.executed == len(trace.applied()) == 150
  assert trace.number_of(Kind.LEAVE) == 1
  path = str(tmp_path / 'trace.npz')
  trace.save(path)
  job = cases.tiny_job(RULE, policies.synchronous())
  state, metrics, _ = exact.execute(job, ga_jax.Trace.load(path))
  assert cases.same_bits(state, result.state)
  assert cases.same_bits(metrics, result.metrics)
  # Rounds grow as the loss falls, and other losses make another trace.
  sizes = np.diff(
    np.flatnonzero(trace.applied()['action'] == Action.APPLY), prepend=-1
  )
  assert sizes[0] == 1
  assert sizes[-10:].mean() > 1.5

  def bad_batch_fn(batch_id):
    x, y = cases.tiny_problem()[-1](batch_id)
    return x, y + np.float32(0.3 * batch_id)

  other = interleaved(name, batch_fn=bad_batch_fn)
  assert len(other.trace.events) != len(trace.events) or (
    (other.trace.events != trace.events).any()
  )


def test_an_interleaved_run_is_observed_and_stopped():
  seen = []

  def observe(batches, state, metrics):
    seen.append((batches, int(state.count) <= batches, len(metrics['loss'])))
    return batches >= 30

  result = interleaved('abs', block=10, observe=observe)
  assert seen == [(10, True, 10), (20, True, 10), (30, True, 10)]
  assert result.executed == len(result.metrics['loss']) == 30
  result.trace.verify(complete=False)


def test_a_run_whose_workers_all_die_says_so():
  clock = clocks.constant()
  for worker_id in range(8):
    clock = clocks.with_fault(clock, worker_id=worker_id, time=3.5)
  for name in ('synchronous', 'adasync'):
    with pytest.raises(ValueError, match='all workers died'):
      interleaved(name, clock=clock)


def test_a_schedule_alone_refuses_policies_that_need_losses():
  with pytest.raises(ValueError, match='needs losses'):
    ga_jax.schedule(
      policies.make('abs', 2), clocks.constant(), num_workers=2, num_batches=4
    )


def test_exchanged_submissions_are_not_penalised(x64):
  """EASGD's force is computed at the parameters of now: no penalty."""
  del x64
  finals = []
  for rule in (
    rules.asgd(1.0, 0.0),
    rules.gap_aware(1.0, 0.0),
    rules.dc_asgd(1.0, 0.0),
  ):
    result = ga_jax.simulate(
      cases.tiny_job(
        rule,
        policies.asynchronous(),
        np.float64,
        program=functools.partial(
          programs.easgd, learning_rate=0.05, num_workers=4, local_steps=2
        ),
      ),
      clocks.heterogeneous(0),
      num_workers=4,
      num_batches=40,
      executor='exact',
    )
    assert result.metrics['staleness'].max() > 0  # as it was
    assert not result.metrics['gap'].any()
    assert (result.metrics['mean_penalty'] == 1).all()
    finals.append(jax.device_get(result.params))
  assert cases.same_bits(finals[0], finals[1])
  assert cases.same_bits(finals[0], finals[2])
