"""What the bits of a run depend on, beside its settings and its trace.

A gradient's bits depend on the processor's instructions, on the size of XLA's
CPU thread pool, on XLA's flags, on some settings of JAX and on versions. A run
records them; some of them can be set for a process before it starts.
"""

import contextlib
import functools
import importlib.metadata
import os
import platform
import sys
from typing import Any, NamedTuple

import jax

import ga_jax
from experiments.running import restored

# Settings of JAX that change what is computed; in a process's environment they
# have the same names in capitals.
_OPTIONS = tuple(
  name
  for name in restored.VARIABLES
  if name not in ('thread_pool', 'jax_num_cpu_devices')
)
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
# What XLA chooses its vector code by; models of virtual machines say little.
_VECTOR_CODE = ('sse4', 'avx', 'fma', 'f16c', 'amx', 'asimd', 'sve')
# XLA takes the first of these that is a number as the size of its pool.
_POOL_VARIABLES = ('PJRT_NPROC', 'NPROC')
_RESTARTED = 'GA_JAX_RESTARTED'


class Difference(NamedTuple):
  """Something that was other when a run was recorded."""

  name: str
  recorded: Any
  now: Any

  def __str__(self):
    return f'{self.name} was {self.recorded!r}, is {self.now!r}'


@functools.cache
def versions() -> dict[str, str]:
  """Versions of everything the numbers depend on."""
  names = (*_PACKAGES, 'orbax-checkpoint')
  found = {name: importlib.metadata.version(name) for name in names}
  return {
    'ga_jax': ga_jax.__version__,
    'python': platform.python_version(),
    **found,
    'device': device_name(),
    'cpu_count': str(os.cpu_count()),
  }


def device_name() -> str:
  """What computes: the accelerator's kind, or the CPU's model and cores."""
  kind = jax.devices()[0].device_kind
  if jax.default_backend() != 'cpu':
    return kind
  return f'{_processor().get("model name", kind)} ({os.cpu_count()} cores)'


def environment() -> dict[str, Any]:
  """What the bits that this process computes depend on.

  Returns:
    {name: value}, as JSON keeps it. On an accelerator the CPU is left out.
  """
  device = jax.devices()[0]
  found = {'platform': device.platform, 'device_kind': device.device_kind}
  if device.platform == 'cpu':
    processor = _processor()
    flags = processor.get('flags', processor.get('Features', '')).split()
    found |= {
      'cpu_model': processor.get('model name', platform.machine()),
      'cpu_vector_code': ' '.join(
        sorted(flag for flag in flags if flag.startswith(_VECTOR_CODE))
      ),
      'thread_pool': thread_pool(),
      'jax_num_cpu_devices': jax.config.jax_num_cpu_devices,
    }
  else:
    found['platform_version'] = device.client.platform_version
  found['xla_flags'] = os.environ.get('XLA_FLAGS', '')
  found |= {
    name: getattr(jax.config, name, jax.config.values.get(name))
    for name in _OPTIONS
  }
  numbers = versions()
  return found | {
    name: numbers[name] for name in ('ga_jax', 'python', *_PACKAGES)
  }


def thread_pool() -> int:
  """Threads that XLA computes with on the CPU, as it counts them itself."""
  return max(wanted_threads(), jax.local_device_count('cpu'))


def wanted_threads() -> int:
  """What XLA makes its thread pool of, unless there are more devices.

  JAX need not have started, and is not started.
  """
  for name in _POOL_VARIABLES:
    with contextlib.suppress(KeyError, ValueError):
      return int(os.environ[name])
  return _usable_cores()


def _usable_cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@functools.cache
def _processor() -> dict[str, str]:
  """What Linux says of the first processor; {} elsewhere."""
  found = {}
  with (
    contextlib.suppress(OSError),
    open('/proc/cpuinfo', encoding='utf-8') as file,
  ):
    for line in file:
      if not line.strip():
        break
      name, _, value = line.partition(':')
      found[name.strip()] = value.strip()
  return found


def differences(
  recorded: dict[str, Any], now: dict[str, Any]
) -> list[Difference]:
  """What differs of two environments.

  Args:
    recorded: that of a run.
    now: that of this process.

  Returns:
    The differences. What only one of them names, such as the threads of a CPU
    beside an accelerator, is no difference: `platform` is one then.
  """
  return [
    Difference(name, value, now[name])
    for name, value in recorded.items()
    if name in now and now[name] != value
  ]


def restorable(
  found: list[Difference],
) -> tuple[dict[str, str | None], list[Difference | restored.Refused]]:
  """Splits differences into what another start of the process can undo.

  Args:
    found: differences.

  Returns:
    ({variable: value to start with, None to start without}, the differences
    that remain, and what no record may set, see `restored`). In a process that
    was started again already all remain.
  """
  if _RESTARTED in os.environ:
    return {}, found
  variables, remaining = {}, []
  to_cpu = any((d.name, d.recorded) == ('platform', 'cpu') for d in found)
  for difference in found:
    name, value = difference.name, difference.recorded
    if name in restored.VARIABLES:
      made = restored.variable(name, value)
      if isinstance(made, restored.Refused):
        remaining.append(made)
      else:
        variables |= made
    elif name == 'xla_flags':
      taken, refused = restored.xla_flags(value)
      remaining += refused
      if taken != difference.now:
        variables['XLA_FLAGS'] = taken or None
    elif name == 'platform' and to_cpu:
      variables['JAX_PLATFORMS'] = 'cpu'
    elif not (name == 'device_kind' and to_cpu):  # it follows from platform
      remaining.append(difference)
  return variables, remaining


def restart(variables: dict[str, str | None]):
  """Starts this process again, once, with other environment variables.

  Args:
    variables: see `restorable`.
  """
  shown = ' '.join(
    f'{name}={value or ""}'
    for name, value in variables.items()
    if value or name in os.environ
  )
  print(f'starting again with {shown}, as the run was', file=sys.stderr)
  kept = {k: v for k, v in os.environ.items() if k not in variables}
  wanted = {k: v for k, v in variables.items() if v is not None}
  sys.stdout.flush()
  sys.stderr.flush()
  os.execve(
    sys.executable,
    [sys.executable, *sys.orig_argv[1:]],
    {**kept, **wanted, _RESTARTED: '1'},
  )
