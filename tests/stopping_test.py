"""Stopped and killed runs go on where they were."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from experiments.records import record
from experiments.running import control as control_lib
from experiments.running import setup, train
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax import clocks, policies, programs, rules
from ga_jax.executors.saving import Checkpoints
from ga_jax.policies.parts.base import Kind
from ga_jax.record.checkpoints import CheckpointStore
from ga_jax.record.trace import read_rows
from ga_jax.simulation import simulate
from tests import cases, scripts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


RULE = rules.gap_aware(0.02, 0.0)  # one object: compiled once


def simulated(name, folder=None, stop_at=10**9, num_batches=150):
  store = folder and CheckpointStore(str(folder))
  return ga_jax.simulate(
    cases.tiny_job(RULE, policies.make(name, 6), program=programs.dana_slim),
    clocks.with_fault(clocks.heterogeneous(0), worker_id=2, time=9.0),
    num_workers=6,
    num_batches=num_batches,
    executor='exact',
    block=7,
    observe=lambda batches, state, metrics: batches >= stop_at,
    checkpoints=store and Checkpoints(store, 15),
  )


@pytest.mark.parametrize(
  'name',
  [
    'abs',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ('k_sync', 'asynchronous', 'adasync', 'ringmaster_stops')
    ),
  ],
)
def test_the_exact_executor_goes_on_to_the_same_bits(name, tmp_path):
  whole = simulated(name)
  for stop_at in (20, 63, 64, 10**9):
    part = simulated(name, tmp_path, stop_at)
  assert part.executed == whole.executed == 150
  assert cases.same_bits(whole.state, part.state)
  assert cases.same_bits(whole.metrics, part.metrics)
  assert (whole.trace.events == part.trace.events).all()


def test_what_differs_from_a_stopped_run_with_losses_is_named(tmp_path):
  """Its events are not known at the start: they are compared as they come."""
  simulated('abs', tmp_path, 20)
  with pytest.raises(ValueError, match=r'num_batches \(150, not 149\)'):
    simulated('abs', tmp_path, num_batches=149)
  with pytest.raises(ValueError, match=r'another policy: '):
    simulated('adasync', tmp_path)


SLOWED = tuple((worker, 40.0) for worker in range(3))  # each batch 40 times


@pytest.mark.parametrize('executor', ['fast', 'exact'])
def test_the_trace_of_a_stopped_run_ends_there(executor):
  """Also where the round is closed by a worker that is lost."""
  job = ga_jax.Job(
    lambda p, state, x, key: (jnp.mean((x - p) ** 2), state),
    jnp.zeros(()),
    lambda batch_id: np.full(4, batch_id, np.float32),
    rules.asgd(0.1),
    policies.synchronous(),
  )

  def played(stop_at):
    return ga_jax.simulate(
      job,
      clocks.with_fault(
        clocks.constant(), worker_id=1, time=2.5, noticed_after=1.0
      ),
      num_workers=3,
      num_batches=12,
      executor=executor,
      block=1,
      observe=lambda batches, state, metrics: batches >= stop_at,
    )

  whole = played(12)
  whole.trace.verify()
  closes = np.flatnonzero(whole.trace.events['event'] == Kind.CLOSE)
  assert len(closes)
  ends = set()
  for stop_at in range(1, 12):
    part = played(stop_at)
    number = len(part.trace.events)
    assert (part.trace.events == whole.trace.events[:number]).all()
    assert part.trace.num_batches == 12
    assert part.executed == len(part.trace.applied()) == stop_at
    assert int(part.state.version) == part.trace.updates()
    ends.add(int(part.trace.events['event'][-1]))
    state, _, executed = simulate.EXECUTORS[executor](job, part.trace, block=1)
    assert executed == stop_at
    assert cases.same_bits(state, part.state)
  # The exact executor stops before the round is closed, blocks close it.
  closed = {Kind.CLOSE} if executor == 'fast' else set()
  assert ends == {Kind.ARRIVE} | closed


def test_the_summary_of_a_stopped_run_is_of_what_was_done(relaxed):
  """Three workers that each take 1: 44 of 132 batches arrive by time 15."""
  del relaxed
  settings = check.check(
    settings_lib.Settings(
      model='mlp',
      epochs=3.0,
      workers=3,
      learning_rate=0.02,
      clock='constant',
    )
  )
  control = control_lib.Control()
  done = train.train(
    settings, observe=lambda now: now.row and control.stop(), control=control
  )
  summary, seen = done.summary, done.result.metrics
  assert summary['stopped']
  assert summary['batches'] == summary['updates'] == 44
  assert summary['simulated_time'] == 15
  assert summary['simulated_speedup'] == 44 / 15
  assert summary['wasted_work'] == 0
  params, _ = setup.initial(settings)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert summary['bytes_pushed'] == 44 * size
  assert summary['bytes_pulled'] == (3 + 43) * size  # one after every arrival
  assert summary['messages'] == 44 + 3 + 43
  assert summary['mean_staleness'] == seen['staleness'].mean()
  assert sum(summary['staleness_histogram']) == 44
  assert done.result.trace.num_batches == 132
  done.result.trace.verify(complete=False)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
  simulated('asynchronous', tmp_path, 30)
  with pytest.raises(ValueError, match='of another run'):
    simulated('k_sync', tmp_path)


@pytest.mark.parametrize(
  ('fields', 'every_updates'),
  [
    ({'executor': 'fast'}, 20),
    pytest.param(
      {'executor': 'exact', 'method': 'abs'}, 20, marks=pytest.mark.slow
    ),
    ({'runtime': 'threads', 'devices': 2}, 20),
    pytest.param(  # its record is enough; nothing waits for the observer
      {'runtime': 'threads', 'devices': 2, 'straggler': SLOWED},
      None,
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_run_that_is_told_to_stop_goes_on(
  fields, every_updates, tmp_path, relaxed
):
  del relaxed
  settings = check.check(
    settings_lib.Settings(
      **{
        'model': 'mlp',
        'epochs': 3.0,
        'workers': 3,
        'learning_rate': 0.02,
        **fields,
      }
    )
  )
  keeping = setup.Keeping(str(tmp_path), every_updates)
  rows, control = [], control_lib.Control()

  def observe(now):
    if now.row:
      rows.append(now.row)
      control.stop()

  if settings.straggler:
    train.train(settings)  # or all is done before the first row is evaluated
  first = train.train(
    settings, observe=observe, keeping=keeping, control=control
  )
  assert first.summary['stopped']
  assert len(rows) == 1
  second = train.train(
    settings,
    observe=lambda now: now.row and rows.append(now.row),
    keeping=keeping._replace(resume=True),
  )
  assert not second.summary['stopped']
  assert second.summary['batches'] == 3 * 44
  second.result.trace.verify()
  assert [row['batches'] for row in rows][-1] == 3 * 44
  epochs = [round(row['epoch']) for row in rows]
  assert epochs == ([1, 2, 3] if every_updates else [1, 1, 2, 3])
  if settings.runtime == 'simulate':
    whole = train.train(settings)
    assert cases.same_bits(whole.result.state, second.result.state)
    assert whole.summary['test_error'] == second.summary['test_error']
  else:
    events = first.result.trace.events
    assert (second.result.trace.events[: len(events)] == events).all()


@pytest.fixture
def script():
  """Starts scripts; those that still run after the test are killed."""
  begun = []

  def start(*arguments, name='train', **options):
    process = subprocess.Popen(
      [sys.executable, '-m', f'experiments.{name}', *arguments],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      **options,
    )
    begun.append(process)
    return process

  yield start
  for process in begun:
    process.kill()
    process.wait()


def wait_for_rows(workdir, number, process):
  """Waits until a run has written so many epochs."""
  path = os.path.join(workdir, 'metrics.jsonl')
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and process.poll() is None:
    if os.path.exists(path):
      with open(path) as file:
        if len(file.readlines()) >= number:
          return
    time.sleep(0.02)
  process.kill()  # or its end would be waited for
  raise AssertionError(process.communicate())


def test_sigint_finishes_the_update_and_says_how_to_go_on(script, tmp_path):
  workdir = str(tmp_path / 'run')
  arguments = ['--runtime=threads', '--workers=2', '--model=mlp']
  process = script(
    *arguments,
    '--epochs=2000',
    '--checkpoint_every=100',
    f'--workdir={workdir}',
  )
  wait_for_rows(workdir, 3, process)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 130, err
  assert 'once more stops at once' in err
  assert f'go on: python -m experiments.train --resume --workdir={workdir}' in (
    out
  )
  with open(os.path.join(workdir, 'summary.json')) as file:
    summary = json.load(file)
  assert summary['stopped'] is True
  trace = ga_jax.Trace.load(os.path.join(workdir, 'trace.npz'))
  trace.verify(complete=False)
  assert summary['updates'] == trace.updates() > 3 * 44 - 1
  code, _, err = scripts.call(
    'train', '--resume', f'--workdir={workdir}', '--workers=3'
  )
  assert code == 2
  assert err.startswith('error: --workers=3: --resume takes it from')


def test_a_run_that_has_finished_is_left_as_it_is(tmp_path):
  workdir = tmp_path / 'run'
  small = '--workers=2', '--model=mlp', '--epochs=0.3', '--checkpoint_every=5'
  assert scripts.call('train', *small, f'--workdir={workdir}').code == 0
  before = {path: path.read_bytes() for path in workdir.glob('*.*')}
  code, out, _ = scripts.call('train', '--resume', f'--workdir={workdir}')
  assert (code, out) == (
    0,
    f'{workdir} has finished already: nothing is computed\n',
  )
  assert {path: path.read_bytes() for path in workdir.glob('*.*')} == before


def test_a_run_stopped_before_its_first_update_can_go_on(tmp_path, monkeypatch):
  workdir = str(tmp_path / 'run')
  small = '--runtime=threads', '--workers=2', '--model=mlp', '--epochs=0.2'
  small += ('--quiet',)

  def at_once(self, hook):
    self.stopping = True
    hook()

  with monkeypatch.context() as patch:
    patch.setattr(control_lib.Control, 'on_stop', at_once)
    code, out, err = scripts.call('train', *small, f'--workdir={workdir}')
  assert (code, err) == (0, '')  # no signal told it
  assert out.splitlines()[-1] == (
    'stopped before the first gradient was applied; go on: python -m '
    f'experiments.train --resume --workdir={workdir}'
  )
  assert not os.path.exists(os.path.join(workdir, 'summary.json'))
  code, out, err = scripts.call(
    'train', '--resume', f'--workdir={workdir}', '--quiet'
  )
  assert (code, err) == (0, '')
  assert '9 updates from 9 batches' in out


@pytest.mark.slow
@pytest.mark.parametrize('devices_per_worker', [1, 2])
def test_a_run_killed_before_any_checkpoint_goes_on(
  devices_per_worker, script, tmp_path
):
  """The record is enough: all of it is computed again."""
  workdir, path = str(tmp_path), str(tmp_path / setup.ROWS)
  process = script(
    '--runtime=threads',
    '--workers=2',
    '--model=mlp',
    '--epochs=200',
    f'--devices_per_worker={devices_per_worker}',
    f'--workdir={workdir}',
  )
  wait_for_rows(workdir, 3, process)
  process.kill()
  process.communicate()
  written = read_rows(path)
  assert not os.path.exists(tmp_path / setup.CHECKPOINTS)
  process = script('--resume', f'--workdir={workdir}')
  _, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  trace = ga_jax.Trace.load(str(tmp_path / 'trace.npz'))
  trace.verify()
  assert trace.num_batches == 200 * 44
  assert trace.events[: len(written)].tolist() == written
  with open(tmp_path / 'metrics.jsonl') as file:
    epochs = [round(json.loads(line)['epoch']) for line in file]
  assert epochs == sorted(set(epochs))
  assert epochs[-1] == 200
  process = script(f'--workdir={workdir}', name='replay')
  out, err = process.communicate(timeout=300)
  assert (process.returncode, out[:9]) == (0, 'same bits'), err
  # A run that has ended leaves only what it went on with.
  process = script('--resume', f'--workdir={workdir}')
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert f'{trace.updates()} updates from {trace.num_batches} batches' in out


KILLS = 20


@pytest.mark.slow
@pytest.mark.parametrize('runtime', ['simulate', 'threads'])
def test_a_run_killed_again_and_again_has_the_same_bits(
  runtime, script, tmp_path
):
  """SIGKILL at random moments, also in the middle of a checkpoint."""
  rng = random.Random(0)
  workdir, whole = str(tmp_path / 'killed'), str(tmp_path / 'whole')
  arguments = [
    f'--runtime={runtime}',
    '--workers=3',
    '--model=mlp',
    '--epochs=300',
    '--method=ga',
    '--checkpoint_every=25',
  ]
  kills, begin, written = 0, [*arguments], []
  while True:
    process = script(*begin, f'--workdir={workdir}')
    if kills == KILLS:
      _, err = process.communicate(timeout=600)
      assert process.returncode == 0, err
      break
    folder = os.path.join(workdir, setup.CHECKPOINTS)
    while not (os.path.isdir(folder) and os.listdir(folder)):
      assert process.poll() is None, process.communicate()
      time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 3.0) + (2.5 if kills else 0.0))
    process.kill()
    process.communicate()
    kills += 1
    rows = read_rows(os.path.join(workdir, setup.ROWS))
    assert rows[: len(written)] == written  # nothing is lost
    written = rows
    begin = ['--resume', '--checkpoint_every=25']
  settings = record.load_settings(workdir)
  trace = ga_jax.Trace.load(os.path.join(workdir, 'trace.npz'))
  trace.verify()  # every batch in exactly one applied round
  assert trace.num_batches == 300 * 44
  if runtime == 'threads':
    assert trace.events[: len(written)].tolist() == written
    assert len(written) > 500
  with open(os.path.join(workdir, 'metrics.jsonl')) as file:
    batches = [json.loads(line)['batches'] for line in file]
  assert batches == sorted(set(batches))
  if runtime == 'simulate':
    process = script(*arguments, f'--workdir={whole}')
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    like = jax.eval_shape(lambda: setup.initial(settings))
    both = [
      ga_jax.record.params.load_params(os.path.join(folder, 'params'), like)
      for folder in (workdir, whole)
    ]
    assert cases.same_bits(*both)
    assert np.isfinite(cases.flat(both[0])).all()
