"""Whose a folder is: one process's, or those's that compute one grid together.

A script takes its folders before it reads or writes anything in them, and has
them until it ends, however it ends: see `ga_jax.guards.locks`.
"""

import contextlib
import itertools
import os

from experiments.settings import table as settings_lib
from ga_jax.guards import locks

_held = []  # locks of this process


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
    except FileExistsError:
      continue
    except OSError as error:
      raise _unwritable('workdir', name, error) from error
    own('workdir', name)
    return name


def look(flag: str, path: str):
  """Refuses to read a folder in which a run goes on.

  Raises:
    SettingError: another process is alone at work there.
  """
  if path and locks.is_owned(path):
    raise _occupied(flag, path)


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
    probe = os.path.join(path, '.probe')
    with open(probe, 'w', encoding='utf-8'):
      pass
    os.unlink(probe)
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
  for lock in _held:
    lock.check()


@contextlib.contextmanager
def held():
  """Lets go of the folders at the end.

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


def _take(flag, path, shared):
  try:
    os.makedirs(path, exist_ok=True)
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
