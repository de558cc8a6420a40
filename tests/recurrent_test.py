"""A worker that remembers: the program, every executor, and live runs."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, compression, policies, programs
from ga_jax.compression import base as compression_base
from ga_jax.executors import exact, reference
from ga_jax.executors import execution as execution_lib
from ga_jax.job import program as program_lib
from ga_jax.job import source
from ga_jax.live import threads
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.server import update
from tests import cases

STREAMS, ROWS, WIDTH = 4, 3, 5


def memory():
  """Empty: what was read of the last batch, and how many came before."""
  return {'read': np.zeros((ROWS, WIDTH)), 'length': np.zeros((), np.int32)}


def loss_fn(params, remembered, batch, key):
  """A recurrence over batches, with running statistics."""
  del key
  stats, before = remembered
  hidden = jnp.tanh(batch @ params['w'] + before['read'] @ params['u'])
  loss = jnp.mean((hidden.sum(1) - batch[:, 0] * 2) ** 2)
  after = {'read': hidden, 'length': before['length'] + 1}
  return loss, (0.9 * stats + 0.1 * hidden.mean(), after)


def batch_fn(batch_id):
  rng = np.random.default_rng([5, batch_id])
  return rng.normal(size=(ROWS, WIDTH))


SOURCE = source.Source(batch_fn, streams=STREAMS)


def program(loss_fn):
  return programs.recurrent(loss_fn, memory, STREAMS)


def problem(dtype=np.float64):
  rng = np.random.default_rng(0)
  params = {
    name: (0.3 * rng.normal(size=(WIDTH, WIDTH))).astype(dtype)
    for name in ('w', 'u')
  }
  return params, np.zeros((), dtype)


def answers(made, batch_ids, state=None):
  """(lengths that were met, states) of batches one after the other."""
  params, stats = problem(np.float32)
  state = made.init(params) if state is None else state
  found, states = [], []
  for batch_id in batch_ids:
    batches = batch_fn(batch_id)[None].astype('f')
    work = program_lib.work(jax.random.key(0), batches, batch_id, 0)
    sent = update.Snapshot(*jax.tree.map(jnp.asarray, (params, stats)))
    submission, state = made.run(state, sent, work)
    assert np.isfinite(submission.loss)
    found.append(int(state.memory['length']))
    states.append(state)
  return found, states


def single(loss_fn):
  """The program in single precision."""
  return programs.recurrent(
    loss_fn,
    lambda: jax.tree.map(
      lambda x: x.astype('f') if x.dtype == np.float64 else x, memory()
    ),
    STREAMS,
  )


def test_memory_is_carried_where_the_batch_continues_it():
  made = single(loss_fn)
  assert made.streams == STREAMS
  lengths, _ = answers(made, [2, 6, 10, 14])
  assert lengths == [1, 2, 3, 4]
  lengths, _ = answers(made, [0, 4, 5, 9, 8, 16, 16])
  assert lengths == [1, 2, 1, 2, 1, 1, 1]


def test_a_refused_answer_leaves_the_old_memory():
  made = single(loss_fn)
  _, states = answers(made, [1, 5, 9])
  again, _ = answers(made, [9], states[1])  # the third was refused
  assert again == [3]
  begun, _ = answers(made, [9], states[0])
  assert begun == [1]


def test_the_first_batch_of_all_begins_a_memory():
  lengths, _ = answers(single(loss_fn), [0])
  assert lengths == [1]


def simulated(executor, policy, clock, num_batches=28, **own):
  return ga_jax.simulate(
    job_of(policy, made=own.pop('program', program)),
    clock,
    num_workers=STREAMS,
    num_batches=num_batches,
    executor=executor,
    **own,
  )


def job_of(policy, dtype=np.float64, made=program):
  params, stats = problem(dtype)
  return ga_jax.Job(
    loss_fn,
    params,
    SOURCE,
    ga_jax.gap_aware(0.02),
    policy,
    model_state=stats,
    stats_momentum=0.9,
    program=made,
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ringmaster', 'asynchronous', 'synchronous'])
def test_executors_agree(name, x64):
  """Four workers, of which one dies; gradients are discarded or averaged."""
  del x64
  policy = policies.make(
    name, STREAMS, **({'max_delay': 2} if name == 'ringmaster' else {})
  )
  clock = clocks.with_fault(clocks.heterogeneous(1), worker_id=1, time=3.0)
  fast = simulated('fast', policy, clock, block=4)
  exact_run = simulated('exact', policy, clock)
  trace = exact_run.trace
  trace.verify()
  assert trace.number_of(Kind.LEAVE) == 1
  discarded = (trace.events['action'] == Action.DISCARD).any()
  assert discarded == (name == 'ringmaster')
  with jax.disable_jit():
    plain = reference.execute(job_of(policy), trace)
  for state in (fast.state, exact_run.state):
    assert cases.distance(state.params, plain.params) < 1e-9
    assert cases.distance(state.model_state, plain.model_state) < 1e-9


def test_the_memory_matters_and_a_lost_worker_begins_anew(x64):
  """What the executors remember is what the trace says, batch by batch."""
  del x64
  policy, clock = (
    policies.asynchronous(),
    clocks.with_fault(clocks.homogeneous(0), worker_id=2, time=7.5),
  )
  execution = execution_lib.Execution(job_of(policy))
  trace = simulated('exact', policy, clock, num_batches=90).trace
  last, lengths, longest = {}, collections.Counter(), 0
  for row in trace.events.tolist():
    execution.process(row)
    _, event, worker, _, _, batch, *_ = row
    if event == Kind.LEAVE:
      last.pop(worker, None)
      lengths.pop(worker, None)
    elif event == Kind.ARRIVE:
      goes_on = last.get(worker) == batch - STREAMS
      lengths[worker] = lengths[worker] + 1 if goes_on else 1
      last[worker], longest = batch, max(longest, lengths[worker])
      state = execution.worker_state(worker)
      assert int(state.memory['length']) == lengths[worker]
  assert longest == len(range(0, 90, STREAMS))
  forgetful = simulated(
    'exact',
    policy,
    clock,
    num_batches=90,
    program=lambda loss_fn: program(
      lambda params, remembered, batch, key: loss_fn(
        params, (remembered[0], memory()), batch, key
      )
    ),
  )
  assert cases.distance(execution.state.params, forgetful.params) > 1e-3


@pytest.mark.slow
def test_executors_agree_on_compression_with_a_memory(x64):
  del x64
  stage = compression.COMPRESSIONS['topk']()
  policy, clock = policies.asynchronous(), clocks.homogeneous(0)

  def compressed(loss_fn):
    return compression_base.compressed(program(loss_fn), stage)

  own = {'program': compressed, 'num_batches': 40}
  fast = simulated('fast', policy, clock, **own)
  other = simulated('exact', policy, clock, **own)
  assert cases.distance(fast.params, other.params) < 1e-9


def run_on_threads(num_batches=60, **own):
  job = job_of(policies.asynchronous(), np.float32, single)
  run = threads.Threads(
    job, num_workers=STREAMS, num_batches=num_batches, live=ga_jax.Live(**own)
  )
  return job, run.run()


def test_a_threads_run_replays_to_the_same_bits():
  job, result = run_on_threads()
  result.trace.verify()
  state, _, _ = exact.execute(job, result.trace)
  assert cases.same_bits(state, result.state)
  issues = result.trace.events[result.trace.events['event'] == Kind.ISSUE]
  kept = [
    int(row['first_batch']) % STREAMS == int(row['worker_id'])
    for row in issues[: len(issues) // 2]
  ]
  assert np.mean(kept) > 0.5  # each reads its own stream


def test_reading_ahead_is_refused_with_a_memory():
  with pytest.raises(ValueError, match='pipeline_depth must be 0'):
    run_on_threads(pipeline_depth=1)


def test_streams_of_program_and_batches_must_agree():
  params, stats = problem(np.float32)
  with pytest.raises(ValueError, match=r'remembers 4 streams, .* streams=0'):
    ga_jax.simulate(
      ga_jax.Job(
        loss_fn,
        params,
        batch_fn,
        ga_jax.gap_aware(0.02),
        policies.asynchronous(),
        model_state=stats,
        stats_momentum=0.9,
        program=single,
      ),
      clocks.constant(),
      num_workers=2,
      num_batches=4,
    )
  with pytest.raises(
    ValueError, match='streams must be an integer of at least 1, got 0'
  ):
    programs.recurrent(loss_fn, memory, 0)


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_ray_replays_to_the_same_bits():
  """The memories stay with the workers' processes."""
  from tests import ray_runs

  job = job_of(policies.asynchronous(), np.float32, single)
  with ray_runs.cluster():
    result = ga_jax.run_on_ray(job, num_workers=2, num_batches=60)
    ray_runs.check(job, result)
  assert result.trace.updates() == 60
