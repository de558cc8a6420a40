"""One process at a time: locks on files and folders.

They are the kernel's (`flock`): a process that ends, however it ends, holds
none, and a child process inherits none. They are advisory, so that they keep
out those who ask. Where a file system has no locks, a warning says so and
nobody is kept out.
"""

import contextlib
import os
import socket
import time
import warnings
import weakref

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

FILE = '.lock'  # in a folder; it is there as long as somebody holds it
_TRIES, _PAUSE = 10, 0.01  # seconds: who only looks holds a lock for a moment
_ALL = weakref.WeakSet()


class OccupiedError(OSError):
  """Another process is at work there."""


class LostError(OSError):
  """What was written to is gone, or something else has its name."""


class Lock:
  """A lock on a file, until `release` or the end of the process."""

  def __init__(self, path: str, *, shared: bool = False):
    """Takes the lock.

    Args:
      path: of the file; it is made where it is not there.
      shared: whether others may share it.

    Raises:
      OccupiedError: somebody else has it.
      OSError: there can be no such file.
    """
    self.path = os.path.abspath(path)
    self._file = None
    self._kept = {}  # path -> open file
    _ALL.add(self)
    while self._file is None:
      self._file = _opened(self.path)
      try:
        _lock(self._file, shared)
      except OccupiedError as error:
        message = f'{self._owner()} is at work in {self._name()}'
        Lock.release(self)
        raise OccupiedError(message) from error
      if not _is_at(self._file, self.path):  # removed by who had it
        Lock.release(self)

  def _name(self) -> str:
    """What it is a lock on."""
    return self.path

  def _owner(self) -> str:
    """Who has it."""
    return 'another process'

  @property
  def held(self) -> bool:
    """Whether it is held, by this process."""
    return self._file is not None

  def keep(self, path: str):
    """Has `check` look after another file too, which must be there."""
    self._kept[os.path.abspath(path)] = open(path, 'rb')  # noqa: SIM115

  def check(self):
    """Checks that nobody has taken away what is locked.

    Raises:
      LostError: it is gone, or something else has its name.
    """
    if self._file is None:
      return
    for path, file in {self.path: self._file, **self._kept}.items():
      if not _is_at(file, path):
        name = self._name() if path == self.path else path
        raise LostError(
          f'{name} is gone, or something else has its name now: it was removed '
          'or replaced while this process was at work there'
        )

  def release(self):
    """Lets go of it."""
    for file in (*self._kept.values(), self._file):
      if file is not None:
        file.close()
    self._file, self._kept = None, {}

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.release()


class FolderLock(Lock):
  """A lock on a folder, which tells others who holds it."""

  def __init__(self, folder: str, *, shared: bool = False):
    """Takes the lock.

    Args:
      folder: must be there.
      shared: whether others may share it.

    Raises:
      OccupiedError: somebody else has it.
      OSError: nothing can be written there.
    """
    super().__init__(os.path.join(folder, FILE), shared=shared)
    self._file.truncate(0)
    self._file.write(f'{os.getpid()} {socket.gethostname()}\n'.encode())

  def _name(self) -> str:
    return os.path.dirname(self.path)

  def _owner(self) -> str:
    return owner(self._name())

  def release(self):
    """Lets go of it; the last one removes its file."""
    if self._file is not None and _is_at(self._file, self.path):
      with contextlib.suppress(OSError):  # others share it
        _lock(self._file, tries=1)
        os.unlink(self.path)
    super().release()


def owner(folder: str) -> str:
  """Who took the lock on a folder last: 'process 12 on HOST', if it says so."""
  words = []
  with (
    contextlib.suppress(OSError),
    open(
      os.path.join(folder, FILE), encoding='utf-8', errors='replace'
    ) as file,
  ):
    words = file.read(500).split()
  if len(words) == 2 and words[0].isdecimal():
    return f'process {words[0]} on {words[1]}'
  return 'another process'


def is_owned(folder: str) -> bool:
  """Whether a process has a folder for itself alone."""
  try:
    with open(os.path.join(folder, FILE), 'rb') as file:
      _lock(file, shared=True, tries=1)
  except OccupiedError:
    return True
  except OSError:  # no such file, or not for us
    pass
  return False


def _opened(path: str):
  """A file to be locked; no byte of it is touched.

  Network file systems lock only what is open for writing.
  """

  def opener(path, flags):
    return os.open(path, flags | os.O_CREAT, 0o666)

  return open(path, 'r+b', buffering=0, opener=opener)


def _lock(file, shared: bool = False, tries: int = _TRIES):
  """Locks an open file.

  Raises:
    OccupiedError: somebody else has it.
  """
  if fcntl is None:
    _warn(file.name, 'this system has no flock')
    return
  kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
  for left in reversed(range(tries)):
    try:
      fcntl.flock(file, kind | fcntl.LOCK_NB)
      return
    except (BlockingIOError, PermissionError) as error:
      if not left:
        raise OccupiedError(*error.args) from error
    except OSError as error:
      _warn(file.name, error.strerror)
      return
    time.sleep(_PAUSE)


def _warn(path, why):
  warnings.warn(
    f'{path} cannot be locked ({why}): nothing keeps another process out',
    stacklevel=4,
  )


def _is_at(file, path: str) -> bool:
  """Whether an open file is the one at a path."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
  except OSError:
    return False


def _forget():
  """In a child process: the locks are its parent's."""
  for lock in list(_ALL):
    Lock.release(lock)


if hasattr(os, 'register_at_fork'):
  os.register_at_fork(after_in_child=_forget)
