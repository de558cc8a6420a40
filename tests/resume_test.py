"""A run that is interrupted and resumed has the bits of one that is not."""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
from typing import NamedTuple

import numpy as np
import pytest

from ga_jax import clocks, policies, programs, rules
from ga_jax.executors import blocks, exact, execution, fast, saving, slots
from ga_jax.policies.parts.base import Kind
from ga_jax.record import checkpoints
from ga_jax.server import recovery
from ga_jax.simulation import simulate, virtual_cluster
from tests import cases

BLOCK = 8
EVERY = 10  # updates; no multiple of the block


class Case(NamedTuple):
  """What is trained; the tiny problem has running statistics."""

  rule: object
  policy: str = 'asynchronous'
  program: object = programs.gradient
  num_batches: int = 60  # leaves 4 arrivals after the last whole block
  clock: clocks.Clock = clocks.heterogeneous(0)


FEW = ('rounds', 'a worker that keeps a momentum and is lost')  # by default
CASES = {
  'plain': Case(cases.rule('ga', 0.02)),
  'a momentum per worker': Case(cases.rule('dana_ga', 0.02)),
  'rounds': Case(cases.rule('ga', 0.02), policy='softsync'),
  'a worker that keeps a momentum and is lost': Case(
    rules.asgd(0.02, momentum=0.0),
    program=programs.dana_slim,
    clock=clocks.with_fault(clocks.homogeneous(1), worker_id=1, time=9.0),
  ),
  'several batches per ticket, fewer in the last one': Case(
    rules.asgd(1.0, momentum=0.0),
    program=functools.partial(
      programs.local_sgd,
      learning_rate=0.02,
      local_steps=2,
      local_momentum=0.5,
    ),
    num_batches=77,
  ),
}


class Interrupted(Exception):
  """The power was cut."""


@functools.cache
def prepared(name):
  """(job, trace) of a case."""
  case = CASES[name]
  policy = policies.make(case.policy, cases.WORKERS)
  job = cases.tiny_job(case.rule, policy, program=case.program)
  trace = virtual_cluster.schedule(
    policy,
    case.clock,
    num_workers=cases.WORKERS,
    num_batches=case.num_batches,
    batches_per_ticket=job.worker_program.num_batches,
  )
  return job, trace


class Watcher:
  """An `observe` that writes down what it sees, and interrupts at a moment."""

  def __init__(self, stop_at=float('inf'), raise_at=float('inf')):
    self.seen = []
    self._stop_at, self._raise_at = stop_at, raise_at

  def __call__(self, batches, state, metrics):
    assert int(state.count) <= batches  # less where a round is open
    self.seen.append((batches, metrics['loss'].tolist()))
    if batches >= self._raise_at:
      raise Interrupted
    return batches >= self._stop_at


def execute(name, store=None, observe=None):
  where = saving.Checkpoints(store, EVERY) if store else None
  return fast.execute(*prepared(name), observe, BLOCK, checkpoints=where)


@functools.cache
def uninterrupted(name):
  """(result, what `observe` saw)."""
  watcher = Watcher()
  return execute(name, observe=watcher), watcher.seen


def assert_same_run(result, wanted):
  state, metrics, done = result
  assert cases.same_bits(state, wanted[0])
  assert metrics.keys() == wanted[1].keys()
  for key, values in wanted[1].items():
    assert metrics[key].dtype == values.dtype
    np.testing.assert_array_equal(metrics[key], values)
  assert done == wanted[2]


def blocks_done(store, seen):
  """How many of the blocks of a run its newest checkpoint holds."""
  done = store.newest().host['done'] if store.steps() else 0
  ends = np.cumsum([len(losses) for _, losses in seen])
  return int(np.searchsorted(ends, done, 'right'))


@pytest.mark.parametrize(
  'how', ['stop_at', pytest.param('raise_at', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow) if name not in FEW else name
    for name in CASES
  ],
)
def test_a_resumed_run_has_the_same_bits(name, how, tmp_path):
  wanted, all_seen = uninterrupted(name)
  store = checkpoints.CheckpointStore(tmp_path, keep=1)
  for block in (0, len(all_seen) // 2, len(all_seen) - 2):
    start = blocks_done(store, all_seen)
    watcher = Watcher(**{how: all_seen[block][0]})
    with contextlib.suppress(Interrupted):
      execute(name, store, watcher)
    assert watcher.seen == all_seen[start : block + 1]
    saved = blocks_done(store, all_seen)
    assert (saved == block + 1) if how == 'stop_at' else (saved <= block)
  assert saved > 0
  watcher = Watcher()
  assert_same_run(execute(name, store, watcher), wanted)
  assert watcher.seen == all_seen[saved:]


def test_the_cases_are_what_they_say():
  for name, case in CASES.items():
    job, trace = prepared(name)
    held = trace.applied()['num_batches']
    assert len(held) % BLOCK
    assert job.accumulates == (name == 'rounds')
    assert (trace.updates() < len(held)) == job.accumulates
    assert (trace.number_of(Kind.LEAVE) > 0) == ('lost' in name)
    assert (len(set(held.tolist())) > 1) == ('fewer' in name), case


def test_checkpoints_change_nothing_and_fall_on_blocks(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path, keep=9)
  watcher = Watcher()
  result = execute('plain', store, watcher)
  assert_same_run(result, uninterrupted('plain')[0])
  assert watcher.seen == uninterrupted('plain')[1]
  assert store.steps() == [16, 24, 32, 40, 56, 60]
  # What was finished is only loaded.
  assert_same_run(execute('plain', store, pytest.fail), result)
  # A resumed run saves where the other one did.
  for path in sorted(tmp_path.iterdir())[2:]:
    shutil.rmtree(path)
  execute('plain', store)
  assert store.steps() == [16, 24, 32, 40, 56, 60]


def test_a_damaged_checkpoint_costs_only_time(tmp_path, capsys):
  store = checkpoints.CheckpointStore(tmp_path)
  execute('plain', store, Watcher(stop_at=40))
  assert store.steps() == [24, 32, 40]
  pathlib.Path(store.newest().path, 'host.json').unlink()
  watcher = Watcher()
  result = execute('plain', store, watcher)
  assert_same_run(result, uninterrupted('plain')[0])
  assert watcher.seen[0][0] == 40  # the block after 32
  assert 'host.json is missing' in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path)
  where = saving.Checkpoints(store, EVERY)
  job, trace = prepared('plain')
  fast.execute(job, trace, block=BLOCK, checkpoints=where)
  _, other = prepared('rounds')
  with pytest.raises(ValueError, match='is of a run with another trace'):
    fast.execute(job, other, block=BLOCK, checkpoints=where)
  with pytest.raises(ValueError, match='with another block length'):
    fast.execute(job, trace, block=BLOCK + 1, checkpoints=where)
  with pytest.raises(ValueError, match=r'holds .* at \.state\.opt_state'):
    fast.execute(
      dataclasses.replace(job, rule=cases.rule('dana_ga', 0.02)),
      trace,
      block=BLOCK,
      checkpoints=where,
    )


def saved_with(tmp_path, **given):
  """The store of a run that has ended."""
  store = checkpoints.CheckpointStore(tmp_path)
  where = saving.Checkpoints(store, EVERY, **given)
  fast.execute(*prepared('plain'), block=BLOCK, checkpoints=where)
  return store


def rule_fn(hparams):
  return rules.asgd(hparams['rate'])


@pytest.mark.parametrize(
  ('other', 'about', 'said'),
  [
    ({'seed': 1}, {}, r'another seed \(0, not 1\): '),
    (
      {'stats_momentum': 0.5},
      {},
      r'another stats_momentum \(0.9, not 0.5\): ',
    ),
    (
      {'hparams': {'rate': 0.1}, 'rule': rule_fn, 'program': None},
      {},
      'another hparams: ',
    ),
    ({}, {'rate': 0.02}, r'another rate \(0.01, not 0.02\): '),
    (
      {'seed': 1},
      {'rate': 0.01, 'data': 'b'},
      r"another seed \(0, not 1\), data \(None, not 'b'\): ",
    ),
  ],
)
def test_what_differs_from_the_run_of_a_checkpoint_is_named(
  other, about, said, tmp_path
):
  store = saved_with(tmp_path, about={'rate': 0.01})
  job, trace = prepared('plain')
  where = saving.Checkpoints(store, EVERY, about={'rate': 0.01, **about})
  job = dataclasses.replace(job, **other)
  with pytest.raises(ValueError, match=f'is of a run with {said}resume with'):
    fast.execute(job, trace, block=BLOCK, checkpoints=where)


def test_an_older_checkpoint_is_compared_by_what_it_holds(tmp_path):
  store = saved_with(tmp_path)
  job, trace = prepared('plain')
  newest = store.newest()
  arrays = newest.load(
    blocks.first_carry(job, slots.plan(trace), cases.WORKERS)
  )
  old = {'trace': saving.digest(trace), 'block length': BLOCK}
  host = {k: v for k, v in newest.host.items() if k != 'about'}
  store.save(newest.step, arrays, {**host, 'run': old})
  where = saving.Checkpoints(store, EVERY, about={'rate': 0.01})
  result = fast.execute(job, trace, pytest.fail, BLOCK, checkpoints=where)
  assert_same_run(result, uninterrupted('plain')[0])


def test_a_trace_that_ends_before_the_checkpoint_is_refused(tmp_path):
  """Nothing would be computed, and the start be saved as the newest."""
  job, trace = prepared('plain')
  store = checkpoints.CheckpointStore(tmp_path)
  exact.execute(job, trace, checkpoints=saving.Checkpoints(store, EVERY))
  newest = store.newest()
  with pytest.raises(recovery.RecoveryError, match=r'there are only \d+'):
    exact.execute(
      job, trace.until(10, 10), checkpoints=saving.Checkpoints(store)
    )
  assert store.newest().path == newest.path


def test_an_exact_run_of_0_1_goes_on(tmp_path):
  """Its checkpoints held losses by ticket and metrics by arrival."""
  job = cases.tiny_job(cases.rule('ga', 0.02), policies.make('adasync', 3))
  store = checkpoints.CheckpointStore(tmp_path)

  def simulated(observe=None, store=None):
    return simulate.simulate(
      job,
      clocks.heterogeneous(0),
      num_workers=3,
      num_batches=60,
      observe=observe,
      checkpoints=store and saving.Checkpoints(store),
    )

  simulated(Watcher(stop_at=30), store)
  newest = store.newest()
  host = dict(newest.host)
  assert len(host['losses']) >= len(host['log']['loss']) == 30
  host['losses'] = dict(enumerate(host['losses'].tolist()))
  host['log'] = [
    {name: values[i] for name, values in host['log'].items()} for i in range(30)
  ]
  like = execution.Execution(job).like(host['workers'], host['versions'])
  store.save(newest.step, newest.load(like), host)
  watcher, wanted = Watcher(), simulated()
  result = simulated(watcher, store)
  assert watcher.seen[0][0] == 31
  assert_same_run(
    (result.state, result.metrics, result.executed),
    (wanted.state, wanted.metrics, wanted.executed),
  )
