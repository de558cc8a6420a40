"""The cluster: how a process comes to it, and what its processes share."""

import contextlib
import os
import pathlib
import secrets

import ray

# Environment variables that every process of a run has in common.
_SHARED = (
  *('XLA_FLAGS', 'PJRT_NPROC', 'NPROC', 'PYTHONPATH', 'JAX_ENABLE_X64'),
  'JAX_COMPILATION_CACHE_DIR',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES',
)
# Every update makes arrays of the parameters' size, in fresh memory: the kernel
# clears it page by page, which takes longer than the update where a page is
# 4 KiB. This asks for 2 MiB where Linux gives them on request (glibc 2.35 and
# later; others ignore it). At most 2 MiB of each large block are wasted.
_ALLOCATOR = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}


def environment(devices: int, given: dict[str, str] | None) -> dict[str, str]:
  """Environment variables of every process of a run.

  Args:
    devices: that each process may hold.
    given: those that win over all others; the next are this process's own.
  """
  names = (*_SHARED, *_ALLOCATOR)
  own = {name: os.environ[name] for name in names if name in os.environ}
  number = {'JAX_NUM_CPU_DEVICES': str(devices)}
  return _ALLOCATOR | own | number | (given or {})


def connect(address: str, num_cpus: int):
  """Connects this process to a cluster, if it is not.

  Args:
    address: 'auto' for the cluster that this machine belongs to, 'local' for a
      new one on this machine, with a token, else HOST:PORT of its head.
    num_cpus: of the new one, so that all workers find room.

  Raises:
    ConnectionError: there is none at that address.
  """
  if ray.is_initialized():
    return
  if address != 'local':
    ray.init(address=address)
    return
  _make_token()
  ray.init(address='local', num_cpus=num_cpus, include_dashboard=False)


def _make_token():
  """Makes Ray's token where there is none, for nobody else's eyes.

  Ray would make it too, but readable by everybody.
  """
  if {'RAY_AUTH_TOKEN', 'RAY_AUTH_TOKEN_PATH'} & set(os.environ):
    return
  path = pathlib.Path.home() / '.ray' / 'auth_token'
  path.parent.mkdir(mode=0o700, exist_ok=True)
  with contextlib.suppress(FileExistsError):
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with open(os.open(path, flags, 0o600), 'w', encoding='utf-8') as file:
      file.write(secrets.token_hex(32))
