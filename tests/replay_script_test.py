"""The record of a run: computed again to the same bits, and checked."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from experiments.catalogue import methods
from experiments.records import record
from experiments.replaying import rounding
from experiments.running import environment, setup, train
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax.executors import exact
from ga_jax.policies.parts.base import Kind
from ga_jax.record import params as params_lib
from tests import cases

pytestmark = pytest.mark.usefixtures('relaxed')

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
UNTIL = 7

GA = settings_lib.Settings(
  method='ga',
  model='mlp_bn',
  workers=4,
  batch_size=256,
  epochs=4.0,
  learning_rate=0.05,
  executor='exact',
)
ASGD = dataclasses.replace(
  GA, method='asgd', parameters=(('momentum', 0.5),), learning_rate=0.02
)
SETTINGS = {  # with few programs to compile
  'ga': GA,
  'asgd': ASGD,
  'fast': dataclasses.replace(ASGD, executor='fast'),
  'threads': dataclasses.replace(
    ASGD, executor='fast', runtime='threads', devices=1
  ),
  'shared batches': dataclasses.replace(
    ASGD, executor='fast', runtime='threads', devices=2, devices_per_worker=2
  ),
  'diverged': dataclasses.replace(ASGD, learning_rate=1e8, epochs=5.0),
  'abs': dataclasses.replace(
    GA, method='abs', clock='heterogeneous', deaths=((1, 3.5),)
  ),
  'dana_slim': dataclasses.replace(
    ASGD, method='dana_slim', deaths=((1, 2.5),)
  ),
}
REPLAYS = {
  'ga': ['ga'],
  'abs': ['abs'],
  'dana_slim': ['dana_slim'],
  'threads': ['threads'],
  'shared batches': ['shared batches'],
  'diverged': ['diverged'],
  'fast': ['fast'],
  'fast by blocks': ['fast', '--fast'],
  'fast by events': ['fast', '--executor=exact'],
  'flipped': ['flipped'],
  'flipped by blocks': ['flipped', '--fast'],
  'fast flipped': ['fast_flipped'],
  'fast flipped by events': ['fast_flipped', '--nofast'],
  'swapped by blocks': ['swapped', '--executor=fast'],
  'fast swapped by events': ['fast_swapped', '--executor=exact'],
  'elsewhere': ['elsewhere'],
  'elsewhere, anyway': ['elsewhere', '--anyway'],
  'until': ['ga', f'--until={UNTIL}'],
  'until the end': ['abs', '--until=LAST'],
  'what if': ['ga', '--method=asgd', '--momentum=0.5', '--learning_rate=0.02'],
  'what if, rounds': ['abs', '--momentum=0.5'],
}
REFUSED = [
  ('workdir', []),
  ('workdir', ['nowhere']),
  ('trace.npz is wrong: row', ['twice']),
  ('workers', ['other_config']),
  ('no environment.json', ['no_environment']),
  ('until', ['ga', '--until=0']),
  ('until', ['ga', '--until=1000']),
  ('until', ['ga', '--until=3', '--fast']),
  ('executor=slow: must be one of', ['ga', '--executor=slow']),
  ('fast asks for fast: give one', ['ga', '--fast', '--executor=exact']),
  ('until', ['ga', '--until=3', '--rule=sa']),
  ('method', ['ga', '--method=none']),
  ('policy=synchronous: makes rounds', ['ga', '--method=ssgd']),
  ('policy=asynchronous: makes one', ['abs', '--method=ga']),
  ('program=local_sgd: takes 4', ['ga', '--program=local_sgd']),
  ('policy', ['abs', '--rule=dana_zero']),
  ('momentum', ['ga', '--momentum=2']),
  ('b1', ['ga', '--b1=0.5']),
  ('clock=pareto: the run had homog', ['ga', '--clock=pareto']),
  ('epochs', ['ga', '--method=sa', '--epochs=3']),
  ('boundaries', ['ga', '--schedule=step', '--boundaries=1,b']),
]
VERIFIED = [
  'ga',
  'abs',
  'dana_slim',
  'diverged',
  'twice',
  'dropped',
  'torn',
  'other_config',
  'other_summary',
  'other_stopped',
  'whole_schedule',
  'nowhere',
]
CALLS = """
import contextlib, importlib, io, json, sys
from absl.testing import flagsaver
from experiments.script import launch

script = importlib.import_module(f'experiments.{sys.argv[1]}')
calls, results = json.load(sys.stdin), {}
for name, arguments in calls.items():
  sys.argv = ['script', *arguments]
  out, err = io.StringIO(), io.StringIO()
  with flagsaver.flagsaver(), contextlib.redirect_stdout(out):
    with contextlib.redirect_stderr(err):
      try:
        launch.launch(script.main, script.prepare)
      except SystemExit as stopped:
        results[name] = stopped.code or 0, out.getvalue(), err.getvalue()
print(json.dumps(results))
"""


# Runs, and runs that something is wrong with.


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder of runs, by name."""
  root = tmp_path_factory.mktemp('runs')
  with jax.numpy_rank_promotion('allow'):
    for name, settings in SETTINGS.items():
      (root / name).mkdir()
      record.save_config(str(root / name), check.check(settings))
      record.save(
        str(root / name), train.train(settings, evaluate_epochs=False)
      )
  damage(root)
  return root


def damage(root):
  """Makes runs that are wrong of those that are right."""

  def copy(name, new):
    shutil.copytree(root / name, root / new)
    return root / new

  for name, new in (('asgd', 'flipped'), ('fast', 'fast_flipped')):
    flip_a_bit(copy(name, new))
  for name, new in (('asgd', 'swapped'), ('fast', 'fast_swapped')):
    shutil.rmtree(copy(name, new) / 'params')  # another run's parameters
    shutil.copytree(root / 'ga' / 'params', root / new / 'params')
  change_json(copy('asgd', 'elsewhere') / 'environment.json', cpu_model='Z80')
  (copy('asgd', 'no_environment') / 'environment.json').unlink()
  change_json(copy('ga', 'other_config') / 'config.json', workers=5)
  change_json(copy('ga', 'other_summary') / 'summary.json', updates=21)
  change_json(copy('diverged', 'other_stopped') / 'summary.json', updates=21)
  scheduled(SETTINGS['diverged']).save(
    str(copy('diverged', 'whole_schedule') / 'trace.npz')
  )
  trace = ga_jax.Trace.load(str(root / 'ga' / 'trace.npz'))
  events = trace.events
  [row] = np.flatnonzero(events['ticket_id'] == 9)[1:]
  again = np.insert(events, row, events[row])  # an answer comes twice
  trace._replace(events=again).save(str(copy('ga', 'twice') / 'trace.npz'))
  dropped = str(copy('ga', 'dropped') / 'trace.npz')
  trace._replace(events=events[:-1]).save(dropped)
  torn = copy('ga', 'torn') / 'trace.npz'
  torn.write_bytes(torn.read_bytes()[:-100])


def scheduled(settings) -> ga_jax.Trace:
  """All that would have happened."""
  return ga_jax.schedule(
    setup.method_of(settings).policy,
    setup.clock_of(settings, setup.MessageBytes(0, 0)),
    num_workers=settings.workers,
    num_batches=setup.total_batches(settings),
  )


def flip_a_bit(workdir):
  """Flips the lowest bit of one saved parameter."""
  params, model_state = record.load_params(str(workdir), ASGD)
  weights = np.array(params['Dense_1']['kernel'])
  weights.view(np.uint32)[3, 5] ^= 1
  params['Dense_1']['kernel'] = jnp.asarray(weights)
  shutil.rmtree(workdir / 'params')
  params_lib.save_params(str(workdir / 'params'), params, model_state)


def change_json(path, **values):
  path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def updates_of(workdir) -> int:
  return record.load_trace(str(workdir)).updates()


# The scripts, each in a process of its own: their flags have the same names.


def started(arguments, folder, calls=None, **variables):
  """Starts a process that is given calls: {name: arguments}."""
  devices = jax.config.jax_num_cpu_devices  # what the runs are recorded with
  process = subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices), **variables},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  # Or each would say with what it computes.
  quiet = ['--quiet'] if arguments[-1] == 'replay' else []
  lines = {
    name: [f'--workdir={folder / run_}' for run_ in names[:1]]
    + names[1:]
    + quiet
    for name, names in (calls or {}).items()
  }
  process.stdin.write(json.dumps(lines))
  process.stdin.close()
  process.stdin = None
  return process


@pytest.fixture(scope='module')
def processes(folder):
  """Processes at work, by name."""
  calls = {
    **REPLAYS,
    **{' '.join(arguments): arguments for _, arguments in REFUSED},
    'until the end': ['abs', f'--until={updates_of(folder / "abs")}'],
  }
  other = environment.thread_pool() + 3
  begun = {
    'replay': started(['-c', CALLS, 'replay'], folder, calls),
    'verify': started(
      ['-c', CALLS, 'verify'], folder, {name: [name] for name in VERIFIED}
    ),
    'restarted': started(
      ['-m', 'experiments.replay', f'--workdir={folder / "asgd"}'],
      folder,
      JAX_NUM_CPU_DEVICES='1',
      PJRT_NPROC=str(other),
      XLA_FLAGS='--xla_cpu_enable_fast_math=true',
    ),
  }
  yield begun
  for process in begun.values():
    process.kill()
    process.wait()


def results_of(process, seconds=120):
  out, err = process.communicate(timeout=seconds)
  assert process.returncode == 0, err
  return {name: tuple(result) for name, result in json.loads(out).items()}


@pytest.fixture(scope='module')
def replayed(processes):
  """What the calls of experiments.replay did: {name: (code, out, err)}."""
  return results_of(processes['replay'])


@pytest.fixture(scope='module')
def verified(processes):
  """What the calls of experiments.verify did: {name: (code, out, err)}."""
  return results_of(processes['verify'])


# What is computed again.


@pytest.mark.parametrize(
  'name', ['ga', 'abs', 'dana_slim', 'threads', 'shared batches', 'diverged']
)
def test_a_run_is_computed_again_to_its_bits(folder, replayed, name):
  code, out, err = replayed[name]
  params, model_state = record.load_params(str(folder / name), SETTINGS[name])
  size, statistics = (
    sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, model_state)
  )
  more = f' and {statistics:,} statistics' if statistics else ''
  with open(folder / name / 'summary.json') as file:
    updates = json.load(file)['updates']
  wanted = f'same bits: {size:,} parameters{more} after {updates} updates\n'
  assert (code, out, err) == (0, wanted, '')
  assert updates == updates_of(folder / name) or name == 'diverged'


@pytest.mark.slow
def test_every_method_is_computed_again_to_its_bits(tmp_path):
  for name in methods.METHODS:
    (tmp_path / name).mkdir()
    settings = dataclasses.replace(
      GA, method=name, batch_size=64, epochs=1.0, deaths=((1, 3.5),)
    )
    record.save_config(str(tmp_path / name), check.check(settings))
    record.save(
      str(tmp_path / name), train.train(settings, evaluate_epochs=False)
    )
  calls = {name: [name] for name in methods.METHODS}
  results = results_of(started(['-c', CALLS, 'replay'], tmp_path, calls), 600)
  for name, (code, out, err) in results.items():
    assert (code, err) == (0, ''), name
    assert out.startswith('same bits: '), name


def test_the_runs_replayed_here_have_rounds_deaths_and_a_divergence(folder):
  traces = {name: record.load_trace(str(folder / name)) for name in SETTINGS}
  assert traces['abs'].updates() < len(traces['abs'].applied())
  for name in ('abs', 'dana_slim'):
    assert traces[name].number_of(Kind.LEAVE) == 1
  with open(folder / 'diverged' / 'summary.json') as file:
    assert json.load(file)['batches'] < traces['diverged'].num_batches


def test_a_run_of_the_fast_executor_is_replayed_by_it(replayed):
  for name in ('fast', 'fast by blocks'):
    code, out, _ = replayed[name]
    assert code == 0
    assert out.startswith('same bits')


def test_a_flipped_bit_is_found(replayed):
  for name in ('flipped', 'fast flipped'):
    code, out, _ = replayed[name]
    assert code == 1
    first, leaf = out.splitlines()
    assert first.startswith('OTHER bits: apart by')
    assert '0.0e+00 (statistics)' in first
    assert 'params/Dense_1/kernel: 1 of 16,384 values differ, by at' in leaf
    assert 0 < float(leaf.split()[-1]) < 1e-6


def test_the_other_executor_replays_within_rounding(replayed):
  for name, made_by in (
    ('flipped by blocks', 'exact'),
    ('fast by events', 'fast'),
    ('fast flipped by events', 'fast'),
  ):
    code, out, _ = replayed[name]
    assert code == 0, name
    first, second = out.splitlines()
    assert f'the bits of the {made_by} executor, which the' in first
    assert second.startswith('rounding explains it: up to ')
    # Of these 20 updates, whatever they are of: 10 times what one rounding of
    # every parameter makes of them, 1e-7 to 4e-7.
    [allowed] = re.findall(r'up to (\S+) \(parameters\)', second)
    assert 1e-6 < float(allowed) < 4e-6
    [parameters] = re.findall(r'apart by (\S+) \(parameters\)', first)
    assert float(parameters) < float(allowed)


@pytest.mark.parametrize(
  'name', ['swapped by blocks', 'fast swapped by events']
)
def test_a_difference_that_no_rounding_explains_is_found(replayed, name):
  code, out, err = replayed[name]
  assert (code, err) == (1, '')
  first, second = out.splitlines()
  assert second.startswith('OTHER values: up to ')
  [parameters] = re.findall(r'apart by (\S+) \(parameters\)', first)
  assert float(parameters) > 0.01


def test_the_state_at_an_update_is_saved(folder, replayed):
  code, out, _ = replayed['until']
  assert code == 0
  saved = folder / 'ga' / f'replay-{UNTIL}'
  assert str(saved) in out
  trace = record.load_trace(str(folder / 'ga'))
  job = setup.job_of(GA, setup.method_of(GA))
  state, seen, _ = exact.execute(
    job, trace, observe=lambda batches, *_: batches >= UNTIL, block=1
  )
  like = jax.eval_shape(lambda: setup.initial(GA))
  now = state.params, state.model_state
  assert cases.same_bits(
    params_lib.load_params(str(saved / 'params'), like), now
  )
  with open(saved / 'summary.json') as file:
    summary = json.load(file)
  assert (summary['update'], summary['batches']) == (UNTIL, UNTIL)
  assert f'test error {100 * summary["test_error"]:.2f} %' in out
  rows = summary['last_arrivals']
  for name in ('loss', 'gap', 'staleness'):
    assert [row[name] for row in rows] == seen[name].tolist()
  arrivals = trace.applied()[:UNTIL]
  assert [r['worker_id'] for r in rows] == arrivals['worker_id'].tolist()
  assert summary['time'] == arrivals['time'][-1]


def test_replaying_to_the_last_update_gives_the_saved_parameters(
  folder, replayed
):
  assert replayed['until the end'][0] == 0
  last = updates_of(folder / 'abs')
  like = jax.eval_shape(lambda: setup.initial(SETTINGS['abs']))
  saved, again = (
    params_lib.load_params(str(folder / 'abs' / name), like)
    for name in ('params', f'replay-{last}/params')
  )
  assert cases.same_bits(saved, again)


def test_what_if_gives_the_result_of_the_other_method(folder, replayed):
  """One trace for all asynchronous methods: what if is a run of its own."""
  code, out, _ = replayed['what if']
  assert code == 0
  was, now = out.splitlines()
  errors = []
  for name in ('ga', 'asgd'):
    with open(folder / name / 'summary.json') as file:
      errors.append(json.load(file)['test_error'])
  assert errors[0] != errors[1]
  assert was == f'as it was, ga: test error {100 * errors[0]:.2f} %'
  assert now == (
    'what if method=asgd, learning_rate=0.02, momentum=0.5: '
    f'test error {100 * errors[1]:.2f} %'
  )


def test_what_if_keeps_the_rounds_of_the_policy(replayed):
  code, out, _ = replayed['what if, rounds']
  assert code == 0
  assert out.splitlines()[1].startswith('what if momentum=0.5: test error')


@pytest.mark.parametrize(('reason', 'arguments'), REFUSED)
def test_replay_refuses_in_one_line(replayed, reason, arguments):
  code, out, err = replayed[' '.join(arguments)]
  assert code == 2
  assert out == ''
  assert err.startswith('error: --')
  assert len(err.splitlines()) == 1, err
  assert reason in err


# The environment.


def test_replay_refuses_another_environment_unless_told(replayed):
  code, out, err = replayed['elsewhere']
  assert (code, out) == (2, '')
  assert "cpu_model was 'Z80', is '" in err
  assert '--anyway' in err
  code, out, err = replayed['elsewhere, anyway']
  assert (code, err) == (0, '')
  first, second = out.splitlines()
  assert first.startswith("not as recorded: cpu_model was 'Z80'")
  assert second.startswith('same bits')


def test_the_environment_is_restored_by_another_start(processes):
  out, err = processes['restarted'].communicate(timeout=120)
  assert processes['restarted'].returncode == 0, err
  assert out.startswith('same bits')
  assert 'starting again with' in err
  devices = jax.config.jax_num_cpu_devices
  for text in (
    f'JAX_NUM_CPU_DEVICES={devices} ',
    f'NPROC={environment.thread_pool()} ',
    'XLA_FLAGS=, ',
  ):
    assert text in err + ' '


def test_a_process_is_started_again_only_once(monkeypatch):
  found = [environment.Difference('thread_pool', 2, 4)]
  assert environment.restorable(found) == (
    {'PJRT_NPROC': None, 'NPROC': '2'},
    [],
  )
  monkeypatch.setenv('GA_JAX_RESTARTED', '1')
  assert environment.restorable(found) == ({}, found)


def test_differences_that_another_start_can_restore_are_known():
  recorded = {
    'platform': 'cpu',
    'device_kind': 'cpu',
    'cpu_model': 'Z80',
    'jax_num_cpu_devices': 2,
    'xla_flags': '',
    'jax_enable_x64': True,
    'jax_default_matmul_precision': None,
    'jax': '0.1',
    'numpy': '2',
  }
  now = {
    'platform': 'gpu',
    'device_kind': 'H100',
    'platform_version': 'cuda',
    'xla_flags': '--xla_a=b',
    'jax_enable_x64': False,
    'jax_default_matmul_precision': 'float32',
    'jax': '0.2',
    'numpy': '2',
  }
  found = environment.differences(recorded, now)
  assert [d.name for d in found] == [
    'platform',
    'device_kind',
    'xla_flags',
    'jax_enable_x64',
    'jax_default_matmul_precision',
    'jax',
  ]
  variables, remaining = environment.restorable(found)
  assert variables == {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': None,
    'JAX_ENABLE_X64': 'True',
    'JAX_DEFAULT_MATMUL_PRECISION': None,
  }
  assert [str(d) for d in remaining] == ["jax was '0.1', is '0.2'"]
  _, remaining = environment.restorable(environment.differences(now, recorded))
  names = [one.name for one in remaining]  # XLA knows no --xla_a
  assert names == ['platform', 'device_kind', 'xla_flags', 'jax']


def test_an_environment_read_back_from_json_is_the_same():
  now = environment.environment()
  assert environment.differences(json.loads(json.dumps(now)), now) == []
  with jax.enable_x64(True):
    [difference] = environment.differences(now, environment.environment())
  assert difference == ('jax_enable_x64', False, True)


@pytest.mark.parametrize(
  ('variables', 'threads'),
  [
    ({'NPROC': '31'}, 31),
    ({'NPROC': '31', 'PJRT_NPROC': '30'}, 30),
    ({'NPROC': '31', 'PJRT_NPROC': 'many'}, 31),
    ({'NPROC': '0'}, 0),  # but one per device
  ],
)
def test_the_thread_pool_is_counted_as_xla_does(
  monkeypatch, variables, threads
):
  for name in ('NPROC', 'PJRT_NPROC'):
    monkeypatch.delenv(name, raising=False)
  cores = environment.thread_pool()
  assert cores >= len(os.sched_getaffinity(0))
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  devices = jax.local_device_count('cpu')
  assert environment.thread_pool() == max(threads, devices)


def test_the_thread_pool_has_the_counted_threads():
  tasks = '/proc/self/task'
  names = []
  for task in os.listdir(tasks) if os.path.isdir(tasks) else ():
    with open(f'{tasks}/{task}/comm') as file:
      names.append(file.read().strip())
  threads = names.count('tf_XLAEigen')
  if not threads:
    pytest.skip('this system, or this JAX, does not name the threads')
  assert threads == environment.thread_pool()


# Bits.


def test_bits_are_compared_not_values():
  a = {'x': jnp.array([0.0, jnp.nan, 1.0]), 'y': jnp.bfloat16(1.5)}
  assert rounding.differing((a, ()), (a, ())) == []
  b = {'x': jnp.array([-0.0, jnp.nan, 1.25]), 'y': jnp.bfloat16(1.0)}
  x, y = rounding.differing((a, {'m': jnp.int32(3)}), (b, {'m': jnp.int32(3)}))
  assert x[:3] == ('params/x', 2, 3)
  assert y == ('params/y', 1, 1, 0.5)


def test_distance_is_in_parts_of_the_norm():
  a, b = {'x': jnp.array([3.0, 0.0]), 'y': jnp.array([4.0])}, None
  b = jax.tree.map(lambda leaf: 1.5 * leaf, a)
  assert rounding.distance(a, a) == 0
  assert rounding.distance(a, b) == pytest.approx(0.5)


def test_settings_read_back_from_json_are_the_same(tmp_path):
  settings = settings_lib.Settings(
    workers=2,
    stalls=((1, 1.0, 2.5),),
    deaths=((0, 3.0),),
    schedule='step',
    boundaries=(1.0, 2.5),
    parameters=(('momentum', 0.5), ('nesterov', True)),
  )
  record.save_config(str(tmp_path), settings)
  assert record.load_settings(str(tmp_path)) == settings


# The trace.


@pytest.mark.parametrize('name', ['ga', 'abs', 'dana_slim', 'diverged'])
def test_verify_prints_counts_staleness_and_waste(folder, verified, name):
  code, out, err = verified[name]
  assert (code, err) == (0, '')
  trace = record.load_trace(str(folder / name))
  lines = out.splitlines()
  events, batches, updates, staleness, *bars, counts, waste, digests = lines
  assert digests.startswith('no digests.json')  # `record.save` alone
  assert events == f'{len(trace.events)} events of 4 workers'
  assert batches.startswith(f'{trace.num_batches} batches, ')
  assert ('each in exactly one applied round' in batches) == (
    name != 'diverged'
  )
  assert updates == f'{trace.updates()} updates'
  seen = trace.applied()['staleness']
  assert staleness == (f'staleness mean {seen.mean():.1f}, max {seen.max()}:')
  assert sum(int(bar.split()[-1]) for bar in bars) == len(seen)
  numbers = dict(reversed(item.split()) for item in counts.split(', '))
  assert numbers == {
    'refused': '0',
    'discarded': '0',
    'restarted': str(trace.number_of(Kind.RESTART)),
    'expired': str(trace.number_of(Kind.EXPIRE)),
  }
  assert waste == f'wasted work {100 * trace.wasted():.0f} %'


@pytest.mark.parametrize(
  ('name', 'reason'),
  [
    ('twice', 'not the answer to an outstanding ticket'),
    ('dropped', 'batches never applied: ['),
    ('torn', 'cannot be read'),
    ('other_config', 'workers: config.json says 5, trace.npz 4'),
    ('other_summary', 'updates: summary.json says 21, trace.npz 20'),
    ('other_stopped', 'updates: summary.json says 21, trace.npz 15'),
  ],
)
def test_verify_finds_what_is_wrong(verified, name, reason):
  code, out, err = verified[name]
  assert (code, err) == (1, '')
  assert out.startswith('WRONG: ')
  assert reason in out
  assert len(out.splitlines()) == 1


def test_verify_reads_records_of_whole_schedules(folder, verified):
  """Version 0.1 wrote them, also of runs that ended before."""
  made = record.load_trace(str(folder / 'diverged'))
  whole = record.load_trace(str(folder / 'whole_schedule'))
  number = len(made.events)
  assert number < len(whole.events)
  assert (whole.events[:number] == made.events).all()
  code, out, err = verified['whole_schedule']
  assert (code, err) == (0, '')
  assert out.startswith(f'{len(whole.events)} events of 4 workers')


def test_verify_refuses_what_is_no_run(verified):
  code, out, err = verified['nowhere']
  assert (code, out) == (2, '')
  assert err.startswith('error: --workdir=')
  assert len(err.splitlines()) == 1
