"""The command for the day when a device is at hand, tried out on the CPU."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
FIRST = 'kernels.json'


def started(folder, seconds):
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'experiments.bench.accelerator', '--tiny'),
      *(f'--seconds={seconds}', f'--out={folder}'),
    ],
    stdout=subprocess.PIPE,
    text=True,
  )


def left(folder):
  """{name: what a section left}."""
  return {
    path.name: json.loads(path.read_text()) for path in folder.glob('*.json')
  }


def test_a_command_that_was_killed_goes_on(tmp_path):
  first = started(tmp_path, 3000)
  while FIRST not in left(tmp_path):
    assert first.poll() is None
    time.sleep(0.1)
  first.send_signal(signal.SIGKILL)
  first.communicate()
  before = left(tmp_path)
  assert list(before) == [FIRST]
  assert 'error' not in before[FIRST]
  second = started(tmp_path, 3000)
  out, _ = second.communicate()
  assert second.returncode == 0, out
  after = left(tmp_path)
  assert after[FIRST] == before[FIRST]  # not done again
  expected = {
    *('kernels', 'bits', 'optax', 'replay', 'bandwidth_vector'),
    *('overhead_mlp', 'many_seeds'),
  }
  if importlib.util.find_spec('torch'):
    expected.add('torch_mlp')
  assert after.keys() == {f'{name}.json' for name in expected}
  for one in after.values():
    assert 'error' not in one
    assert one['rows']
    assert {'device', 'jax'} <= one['machine'].keys()
  for name in ('kernels', 'bits', 'optax', 'replay'):
    assert all(target['met'] for target in after[f'{name}.json']['targets'])
  page = (tmp_path / 'README.md').read_text()
  assert all(f'## {name}\n' in page for name in expected)
  assert sorted(os.listdir(tmp_path)) == sorted([*after, 'README.md'])


def test_what_has_no_time_says_so_and_the_next_one_runs(tmp_path):
  cut = started(tmp_path, 4)
  cut.communicate()
  assert cut.returncode == 1
  found = left(tmp_path)
  assert len(found) > 1
  assert all('took longer' in one['error'] for one in found.values())
  assert '| took longer than' in (tmp_path / 'README.md').read_text()
