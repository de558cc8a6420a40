"""Checkpoints: folders that are there whole or not at all."""

import contextlib
import os
import pickle
import re
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from ga_jax.guards import checks, exclusive, locks
from ga_jax.record import arrays as arrays_lib

_HOST = 'host.pickle'
_NAME = re.compile(r'(\d+)-step-(\d+)')  # serial, step
# Where what checkpoints of 0.1 name stands now.
_MOVED = {
  ('ga_jax.checkpoint', 'Leaf'): 'ga_jax.record.arrays',
  ('ga_jax.ledger', 'Ticket'): 'ga_jax.server.ledger',
  ('ga_jax.runtimes.live', 'Telemetry'): 'ga_jax.live.result',
}


class Checkpoint(NamedTuple):
  """A whole checkpoint; to be loaded before the next one is saved.

  Attributes:
    step: the step it was saved as.
    host: what was given as `host`.
    path: its folder.
    leaves: path in the tree -> `Leaf`, in order.
  """

  step: int
  host: Any
  path: str
  leaves: dict[str, arrays_lib.Leaf]

  def load(self, like: Any) -> Any:
    """Loads the arrays.

    Args:
      like: pytree of arrays or `jax.ShapeDtypeStruct`s, whose tree and sharding
        are taken. Where it holds NumPy arrays, NumPy arrays are returned.

    Returns:
      A pytree of arrays.

    Raises:
      ValueError: another tree, shape or dtype was saved; names the leaf.
    """
    return arrays_lib.load(self.path, self.leaves, like)


class CheckpointStore(exclusive.Exclusive):
  """A folder with the last few checkpoints of one run.

  A checkpoint is there whole or not at all, whenever the process is killed: it
  is written into a hidden folder, with a manifest of sizes and hashes, and
  renamed when it is on the disk. One process at a time saves, from any of its
  threads; within `owned` nobody else does, as in every run that is given a
  store. The host value is pickled: open only folders that you trust.
  """

  def __init__(self, folder: str, keep: int = 3):
    """Creates nothing before the first save.

    Args:
      folder: where the checkpoints are.
      keep: how many are kept, at least 1.
    """
    self.folder = os.path.abspath(folder)
    self.keep = checks.integer('keep', keep, 1)
    self._owned = None  # (lock on the folder, thread that took it)
    super().__init__()

  def __getstate__(self):
    return {**super().__getstate__(), '_owned': None}  # of this process

  @contextlib.contextmanager
  def owned(self):
    """Keeps others from saving here; its folder is made.

    Within it the same thread may call it again.

    Yields:
      The lock.

    Raises:
      OccupiedError: another process, or another thread of this one, has it.
      OSError: there can be no such folder.
    """
    lock, thread = self._owned or (None, None)
    if lock is not None and lock.held and thread == threading.get_ident():
      yield lock
      return
    os.makedirs(self.folder, exist_ok=True)
    with locks.FolderLock(self.folder) as lock:
      self._owned = lock, threading.get_ident()
      try:
        yield lock
      finally:
        with self._lock:  # not while somebody saves
          self._owned = None

  @exclusive.locked
  def steps(self) -> list[int]:
    """The steps that are there, in the order they were saved; unchecked."""
    return [step for _, step in self._entries()]

  @exclusive.locked
  def save(self, step: int, arrays: Any, host: Any = None):
    """Saves a checkpoint, and returns when it is on the disk.

    It becomes the newest one, whatever its step. One of the same step is
    replaced, and those beyond `keep` are removed, once it is in place.

    Args:
      step: how far the run got, at least 0.
      arrays: pytree of JAX or NumPy arrays; nothing is kept of them.
      host: any value that can be pickled.

    Raises:
      TypeError: a leaf is no array; names the leaf.
      ValueError: the step is negative.
      OccupiedError: another process is saving here.
      LostError: the folder was removed or replaced within `owned`.
      OSError: it cannot be written; the earlier ones stay as they were.
    """
    step = checks.integer('step', step, 0)
    leaves, stored = arrays_lib.on_host(arrays)
    files = {_HOST: pickle.dumps((leaves, host))}
    what = f'the checkpoint of step {step}'
    with contextlib.ExitStack() as stack:
      try:
        lock, _ = self._owned or (None, None)
        if lock is None or not lock.held:
          os.makedirs(self.folder, exist_ok=True)
          lock = stack.enter_context(locks.FolderLock(self.folder))
        lock.check()
      except (locks.LostError, locks.OccupiedError):
        raise
      except OSError as error:
        raise OSError(
          f'{what} cannot be saved in {self.folder}: {error}'
        ) from error
      serial = max((serial for serial, _ in self._entries()), default=-1) + 1
      with arrays_lib.replacing(self._path(serial, step), what) as hidden:
        for name in os.listdir(self.folder):
          if name.startswith(arrays_lib.HIDDEN):  # of a process that was killed
            shutil.rmtree(os.path.join(self.folder, name))
        arrays_lib.write(hidden, stored, files, {'step': step})
      self._prune()

  @exclusive.locked
  def newest(
    self, warn: Callable[[str], None] | None = None
  ) -> Checkpoint | None:
    """The checkpoint that was saved last, of those that are whole.

    Args:
      warn: told in one line of each damaged one that is passed over; by default
        it is printed to stderr.

    Returns:
      A `Checkpoint`, None if there is none.
    """
    entries = self._entries()
    while entries:
      serial, step = entries.pop()
      path = self._path(serial, step)
      damage = arrays_lib.damage(path, 'step', step)
      if damage is None:
        with open(os.path.join(path, _HOST), 'rb') as file:
          leaves, host = _Unpickler(file).load()
        return Checkpoint(step, host, path, leaves)
      instead = f'that of step {entries[-1][1]}' if entries else 'none'
      (warn or _print_to_stderr)(
        f'checkpoint {path} is damaged ({damage}): {instead} is used instead'
      )
    return None

  def _entries(self) -> list[tuple[int, int]]:
    """(serial, step) of what is in place, in the order it was saved."""
    if not os.path.isdir(self.folder):
      return []
    names = map(_NAME.fullmatch, os.listdir(self.folder))
    return sorted((int(name[1]), int(name[2])) for name in names if name)

  def _path(self, serial: int, step: int) -> str:
    return os.path.join(self.folder, f'{serial:06d}-step-{step}')

  def _prune(self):
    kept = set()
    for serial, step in reversed(self._entries()):
      if step in kept or len(kept) == self.keep:
        shutil.rmtree(self._path(serial, step))
      else:
        kept.add(step)


class _Unpickler(pickle.Unpickler):
  """Reads what 0.1 saved too."""

  def find_class(self, module: str, name: str):
    return super().find_class(_MOVED.get((module, name), module), name)


def _print_to_stderr(message: str):
  print(message, file=sys.stderr)
