"""Which devices a run on threads uses; said before JAX starts."""

import contextlib
import os
import sys

import jax

from experiments import settings as settings_lib


def use(settings: settings_lib.Settings):
  """Makes CPU devices for the workers, and checks that there are enough.

  Nothing is done for the simulated cluster. On the CPU one device per worker is
  made, up to the cores, where --devices does not say how many.

  Raises:
    SettingError: there are fewer devices than asked for.
  """
  if settings.runtime != 'threads':
    return
  cores = len(os.sched_getaffinity(0))
  wanted = settings.devices or min(settings.workers, cores)
  with contextlib.suppress(RuntimeError):  # JAX has started, with what it has
    jax.config.update('jax_num_cpu_devices', wanted)
  found = len(jax.local_devices())
  if settings.devices > found:
    raise settings_lib.SettingError(
      'devices', settings.devices, f'this machine has {found}'
    )
  if jax.default_backend() == 'cpu' and settings.workers > cores:
    print(
      f'note: {settings.workers} workers share {cores} cores: beyond the cores '
      'they only wait for each other',
      file=sys.stderr,
    )
