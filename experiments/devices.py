"""Which devices a live run uses here; said before JAX starts."""

import contextlib
import os
import sys

import jax

from experiments import settings as settings_lib
from ga_jax.runtimes import placement


def use(settings: settings_lib.Settings):
  """Makes CPU devices for the workers, and checks that there are enough.

  Nothing is done for the simulated cluster. On the CPU the devices of one
  worker are made for each worker, up to the cores, where --devices does not say
  how many; on Ray every process has those of one worker.

  Raises:
    SettingError: there are fewer devices than asked for.
  """
  if settings.runtime == 'simulate':
    return
  cores, each = len(os.sched_getaffinity(0)), settings.devices_per_worker
  workers = 1
  if settings.runtime == 'threads':
    workers = min(settings.workers, max(1, cores // each))
  wanted = settings.devices or workers * each
  with contextlib.suppress(RuntimeError):  # JAX has started, with what it has
    jax.config.update('jax_num_cpu_devices', wanted)
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
