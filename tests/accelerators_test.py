"""Every command says with what it computes, and what it leaves unused."""

import jax
import pytest

from experiments.running import accelerators, environment, train
from experiments.settings import table as settings_lib
from tests import launch_test, scripts


@pytest.fixture
def unasked(monkeypatch):
  """JAX's own choice of what to compute with."""
  before = jax.config.jax_platforms
  jax.config.update('jax_platforms', None)
  for name in accelerators._HIDING:
    monkeypatch.delenv(name, raising=False)
  yield
  jax.config.update('jax_platforms', before)


def seen(monkeypatch, tmp_path, **given):
  """What is unused on a machine with such devices; see `launch_test`."""
  env = launch_test.machine(tmp_path, **given)
  monkeypatch.setenv('PATH', env['PATH'])
  return accelerators.unused(env['DEVICE_ROOT'])


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ({}, ''),
    ({'devices': ['nvidia0', 'nvidiactl']}, 'an NVIDIA GPU'),
    ({'devices': ['nvidiactl', 'nvidia-caps/nvidia-cap1']}, ''),
    ({'smi': "echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'"}, 'an NVIDIA GPU'),
    ({'smi': "echo 'No devices were found'; exit 6"}, ''),
    ({'smi': 'exit 0'}, ''),
    ({'devices': ['accel0']}, 'a TPU'),
    ({'devices': ['accel/accel0']}, ''),
    ({'devices': ['vfio/vfio', 'vfio/0'], 'vendor': '0x1ae0'}, 'a TPU'),
    ({'devices': ['vfio/vfio', 'vfio/0'], 'vendor': '0x10de'}, ''),
    ({'devices': ['vfio/vfio'], 'vendor': '0x1ae0'}, ''),
  ],
)
def test_an_accelerator_that_jax_leaves_unused_is_found(
  given, expected, monkeypatch, tmp_path, unasked
):
  del unasked
  assert seen(monkeypatch, tmp_path, **given) == expected


@pytest.mark.parametrize('value', ['', '-1'])
def test_a_gpu_that_was_hidden_is_left_alone(
  value, monkeypatch, tmp_path, unasked
):
  del unasked
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', value)
  assert seen(monkeypatch, tmp_path, devices=['nvidia0']) == ''
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
  assert seen(monkeypatch, tmp_path) == 'an NVIDIA GPU'
  jax.config.update('jax_platforms', 'cpu')  # JAX_PLATFORMS=cpu
  assert seen(monkeypatch, tmp_path) == ''


def test_the_device_line_warns_of_an_unused_accelerator(monkeypatch, capsys):
  monkeypatch.setattr(accelerators, 'unused', lambda: 'a TPU')
  cpu = accelerators.ComputesWith('cpu', 'EPYC (2 cores)', 1)

  def said(found, **how):
    accelerators.say(found, **how)
    out, err = capsys.readouterr()
    assert out == ''
    return err.splitlines()

  first, warning = said(cpu)
  assert first == 'device: cpu, EPYC (2 cores)'
  assert warning.startswith('warning: this machine has a TPU')
  assert "pip install 'ga_jax[tpu]'" in warning
  assert said(cpu, quiet=True) == [warning]
  monkeypatch.setattr(accelerators, 'unused', lambda: 'an NVIDIA GPU')
  first, warning = said(cpu._replace(count=4))
  assert first == 'device: cpu, EPYC (2 cores), as 4 devices'
  assert "'ga_jax[cuda13]'" in warning
  gpu = accelerators.ComputesWith('gpu', 'NVIDIA H100', 2)
  assert said(gpu) == ['device: gpu, 2 × NVIDIA H100']
  assert said('gpu, of the Ray cluster') == ['device: gpu, of the Ray cluster']


def test_here_is_the_device_that_training_uses():
  found = accelerators.here()
  assert found.platform == 'cpu'
  assert found.name == environment.device_name()
  assert found.count == jax.local_device_count()
  threads = settings_lib.Settings(runtime='threads')
  assert train.computes_with(threads) == found


@pytest.mark.parametrize('quiet', [False, True])
def test_a_script_names_its_device_first_unless_quiet(quiet, tmp_path):
  done = scripts.call(
    'compare',
    *('--methods=asgd', '--workers=1', '--seeds=1', '--epochs=0.1'),
    *(f'--workdir={tmp_path}', f'--quiet={quiet}'),
  )
  assert done.code == 0, done.err
  line = f'device: {accelerators.here()}\n'
  assert done.err == ('' if quiet else line)


def test_a_script_that_computes_nothing_names_no_device():
  done = scripts.call('reproduce', '--list')
  assert (done.code, done.err) == (0, '')
