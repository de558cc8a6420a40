"""What a command computes with, and what it leaves unused.

JAX that was installed for the CPU trains there without a word, on a machine
with a GPU too; every command says first what it has.
"""

import contextlib
import glob
import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax

from experiments.running import environment

_SECONDS = 10.0  # that nvidia-smi may take; it waits where a driver hangs
_GOOGLE = '0x1ae0'  # on the PCI bus
# Variables that hide a GPU from a process, which somebody wanted then.
_HIDING = ('CUDA_VISIBLE_DEVICES', 'NVIDIA_VISIBLE_DEVICES')
_HOW = {
  'an NVIDIA GPU': "pip install 'ga_jax[cuda13]', or 'ga_jax[cuda12]' where "
  "NVIDIA's driver is older than 580",
  'a TPU': "pip install 'ga_jax[tpu]'",
}


class NoDeviceError(RuntimeError):
  """JAX_PLATFORMS asks for a device that is not here."""


class ComputesWith(NamedTuple):
  """What JAX computes with in a process.

  Attributes:
    platform: 'cpu', 'gpu' or 'tpu'.
    name: of the accelerator, or the CPU's model and cores.
    count: devices of this process.
  """

  platform: str
  name: str
  count: int

  def __str__(self):
    if self.platform != 'cpu':
      return f'{self.platform}, {self.count} × {self.name}'
    several = f', as {self.count} devices' if self.count > 1 else ''
    return f'cpu, {self.name}{several}'


def check():
  """Looks whether there is what JAX_PLATFORMS asks for; starts JAX for it.

  The CPU is there, and how many devices it has may be said later.

  Raises:
    NoDeviceError: it is not.
  """
  asked = jax.config.jax_platforms or ''
  if asked.partition(',')[0] in ('', 'cpu'):
    return
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # JAX asserts: no plugin
    why, *_ = str(error).splitlines() or [
      'no plugin of JAX is installed for it'
    ]
    raise NoDeviceError(
      f'JAX_PLATFORMS={asked}: JAX finds no such device: {why}; without '
      'JAX_PLATFORMS it takes what is here'
    ) from error


def here() -> ComputesWith:
  """What this process computes with; starts JAX."""
  platform = jax.local_devices()[0].platform
  return ComputesWith(
    platform, environment.device_name(), jax.local_device_count()
  )


def say(found: object, *, quiet: bool = False):
  """Says what a command computes with, and warns where more is there.

  On standard error: standard output is for what comes out.

  Args:
    found: a `ComputesWith`, or some words about other machines.
    quiet: whether only the warning is said.
  """
  if not quiet:
    print(f'device: {found}', file=sys.stderr)
  on_cpu = isinstance(found, ComputesWith) and found.platform == 'cpu'
  if on_cpu and (kind := unused()):
    print(
      f'warning: this machine has {kind}, and JAX does not use it: '
      f'{_HOW[kind]} (JAX_PLATFORMS=cpu says that it is meant)',
      file=sys.stderr,
    )


def unused(root: str = '/') -> str:
  """The accelerator that a process on the CPU could have had.

  Args:
    root: the folder that `dev` and `sys` are in.

  Returns:
    A key of what to do about it; '' where there is none, or where it was to be
    left alone (JAX_PLATFORMS, CUDA_VISIBLE_DEVICES).
  """
  if jax.config.jax_platforms:
    return ''
  if _has_tpu(root):
    return 'a TPU'
  hidden = any(os.environ.get(name) in ('', '-1', 'none') for name in _HIDING)
  return 'an NVIDIA GPU' if not hidden and _has_gpu(root) else ''


def _has_tpu(root: str) -> bool:
  """As launch/accelerator.sh sees it."""
  if glob.glob(os.path.join(root, 'dev', 'accel[0-9]*')):
    return True
  groups = os.path.join(root, 'dev', 'vfio', '[0-9]*')
  vendors = os.path.join(root, 'sys', 'bus', 'pci', 'devices', '*', 'vendor')
  return bool(glob.glob(groups)) and _GOOGLE in map(_read, glob.glob(vendors))


def _read(path: str) -> str:
  with contextlib.suppress(OSError), open(path, encoding='utf-8') as file:
    return file.read().strip()
  return ''


def _has_gpu(root: str) -> bool:
  if glob.glob(os.path.join(root, 'dev', 'nvidia[0-9]*')):
    return True
  if not shutil.which('nvidia-smi'):
    return False
  with contextlib.suppress(OSError, subprocess.TimeoutExpired):
    done = subprocess.run(
      ['nvidia-smi', '--list-gpus'],
      capture_output=True,
      check=False,
      timeout=_SECONDS,
    )
    return done.returncode == 0 and b'GPU' in done.stdout
  return False
