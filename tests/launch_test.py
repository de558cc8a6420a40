"""The launch scripts and presets."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh')) + [ROOT / '.ci' / 'run']


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
  subprocess.run(['bash', '-n', script], check=True)


@pytest.mark.parametrize('script', ['demo.sh', 'test.sh'])
def test_an_interpreter_that_is_not_there_is_named(script, tmp_path):
  done = subprocess.run(
    ['bash', str(ROOT / 'launch' / script)],
    env={**os.environ, 'PYTHON': 'python9.9'},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr == 'error: PYTHON=python9.9: no such command\n'
  assert not list(tmp_path.iterdir())


def test_the_demos_preset_runs(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.compare',
      '--flagfile=experiments/presets/digits_demo.flags',
      '--methods=dana_ga',
      '--workers=2',
      '--seeds=1',
      '--epochs=0.1',
      f'--workdir={tmp_path}',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert '| dana_ga |' in done.stdout
  assert 'held-out training data' in done.stdout
  assert (tmp_path / 'error-fixed.png').stat().st_size > 1000
