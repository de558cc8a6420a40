"""Runs on Ray that are told to stop, or lose what they run on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ga_jax.record import trace
from tests import ray_runs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SECONDS = ray_runs.SECONDS
LIBRARY = """
import functools, signal, sys
import ga_jax
from ga_jax import policies
from ga_jax.executors.saving import Checkpoints
from ga_jax.record.checkpoints import CheckpointStore
from tests import cases

folder, num_batches, own = sys.argv[1:]
if own == 'own':
  signal.signal(signal.SIGTERM, lambda number, frame: print('its handler'))
result = ga_jax.run_on_ray(
  cases.tiny_job(cases.rule('ga', 0.02), policies.asynchronous()),
  num_workers=2,
  num_batches=int(num_batches),
  live=ga_jax.Live(
    trace_path=f'{folder}/rows',
    checkpoints=Checkpoints(CheckpointStore(f'{folder}/kept'), 10**6),
  ),
)
print('stopped' if result.stopped else 'complete', result.trace.updates())
"""


@pytest.fixture
def begin(tmp_path):
  """Starts Python as a user does, with a home that has no token yet."""
  started = []
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith('RAY_')
  }
  environment |= {'HOME': str(tmp_path), 'PYTHONPATH': ray_runs.ROOT}

  def begun(*arguments):
    started.append(
      subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ray_runs.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
      )
    )
    return started[-1]

  yield begun
  for process in started:
    process.kill()
    process.communicate()


def script(begin, workdir, *more):
  """A run of `experiments.train` that has made some updates."""
  process = begin(
    *('-m', 'experiments.train', '--runtime=ray', '--workers=2', '--model=mlp'),
    *('--method=ga', '--epochs=2000', '--straggler=0:10,1:10'),
    *(f'--workdir={workdir}', *more),
  )
  reach(workdir / 'trace.rows', process)
  return process


def reach(record, process, number=200):
  """Waits until so many rows are in a record."""

  def reached():
    assert process.poll() is None, process.communicate()
    return record.exists() and len(trace.read_rows(str(record))) > number

  ray_runs.until(reached, 'rows')


def children(process, name):
  """Process ids of a process' children with such a program."""
  found = []
  for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
      with open(f'/proc/{pid}/stat') as file:
        parent = int(file.read().rpartition(')')[2].split()[1])
      program = os.path.basename(os.readlink(f'/proc/{pid}/exe'))
    except OSError:
      continue
    if (parent, program) == (process.pid, name):
      found.append(int(pid))
  return found


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_in_order(begin, number, tmp_path):
  """SIGINT as a terminal's Ctrl-C: to every process of the group."""
  workdir = tmp_path / 'run'
  process = script(begin, workdir, '--checkpoint_every=100000')
  if number == signal.SIGINT:
    os.killpg(process.pid, number)
  else:
    process.send_signal(number)
  out, err = process.communicate(timeout=SECONDS)
  assert process.returncode == 128 + number, out + err
  assert 'once more stops at once' in err
  assert out.splitlines()[-1] == (
    f'stopped; go on: python -m experiments.train --resume --workdir={workdir}'
  )
  assert list((workdir / 'checkpoints').iterdir())
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['stopped'] is True
  assert summary['updates'] > 20


def test_a_second_signal_ends_a_run_at_once(begin, tmp_path):
  process = script(begin, tmp_path / 'run')
  process.send_signal(signal.SIGTERM)
  while 'once more' not in process.stderr.readline():
    assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  began = time.monotonic()
  process.communicate(timeout=SECONDS)
  assert process.returncode == 128 + signal.SIGTERM
  assert time.monotonic() - began < 5.0
  assert not (tmp_path / 'run' / 'summary.json').exists()


def test_a_lost_raylet_ends_a_run_in_one_line(begin, tmp_path):
  """Of the only node; what was written down is gone on with."""
  workdir = tmp_path / 'run'
  process = script(begin, workdir)
  (raylet,) = children(process, 'raylet')
  os.kill(raylet, signal.SIGKILL)
  _, err = process.communicate(timeout=SECONDS)
  assert process.returncode == 1, err
  assert 'Traceback' not in err
  last = err.splitlines()[-1]
  assert last.startswith(
    "error: the Ray cluster, or this machine's part of it, was lost: "
  )
  assert last.endswith(
    f'; go on: python -m experiments.train --resume --workdir={workdir}'
  )


@pytest.mark.parametrize('own', ['own', 'default'])
def test_a_signal_comes_to_a_script_after_its_run(begin, own, tmp_path):
  arguments = ['-c', LIBRARY, str(tmp_path)]
  process = begin(*arguments, '1000000', own)
  reach(tmp_path / 'rows', process)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=SECONDS)
  assert 'Traceback' not in err
  assert '; the same call goes on from its checkpoint' in err
  (kept,) = (tmp_path / 'kept').iterdir()
  updates = int(kept.name.rpartition('-')[2])
  assert updates > 20
  if own == 'own':
    assert process.returncode == 0, out + err
    assert 'its handler\n' in out
    assert f'stopped {updates}\n' in out
  else:
    assert process.returncode == -signal.SIGTERM, out + err
    assert 'stopped' not in out
  process = begin(*arguments, '1000000', own)
  reach(tmp_path / 'rows', process, len(trace.read_rows(f'{tmp_path}/rows')))
