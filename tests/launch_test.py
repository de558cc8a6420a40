"""The launch scripts and presets."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging import requirements

from tests import cifar_files, scripts

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


DEVICE = str(ROOT / 'launch' / 'cifar10_device.sh')


def test_the_script_for_a_device_says_how_it_is_called(tmp_path):
  for arguments, said in (
    ([], 'bash launch/cifar10_device.sh table DATA [SECONDS]'),
    (['train', str(tmp_path)], 'train: must be one of look, table, rehearse'),
    (['rehearse', str(tmp_path)], 'rehearse needs the folder with test_batch'),
  ):
    done = subprocess.run(
      ['bash', DEVICE, *arguments],
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.slow
def test_the_script_for_a_device_can_be_rehearsed(tmp_path):
  files = cifar_files.binary(cifar_files.made('cifar10', test=120))
  cifar_files.write(tmp_path / 'data', files)
  command = ['bash', DEVICE, 'rehearse', str(tmp_path / 'data'), '500']
  command += ['--methods=asgd,ga', '--workers=1,8', '--seeds=1']
  done = subprocess.run(
    [*command, '--model=mlp', '--noaugment', '--epochs=2'],
    env={
      **os.environ,
      'PYTHON': sys.executable,
      'FOLDER': str(tmp_path / 'table'),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  page = (tmp_path / 'table' / 'table.md').read_text()
  assert 'This is the quarter schedule' in page
  assert 'Not finished' not in page
  rows = (tmp_path / 'table' / 'metrics.jsonl').read_text().splitlines()
  assert len(rows) == 6  # two methods, two momenta; one worker is the same


# --- what a machine has: stand-ins for it


def program(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/sh\n{text}\n')
  path.chmod(0o755)


def machine(tmp_path, *, smi='', devices=(), vendor=''):
  """The environment of a machine with such an nvidia-smi and such devices."""
  if smi:
    program(tmp_path / 'bin' / 'nvidia-smi', smi)
  for device in devices:
    path = tmp_path / 'dev' / device
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  if vendor:
    path = tmp_path / 'sys' / 'bus' / 'pci' / 'devices' / '0000:00:04.0'
    path.mkdir(parents=True)
    (path / 'vendor').write_text(f'{vendor}\n')
  names = ('ACCELERATOR', 'PYTHON', 'VENV')
  env = {k: v for k, v in os.environ.items() if k not in names}
  path = f'{tmp_path}/bin:/usr/bin:/bin'
  return {**env, 'PATH': path, 'DEVICE_ROOT': str(tmp_path)}


def smi(*gpus, knows_capability=True):
  """An nvidia-smi that prints this for 'driver, capability' of each GPU."""
  old = '' if knows_capability else 'case $* in *compute_cap*) exit 6 ;; esac; '
  lines = '\\n'.join(gpus)
  return f"{old}printf '{lines}\\n'"


def picked(env):
  """(accelerator, what it was picked by)."""
  done = subprocess.run(
    [
      'bash',
      '-c',
      'set -euo pipefail; source "$0"; use_accelerator; '
      'echo "$accelerator|$because"',
      ROOT / 'launch' / 'accelerator.sh',
    ],
    env=env,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stderr == ''
  return tuple(done.stdout.strip().split('|'))


MACHINES = {
  'nothing': ({}, 'cpu', 'no accelerator is here'),
  'a new driver': ({'smi': smi('580.65.06, 9.0')}, 'cuda13', '580.65.06'),
  'an older driver': ({'smi': smi('570.124.06, 9.0')}, 'cuda12', '570.124.06'),
  'a Volta': ({'smi': smi('580.65, 9.0', '580.65, 7.0')}, 'cuda12', '580'),
  'a Blackwell': ({'smi': smi('590.1, 12.0')}, 'cuda13', '590.1'),
  'an old driver': ({'smi': smi('470.57.02, 7.5')}, 'cpu', 'JAX needs 525'),
  'no capability': (
    {'smi': smi('525.60.13', knows_capability=False)}, 'cuda12', '525.60.13',
  ),
  'a GPU that is gone': (
    {'smi': "echo 'No devices were found'; exit 6"},
    'cpu', 'finds no GPU (No devices were found)',
  ),
  'a GPU that is not told': (
    {'smi': "echo 'No devices were found'"},
    'cpu', 'finds no GPU (No devices were found)',
  ),
  'a TPU': ({'devices': ['accel0', 'accel1']}, 'tpu', 'a TPU'),
  'a TPU v5e': (
    {'devices': ['vfio/vfio', 'vfio/0'], 'vendor': '0x1ae0'}, 'tpu', 'a TPU',
  ),
  'a network card that is handed on': (
    {'devices': ['vfio/vfio', 'vfio/0'], 'vendor': '0x8086'},
    'cpu', 'no accelerator',
  ),
  'an NPU': ({'devices': ['accel/accel0']}, 'cpu', 'no accelerator'),
}  # fmt: skip


@pytest.mark.parametrize('name', MACHINES)
def test_the_jax_build_is_picked_by_the_machine(name, tmp_path):
  given, accelerator, because = MACHINES[name]
  found, said = picked(machine(tmp_path, **given))
  assert found == accelerator
  assert because in said


def test_the_variable_accelerator_decides_the_jax_build(tmp_path):
  env = machine(tmp_path, smi=smi('580.65.06, 9.0'))
  for name in ('cpu', 'cuda12', 'cuda13', 'tpu'):
    given = picked({**env, 'ACCELERATOR': name})
    assert given == (name, 'as ACCELERATOR says')


@pytest.mark.parametrize('script', ['demo.sh', 'test.sh'])
def test_an_accelerator_that_there_is_not_is_named(script, tmp_path):
  done = subprocess.run(
    ['bash', str(ROOT / 'launch' / script)],
    env={**os.environ, 'ACCELERATOR': 'cuda'},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  accepted = 'must be cpu, cuda12, cuda13 or tpu'
  assert done.stderr == f'error: ACCELERATOR=cuda: {accepted}\n'


# A Python that makes environments of itself, and writes down all else.
STUB = """
case "$1 $2" in
  '-c import sys; print'*) echo 3.11 ;;
  '-c import sys; sys.exit'*) ;;
  '-m venv') mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *) echo "$@" >>"$ASKED" ;;
esac
"""


def asked(tmp_path, script, **variables):
  """What pip was asked for, and what was started; and what was said."""
  checkout, log = tmp_path / 'checkout', tmp_path / 'asked'
  if not checkout.exists():
    shutil.copytree(ROOT / 'launch', checkout / 'launch')
    for name in ('requirements.txt', 'pyproject.toml'):
      shutil.copy(ROOT / name, checkout)
    program(tmp_path / 'bin' / 'python3', STUB)
  log.write_text('')
  done = subprocess.run(
    ['bash', checkout / 'launch' / script],
    env={**variables, 'ASKED': str(log)},
    capture_output=True,
    text=True,
    check=True,
  )
  return log.read_text().replace(str(checkout), '.').splitlines(), done.stderr


@pytest.mark.parametrize(
  ('script', 'extras', 'ends_with'),
  [
    ('demo.sh', '', '-m experiments.compare --flagfile='),
    ('test.sh', 'dev,', '-m pytest -n auto'),
  ],
)
def test_the_scripts_install_the_jax_build_that_was_picked(
  script, extras, ends_with, tmp_path
):
  env = machine(tmp_path, smi=smi('570.124.06, 9.0'))
  (pip, *_, last), said = asked(tmp_path, script, **env)
  install = '-m pip install --quiet --disable-pip-version-check --editable'
  assert pip == f'{install} .[{extras}cuda12]'
  assert last.startswith(ends_with)
  assert "for cuda12: NVIDIA's driver is 570.124.06" in said
  (first, *_), said = asked(tmp_path, script, **env)
  assert 'pip' not in first  # it is there
  assert said == ''
  (pip, *_), said = asked(tmp_path, script, **env, ACCELERATOR='cpu')
  assert pip == f'{install} .[{extras}cpu]'
  assert 'as ACCELERATOR says' in said


def test_the_extras_of_accelerators_require_the_same_jax():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  lines = (ROOT / 'requirements.txt').read_text()
  required = requirements.Requirement(re.search('^jax[<>=].*$', lines, re.M)[0])
  extras = project['project']['optional-dependencies']
  assert extras['cpu'] == []
  for name in ('cuda12', 'cuda13', 'tpu'):
    (jax,) = map(requirements.Requirement, extras[name])
    assert (jax.name, jax.extras) == ('jax', {name})
    assert jax.specifier == required.specifier


# --- a fresh machine for CI

# In place of launch/test.sh: what the tests would find.
PROBE = r"""
env
echo "home holds: $(ls -A "$HOME")"
python3 -c '
import shutil, sys
print("chromium:", shutil.which("chromium"))
print("python:", sys.version_info[:2])
'
exit 3
"""


@pytest.mark.parametrize('refused', [False, True])
def test_ci_runs_as_on_a_fresh_machine(refused, tmp_path):
  if refused:  # as containers do
    why = 'unshare: Operation not permitted'
    program(tmp_path / 'bin' / 'unshare', f'echo "{why}" >&2; exit 1')
  checkout, home = tmp_path / 'checkout', tmp_path / 'home'
  shutil.copytree(ROOT / '.ci', checkout / '.ci')
  program(checkout / 'launch' / 'test.sh', PROBE)
  program(tmp_path / 'bin' / 'chromium', 'exit 0')
  settings = home / '.config' / 'pip' / 'pip.conf'
  settings.parent.mkdir(parents=True)
  settings.touch()
  data = home / 'tensorflow_datasets'
  data.mkdir()
  leaks = {
    **{'XLA_FLAGS': '--xla_x', 'JAX_ENABLE_X64': '1', 'PYTHONPATH': '/x'},
    **{'TFDS_DATA_DIR': '/x', 'RAY_ADDRESS': '/x', 'GA_JAX_CACHE': '/x'},
  }
  names = ('PIP_CONFIG_FILE', 'PIP_CACHE_DIR', 'XDG_CONFIG_HOME')
  names += ('XDG_CACHE_HOME', 'PYTHON', 'ACCELERATOR')
  env = {k: v for k, v in os.environ.items() if k not in names}
  env |= {'HOME': str(home), 'PIP_INDEX_URL': 'https://index', **leaks}
  env['PATH'] = (
    f'{tmp_path}/bin:{os.path.dirname(sys.executable)}:/usr/bin:/bin'
  )
  done = subprocess.run(
    ['bash', checkout / '.ci' / 'run'],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 3, done.stderr
  first, *lines = done.stdout.splitlines()
  assert first.startswith('isolation: an empty home')
  found = dict(line.partition('=')[::2] for line in lines)
  assert not leaks.keys() & found.keys()
  assert found['HOME'].startswith('/tmp/ga_ci.')
  assert found['TMPDIR'].startswith('/tmp/ga_ci.')
  assert not os.path.exists(os.path.dirname(found['HOME']))
  assert found['ACCELERATOR'] == 'cpu'
  assert found['PIP_CONFIG_FILE'] == str(settings)
  assert found['PIP_CACHE_DIR'] == str(home / '.cache' / 'pip')
  assert found['PIP_INDEX_URL'] == 'https://index'
  assert 'home holds: ' in lines
  assert f'python: {sys.version_info[:2]}' in lines
  hidden = f'{data} {tmp_path}/bin/chromium'
  if refused and not os.getuid():
    assert f'; no mount namespace ({why}), so' in first
  if 'a mount namespace without' in first:
    assert not refused
    assert first.endswith(f'without {hidden}')
    assert 'chromium: None' in lines
  else:  # nobody but root, and not in every container
    assert first.endswith(f', so the tests see {hidden}')
    assert f'chromium: {tmp_path}/bin/chromium' in lines


def test_the_preset_of_the_demo_runs(tmp_path):
  done = scripts.call(
    'compare',
    f'--flagfile={ROOT}/experiments/presets/digits_demo.flags',
    *('--methods=dana_ga', '--workers=2', '--seeds=1', '--epochs=0.1'),
    f'--workdir={tmp_path}',
  )
  assert done.code == 0, done.err
  assert '| dana_ga |' in done.out
  assert 'held-out training data' in done.out
  assert (tmp_path / 'error-fixed.png').stat().st_size > 1000
