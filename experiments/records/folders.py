"""Whose a folder is: one process's, or those's that compute one grid together.

A script takes its folders before it reads or writes anything in them, and has
them until it ends, however it ends: see `ga_jax.guards.locks`.
"""

import contextlib
import itertools
import os
import tempfile

from experiments.settings import table as settings_lib
from ga_jax.guards import locks
from ga_jax.record import files

_held = []  # locks of this process
_made = []  # folders that were not there before
# How the names of all that runs write begin.
_WRITTEN = ('config.', 'versions.', 'environment.', 'began.', 'metrics.')
_WRITTEN += ('trace.', 'arrivals.', 'params', 'summary.', 'digests.')
_WRITTEN += ('checkpoints', 'tensorboard', 'replay-', 'results.', 'table.')


def own(flag: str, path: str):
  """Takes a folder for this process alone; makes it where it is not there.

  Args:
    flag: that named it.
    path: of the folder.

  Raises:
    SettingError: another process is at work there, or nothing can be written.
  """
  _take(flag, path, shared=False)


def share(flag: str, path: str):
  """Takes a folder together with others who share it; see `own`."""
  _take(flag, path, shared=True)


def of_grid(flag: str, path: str) -> str:
  """Takes a folder together with others who compute the same grid.

  Args:
    flag: that named it.
    path: of the folder; made where it is not there.

  Returns:
    The path.

  Raises:
    SettingError: as `own`, or there is a run of `experiments.train`.
  """
  look(flag, path)
  if os.path.exists(os.path.join(path, 'config.json')):
    raise settings_lib.SettingError(
      flag, path, 'holds a run of experiments.train: name another folder'
    )
  share(flag, path)
  return path


def new(path: str) -> str:
  """Makes a folder that was not there and takes it.

  Args:
    path: of the folder; where there is one already its name gets a number.

  Returns:
    The path.

  Raises:
    SettingError: nothing can be written there.
  """
  for number in itertools.count(1):
    name = path if number == 1 else f'{path}-{number}'
    try:
      os.makedirs(name)
      _made.append(name)
    except FileExistsError:
      continue
    except OSError as error:
      raise _unwritable('workdir', name, error) from error
    own('workdir', name)
    return name


def look(flag: str, path: str):
  """Refuses to read a folder in which a run goes on, or one with links.

  Raises:
    SettingError: another process is alone at work there; or as `regular`.
  """
  regular(flag, path)
  if path and locks.is_owned(path):
    raise _occupied(flag, path)


def regular(flag: str, path: str):
  """Refuses a folder of a run in which something is no file and no folder.

  A link leads elsewhere, and what is written there is lost; a pipe or a device
  is never read to its end. Names that no run writes are not looked at.

  Args:
    flag: that named it.
    path: of the folder.

  Raises:
    SettingError: naming what is there.
  """
  waiting = [os.path.join(path, name) for name in _names(path)]
  while waiting:
    one = waiting.pop()
    try:
      kind = files.kind_of(one, folders=True)
    except FileNotFoundError:
      continue
    if kind:
      raise settings_lib.SettingError(
        flag,
        path,
        f'{os.path.relpath(one, path)} in it is {kind}: only regular files and '
        'folders are read',
      )
    if os.path.isdir(one):
      waiting += (os.path.join(one, name) for name in os.listdir(one))


def _names(path: str) -> list[str]:
  """What runs write, and what is there of it in a folder."""
  there = os.listdir(path) if os.path.isdir(path) else []
  return [
    name for name in there if name.startswith(_WRITTEN) or name == locks.FILE
  ]


def writable(flag: str, path: str) -> str:
  """Makes a folder where it is not there, and tries to write to it.

  Args:
    flag: that named it.
    path: of the folder.

  Returns:
    The path.

  Raises:
    SettingError: nothing can be written there.
  """
  try:
    os.makedirs(path, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    raise _unwritable(flag, path, error) from error
  return path


def writable_file(flag: str, path: str):
  """Tries whether a file can be written, before what is to be in it is made.

  Args:
    flag: that named it.
    path: of the file; the folder around it is made where it is not there.

  Raises:
    SettingError: it cannot.
  """
  writable(flag, os.path.dirname(os.path.abspath(path)))
  if os.path.isdir(path):
    raise settings_lib.SettingError(flag, path, 'must be a file, not a folder')


def keep(path: str):
  """Has `check` look after a file, if it is there, in a folder of ours."""
  folder = os.path.dirname(os.path.abspath(path))
  for lock in _held:
    if os.path.dirname(lock.path) == folder and os.path.exists(path):
      lock.keep(path)


def check():
  """Checks that the folders are still there, and the same.

  Raises:
    LostError: somebody has removed or replaced one, or a file that was kept.
  """
  try:
    for lock in _held:
      lock.check()
  except locks.LostError:
    _made.clear()  # what is there now is somebody else's
    raise


@contextlib.contextmanager
def held():
  """Lets go of the folders at the end; those it made and left empty are gone.

  Raises:
    LostError: one of them was lost meanwhile, also where the block failed.
  """
  try:
    yield
  except Exception:
    check()  # an error that comes from it says less
    raise
  else:
    check()
  finally:
    while _held:
      _held.pop().release()
    while _made:
      with contextlib.suppress(OSError):  # something is in it
        os.rmdir(_made.pop())


def _take(flag, path, shared):
  regular(flag, path)
  try:
    if not os.path.isdir(path):
      os.makedirs(path, exist_ok=True)
      _made.append(path)
    _held.append(locks.FolderLock(path, shared=shared))
  except locks.OccupiedError as error:
    raise _occupied(flag, path) from error
  except OSError as error:
    raise _unwritable(flag, path, error) from error


def _occupied(flag, path) -> settings_lib.SettingError:
  return settings_lib.SettingError(
    flag,
    path,
    f'{locks.owner(path)} is at work there: wait until it has ended, or name '
    'another folder',
  )


def _unwritable(
  flag: str, path: str, error: OSError
) -> settings_lib.SettingError:
  return settings_lib.SettingError(
    flag, path, f'must be a folder that can be written to ({error.strerror})'
  )
