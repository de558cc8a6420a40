"""Which devices a live run uses here; said before JAX starts."""

import contextlib
import os
import sys
from typing import Any

import jax

from experiments.settings import table as settings_lib
from ga_jax.workers import placement

_PREALLOCATE = 'XLA_PYTHON_CLIENT_PREALLOCATE'
_MOST = 1024  # devices of a process: on the CPU each has threads of its own


def use(settings: settings_lib.Settings):
  """Makes CPU devices for the workers, and checks that there are enough.

  On the CPU the devices of one worker are made for each worker, up to the
  cores, where --devices or --simulate_devices do not say how many; on Ray every
  process has those of one worker. Nothing is done for the simulated cluster on
  one device.

  Raises:
    SettingError: there are fewer devices than asked for, or could be.
  """
  simulated = settings.runtime == 'simulate'
  if simulated and not settings.simulate_devices:
    return
  cores, each = len(os.sched_getaffinity(0)), settings.devices_per_worker
  workers = 1
  if settings.runtime != 'ray':
    workers = min(settings.workers, max(1, cores // each))
  wanted = settings.devices or workers * each
  flag = 'devices'
  if settings.simulate_devices.isdecimal():
    flag, wanted = 'simulate_devices', int(settings.simulate_devices)
  if wanted > _MOST:
    raise settings_lib.SettingError(flag, wanted, f'must be at most {_MOST}')
  with contextlib.suppress(RuntimeError):  # JAX has started, with what it has
    jax.config.update('jax_num_cpu_devices', wanted)
  if simulated:
    simulators(settings)
    return
  if settings.runtime == 'ray':
    _start_small()
  found = len(jax.local_devices())
  if settings.devices > found:
    raise settings_lib.SettingError(
      'devices', settings.devices, f'this machine has {found}'
    )
  if settings.runtime == 'threads' and found < each:
    raise settings_lib.SettingError(
      'devices_per_worker', each, f'there are {found} devices'
    )
  if jax.default_backend() == 'cpu' and settings.workers > cores:
    print(
      f'note: {settings.workers} workers share {cores} cores: beyond the cores '
      'they only wait for each other',
      file=sys.stderr,
    )


def _start_small():
  """Starts JAX without the memory of GPUs, which server and workers take.

  They begin without this variable: they would be given it with a cluster that
  this process starts.
  """
  said = _PREALLOCATE in os.environ
  os.environ.setdefault(_PREALLOCATE, 'false')
  jax.local_devices()
  if not said:
    del os.environ[_PREALLOCATE]


def simulators(settings: settings_lib.Settings) -> list[Any] | None:
  """The devices that compute a simulated run; None for JAX's own choice.

  Raises:
    SettingError: there are fewer than asked for.
  """
  wanted, found = settings.simulate_devices, jax.local_devices()
  if not wanted:
    return None
  if wanted == 'all':
    return found
  if int(wanted) > len(found):
    raise settings_lib.SettingError(
      'simulate_devices', wanted, f'this process has {len(found)} devices'
    )
  return found[: int(wanted)]


def of_one_worker(
  settings: settings_lib.Settings,
) -> placement.Placement | None:
  """Devices that compute again what a worker did; None where any one does.

  Raises:
    SettingError: there are fewer than it had.
  """
  found, each = jax.local_devices(), settings.devices_per_worker
  if each == 1:
    return None
  if len(found) < each:
    raise settings_lib.SettingError(
      'devices_per_worker', each, f'this process has {len(found)} devices'
    )
  return placement.shared_out(found, each)[0]
