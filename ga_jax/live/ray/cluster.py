"""The cluster: how a process comes to it, and what its processes share."""

import contextlib
import os
import pathlib
import secrets
import shlex
import socket
import tempfile

import ray
from ray import exceptions
from ray._private import services

from ga_jax.live.ray import signals

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
_ANSWER_SECONDS = 5.0  # for a head that is there


class AccessError(ValueError):
  """Others could come into a cluster, or into this process."""


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

  Handlers of SIGINT and SIGTERM stay those that there are.

  Args:
    address: 'auto' for the cluster that this machine belongs to, 'local' for a
      new one on this machine, with a token, else HOST:PORT of its head.
    num_cpus: of the new one, so that all workers find room.

  Raises:
    ConnectionError: there is none at that address, or it has another token.
    AccessError: others could come in.
  """
  if ray.is_initialized():
    return
  _check_access()
  with signals.kept():
    if address != 'local':
      _check_answer(address)
      ray.init(address=address)
      return
    _make_token()
    ray.init(
      address='local',
      num_cpus=num_cpus,
      include_dashboard=False,
      _temp_dir=_private_folder(),
    )


def _check_access():
  """Raises an AccessError where the environment lets others in."""
  mode = os.environ.get('RAY_AUTH_MODE', 'token')
  if mode != 'token':
    raise AccessError(
      f'RAY_AUTH_MODE={mode}: without a token whoever reaches this machine '
      'runs programs on it; unset it'
    )
  if os.environ.get('RAY_AUTH_TOKEN'):  # it comes before the file
    return
  path = _token_path()
  with contextlib.suppress(FileNotFoundError):
    if os.stat(path).st_mode & 0o077:
      raise AccessError(
        f'the token in {path} is open to others of this machine: '
        f'chmod 600 {shlex.quote(str(path))}'
      )


def _check_answer(address: str):
  """Raises a ConnectionError where a cluster is not there, or lets nobody in.

  Ray itself tries again for minutes, and says so each time.
  """
  found = services.canonicalize_bootstrap_address(address)
  if found is None:  # none is known here: Ray says so at once
    return
  host, _, port = found.rpartition(':')
  try:
    there = host.strip('[]'), int(port)
    socket.create_connection(there, _ANSWER_SECONDS).close()
  except OSError as error:
    why = error.strerror or error
    raise ConnectionError(f'nothing answers at {found}: {why}') from error
  try:
    ray._raylet.GcsClient(address=found)
  except exceptions.AuthenticationError as error:
    raise ConnectionError(
      f'the cluster at {found} does not take the token of this process'
    ) from error


def _token_path() -> pathlib.Path:
  own = os.environ.get('RAY_AUTH_TOKEN_PATH')
  return pathlib.Path(own or '~/.ray/auth_token').expanduser()


def _make_token():
  """Makes Ray's token where there is none, for nobody else's eyes.

  Ray would make it too, but readable by everybody.
  """
  if {'RAY_AUTH_TOKEN', 'RAY_AUTH_TOKEN_PATH'} & set(os.environ):
    return
  path = _token_path()
  path.parent.mkdir(mode=0o700, exist_ok=True)
  with contextlib.suppress(FileExistsError):
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with open(os.open(path, flags, 0o600), 'w', encoding='utf-8') as file:
      file.write(secrets.token_hex(32))


def _private_folder() -> str:
  """A folder for sockets and logs, which Ray would open to everybody.

  Raises:
    AccessError: somebody else has made it.
  """
  base = os.environ.get('RAY_TMPDIR') or tempfile.gettempdir()
  folder = os.path.join(base, f'ga_ray-{os.getuid()}')
  os.makedirs(folder, mode=0o700, exist_ok=True)
  if os.path.islink(folder) or os.stat(folder).st_uid != os.getuid():
    raise AccessError(
      f'{folder} belongs to somebody else: set RAY_TMPDIR to a folder of yours'
    )
  os.chmod(folder, 0o700)
  return os.path.join(folder, 'local')
