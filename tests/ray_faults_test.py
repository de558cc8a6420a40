"""Processes and nodes on Ray die, hang and join; nothing is lost.

The server killed ten times, a line for each (four minutes on 2 cores):

  python -m pytest tests/ray_faults_test.py -m slow -s
"""

import contextlib
import functools
import json
import os
import pathlib
import random
import subprocess
import time
from typing import NamedTuple

import pytest
import ray

from ga_jax import compression, policies, programs, rules
from ga_jax.compression import base as compression_base
from ga_jax.executors.saving import Checkpoints
from ga_jax.guards import locks
from ga_jax.live.ray import setup as setup_lib
from ga_jax.live.ray import snapshots
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.record import trace
from ga_jax.record.checkpoints import CheckpointStore
from tests import cases, ray_runs

pytestmark = pytest.mark.ray

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORKERS = 2
ROW = trace.ROW_DTYPE.itemsize
STORE_BYTES = ray_runs.STORE_BYTES


@pytest.fixture(scope='module')
def nodes():
  with ray_runs.cluster(num_cpus=WORKERS) as one:
    yield one


def sparse(loss_fn):
  """Keeps a residual at the worker."""
  return compression_base.compressed(
    programs.gradient(loss_fn), compression.topk(0.1)
  )


def elastic(loss_fn):
  """Exchanges parameters with the server at arrival."""
  return programs.easgd(loss_fn, 0.02, WORKERS, local_steps=1)


# name -> (rule, policy, program)
JOBS = {
  'gradients': (cases.rule('ga', 0.02), 'asynchronous', None),
  'rounds': (cases.rule('ga', 0.02), 'synchronous', sparse),
  'residuals': (cases.rule('ga', 0.02), 'asynchronous', sparse),
  'exchanges': (rules.asgd(1.0, 0.0), 'asynchronous', elastic),
}


def make(name):
  """The job; called in every process."""
  rule, policy_name, program = JOBS[name]
  policy = policies.make(policy_name, WORKERS)
  job = cases.tiny_job(rule, policy, program=program)
  return job


def held(folder, seconds, worker_id, computed):
  """Takes so long, and as long as the test wants it."""
  while os.path.exists(f'{folder}/hold-{worker_id}'):
    time.sleep(0.01)
  return 0.3 if os.path.exists(f'{folder}/slow') else seconds


def start(folder, name, num_batches, seconds=0.0, every=None, **options):
  """A run that writes to a folder, and whose workers can be held there."""
  store = CheckpointStore(str(folder / 'checkpoints'))
  setup = setup_lib.Setup(
    **cases.live_arguments(
      make_fn=options.pop('make_fn', functools.partial(make, name)),
      num_workers=WORKERS,
      num_batches=num_batches,
      trace_path=str(folder / 'rows'),
      checkpoints=Checkpoints(store, every_updates=every) if every else None,
      **options,
    )
  )
  return ray_runs.Run(setup, delay_fn=functools.partial(held, folder, seconds))


@contextlib.contextmanager
def hold(folder, worker_id):
  """Lets a worker finish nothing meanwhile."""
  path = folder / f'hold-{worker_id}'
  path.touch()
  yield
  path.unlink()


@pytest.mark.slow
def test_a_worker_that_dies_at_rest_or_at_work_is_replaced(nodes, tmp_path):
  """In rounds, so that it waits for the other one; it keeps a state."""

  def joins(number):
    joined = lambda: len(run.rows(Kind.JOIN)) == number  # noqa: E731
    ray_runs.until(joined, 'worker 1', run)

  def other(pid):
    with contextlib.suppress(ray.exceptions.ActorUnavailableError):
      return run.facts(1).pid != pid

  with start(tmp_path, 'rounds', 120, seconds=0.01) as run:
    run.reach(5)
    with hold(tmp_path, 0):
      ray_runs.until(lambda: run.at_work() == {0}, 'rest of worker 1', run)
      pid = run.facts(1).pid
      ray_runs.kill(pid)
      ray_runs.until(lambda: other(pid), 'other process', run)
      # Nobody need have noticed: it may be at rest for good.
    with hold(tmp_path, 1):
      ray_runs.until(lambda: run.rows(Kind.LEAVE), 'loss of worker 1', run)
      with hold(tmp_path, 0):
        joins(3)
      ray_runs.until(lambda: run.at_work() == {1}, 'work of worker 1', run)
      with hold(tmp_path, 0):
        ray_runs.kill(run.facts(1).pid)
        joins(4)
    run.contributes(1, len(run.rows()))
    result = run.finish()
  events = result.trace.events
  assert events[events['event'] == Kind.LEAVE]['worker_id'].tolist() == [1, 1]
  assert (result.trace.applied()['attempt'] > 0).any()


class Kill(NamedTuple):
  """What was seen when the server was killed.

  Attributes:
    told: the last version that it told.
    written: updates in the record then.
    seconds: until something new was in the record.
  """

  told: int
  written: int
  seconds: float


def kill_server(run, *moments) -> Kill:
  """Kills the server; all that it told of is in the record, and stays there.

  Args:
    run: a `ray_runs.Run`.
    *moments: seconds to wait before it is killed, and killed again while it
      comes back.
  """
  record, before = pathlib.Path(run.setup.live.trace_path), b''
  for moment in moments or (0.0,):
    pid = ray.get(run.actors.server.pid.remote(), timeout=ray_runs.SECONDS)
    time.sleep(moment)
    told = run.version()
    ray_runs.kill(pid)
    killed, now = time.monotonic(), record.read_bytes()
    written = sum(row[8] == Action.APPLY for row in run.rows())
    assert written >= told
    assert now.startswith(whole_rows(before))
    before = now
  ray_runs.until(
    lambda: record.stat().st_size > len(before) + ROW, 'new row', run
  )
  seconds = time.monotonic() - killed
  run.reach(written)
  assert record.read_bytes().startswith(whole_rows(before))
  return Kill(told, written, seconds)


def whole_rows(data: bytes) -> bytes:
  """Without the last one, where it is torn."""
  return data[: len(data) // ROW * ROW]


@pytest.mark.slow
def test_a_run_survives_its_server_before_and_after_a_checkpoint(
  nodes, tmp_path
):
  with start(tmp_path, 'residuals', 160, seconds=0.02, every=40) as run:
    for version in (10, 70):
      run.reach(version)
      kill_server(run)
    result = run.finish()
  assert result.refused['restart'] >= 2
  assert not result.trace.number_of(Kind.LEAVE)  # the workers live on


@pytest.mark.slow
def test_a_server_waits_until_the_one_before_has_ended(nodes, tmp_path):
  record = tmp_path / 'rows'
  with (
    locks.Lock(str(record)) as other,
    start(tmp_path, 'gradients', 20) as run,
  ):
    ray_runs.until(lambda: run.facts(0), 'a worker', run)
    assert record.stat().st_size == 0
    other.release()
    result = run.finish()
  assert result.trace.updates() == 20


@pytest.mark.slow
@pytest.mark.parametrize('every', ['20', '1000'])
def test_a_run_whose_driver_died_goes_on(nodes, tmp_path, every):
  """What it started ends with it; the run is gone on with at once."""
  workdir = f'--workdir={tmp_path}'
  record = tmp_path / 'trace.rows'
  training = subprocess.Popen(
    ray_runs.command(
      'train',
      *('--runtime=ray', f'--address={nodes.address}', f'--workers={WORKERS}'),
      *('--method=ga', '--model=mlp', '--epochs=6', '--straggler=0:20,1:20'),
      *(f'--checkpoint_every={every}', workdir),
    ),
    cwd=ray_runs.ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    ray_runs.until(lambda: record.exists() and len(rows(record)) > 100, 'rows')
    ray_runs.kill(ray_runs.server_pid())  # first the server alone
    ray_runs.until(lambda: len(rows(record)) > 300, 'rows')
  finally:
    training.kill()
    training.wait()
  before = rows(record)
  address = f'--address={nodes.address}'
  done = ray_runs.script('train', '--resume', workdir)
  assert (done.returncode, address in done.stderr) == (2, True)  # it is told
  done = ray_runs.script('train', '--resume', workdir, address)
  assert done.returncode == 0, done.stdout + done.stderr
  saved = trace.Trace.load(str(tmp_path / 'trace.npz'))
  assert saved.events[: len(before)].tolist() == before
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['epoch'] for line in lines] == list(range(1, 7))
  assert ray_runs.script('verify', workdir).returncode == 0
  done = ray_runs.script('replay', workdir)
  assert done.stdout.startswith('same bits: '), done.stdout + done.stderr


def rows(record):
  return trace.read_rows(str(record))


SERVERS = [  # name, checkpoint every so many updates
  ('gradients', None),
  ('residuals', 7),
  ('exchanges', 50),
]


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'every'), SERVERS)
def test_a_run_survives_ten_deaths_of_its_server(nodes, tmp_path, name, every):
  num_batches, rng = 1500, random.Random(name)
  moments = sorted(rng.sample(range(num_batches - 100), 10))
  with start(tmp_path, name, num_batches, seconds=0.02, every=every) as run:
    for i, version in enumerate(moments, 1):
      run.reach(version)
      again = [rng.uniform(0, 3)] if i % 3 == 0 else []  # it is not back yet
      one = kill_server(run, rng.uniform(0, 0.2), *again)
      print(
        f'{name}, kill {i}{" (twice)" if again else ""}: told {one.told}, '
        f'written {one.written}, goes on after {one.seconds:.1f} s'
      )
    run.finish()


class Owner:
  """Puts objects and takes them along."""

  def put(self, buffers):
    return [ray.put(buffers)]

  def put_many(self):
    return [ray.put(i) for i in range(1000)]


def lossy(folder, name):
  """Makes a job in a process that loses the object of one version."""
  stored = snapshots.PackedSnapshot.stored

  def lost(packed):
    lose = folder / 'lose'
    if not lose.exists():
      return stored(packed)
    lose.rename(folder / 'slow')
    owner = ray.remote(num_cpus=0)(Owner).remote()
    (packed.ref,) = ray.get(owner.put.remote(packed.buffers))
    probes = ray.get(owner.put_many.remote())
    ray.kill(owner)
    with contextlib.suppress(ray.exceptions.OwnerDiedError):
      while ray.get(probes.pop()) is not None:  # until everybody knows
        time.sleep(0.05)
    return packed.ref

  snapshots.PackedSnapshot.stored = lost
  return make(name)


@pytest.mark.slow
def test_a_run_survives_a_lost_object_and_a_hung_worker(nodes, tmp_path):
  """Snapshots are read ahead, which goes through the object store."""
  with start(
    tmp_path,
    'gradients',
    300,
    seconds=0.005,
    pipeline_depth=1,
    lease_seconds=1.0,
    make_fn=functools.partial(lossy, tmp_path, 'gradients'),
  ) as run:
    run.reach(20)
    (tmp_path / 'lose').touch()
    ray_runs.until(lambda: len(run.rows(Kind.JOIN)) == 3, 'lost worker', run)
    (tmp_path / 'slow').unlink()
    with hold(tmp_path, 1), hold(tmp_path, 0):
      ray_runs.until(
        lambda: {row[2] for row in run.rows(Kind.EXPIRE)} == {0, 1},
        'ends of leases',
        run,
      )
    result = run.finish()
  assert result.refused['lease'] >= 2
  assert result.refused['late'] >= 2
  out, most = set(), 0
  for row in result.trace.events[result.trace.events['worker_id'] == 0]:
    if row['event'] == Kind.ISSUE:
      out.add(row['ticket_id'])
    else:
      out.discard(row['ticket_id'])
    most = max(most, len(out))
  assert most == 2


@pytest.mark.slow
def test_a_run_survives_nodes_that_join_and_die(nodes, tmp_path):
  """A worker that finds no room waits for it, also one that lost its node."""
  blocker = ray.remote(num_cpus=1)(Owner).remote()
  ray.get(blocker.put.remote(0), timeout=ray_runs.SECONDS)

  def joins(number):
    joined = lambda: len(run.rows(Kind.JOIN)) == number  # noqa: E731
    ray_runs.until(joined, f'join {number}', run)

  with start(tmp_path, 'gradients', 120, seconds=0.01) as run:
    with hold(tmp_path, 0), hold(tmp_path, 1):
      joins(1)
      node = nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
      joins(2)
    first, second = (row[2] for row in run.rows(Kind.JOIN))
    assert run.facts(first).node_id != run.facts(second).node_id
    run.contributes(second, 0)
    with hold(tmp_path, 0), hold(tmp_path, 1):
      nodes.remove_node(node, allow_graceful=False)
      ray_runs.until(lambda: run.rows(Kind.LEAVE), 'loss of a worker', run)
      ray.kill(blocker)
      joins(3)
    assert run.facts(first).node_id == run.facts(second).node_id
    run.contributes(second, len(run.rows()))
    run.finish()
