"""Checkpoints: folders that are there whole or not at all."""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ga_jax.guards import checks, exclusive, forms, locks
from ga_jax.record import arrays as arrays_lib
from ga_jax.record import files as files_lib
from ga_jax.record import values

_HOST, _HOST_ARRAYS = 'host.json', 'host.npz'
_PICKLED = 'host.pickle'  # of 0.1
_NAME = re.compile(r'(\d+)-step-(\d+)')  # serial, step
# Where what checkpoints of 0.1 name stands now.
_MOVED = {
  ('ga_jax.checkpoint', 'Leaf'): 'ga_jax.record.arrays',
  ('ga_jax.saving', 'Leaf'): 'ga_jax.record.arrays',
  ('ga_jax.ledger', 'Ticket'): 'ga_jax.server.ledger',
  ('ga_jax.runtimes.live', 'Telemetry'): 'ga_jax.live.result',
}


class PickledError(ValueError):
  """A checkpoint of 0.1, which may run code when it is read."""


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
  store. Nothing that is read here is run.
  """

  def __init__(self, folder: str, keep: int = 3, *, allow_pickle: bool = False):
    """Creates nothing before the first save.

    Args:
      folder: where the checkpoints are.
      keep: how many are kept, at least 1.
      allow_pickle: whether those of version 0.1 are read, whose host value is
        pickled: it may run anything. Only for folders that you trust.
    """
    self.folder = os.path.abspath(folder)
    self.keep = checks.integer('keep', keep, 1)
    self._allow_pickle = allow_pickle
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
      host: what JSON knows (None, booleans, numbers, strings, lists, dicts
        with strings as keys) and NumPy arrays of numbers or strings.

    Raises:
      TypeError: a leaf is no array, or something in the host value is neither;
        names it.
      ValueError: the step is negative.
      OccupiedError: another process is saving here.
      LostError: the folder was removed or replaced within `owned`.
      OSError: it cannot be written; the earlier ones stay as they were.
    """
    step = checks.integer('step', step, 0)
    leaves, stored = arrays_lib.on_host(arrays)
    files = {
      arrays_lib.LEAVES: json.dumps(arrays_lib.listed(leaves)).encode(),
      **_files_of(host),
    }
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

    Raises:
      PickledError: version 0.1 wrote it, and `allow_pickle` was not given.
    """
    entries = self._entries()
    while entries:
      serial, step = entries.pop()
      path = self._path(serial, step)
      damage = arrays_lib.damage(path, 'step', step)
      if damage is None:
        try:
          return Checkpoint(step, *self._read(path))
        except PickledError:
          raise
        except (OSError, ValueError) as error:
          damage = str(error)
      instead = f'that of step {entries[-1][1]}' if entries else 'none'
      (warn or _print_to_stderr)(
        f'checkpoint {path} is damaged ({damage}): {instead} is used instead'
      )
    return None

  def _read(self, path: str) -> tuple[Any, str, dict[str, arrays_lib.Leaf]]:
    """Host value, path and leaves of a checkpoint."""
    if os.path.exists(os.path.join(path, _PICKLED)):
      if not self._allow_pickle:
        raise PickledError(
          f'{path} is of version 0.1, which pickled: to read it may run '
          'anything. Where you trust it, CheckpointStore(..., '
          'allow_pickle=True) reads it; a run goes on with the version that '
          'began it'
        )
      with open(os.path.join(path, _PICKLED), 'rb') as file:
        leaves, host = _Unpickler(file).load()
      return host, path, leaves
    leaves = files_lib.read_json(
      os.path.join(path, arrays_lib.LEAVES),
      forms.listed(forms.fields(arrays_lib.LISTED)),
    )
    host = values.joined(
      files_lib.read_json(os.path.join(path, _HOST), values.FORM, finite=False),
      files_lib.read_arrays(os.path.join(path, _HOST_ARRAYS)),
    )
    return host, path, arrays_lib.leaves_of(path, leaves)

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


def _files_of(host: Any) -> dict[str, bytes]:
  """The files that hold a host value."""
  kept, arrays = values.split(host, 'host')
  stream = io.BytesIO()
  np.savez_compressed(stream, **arrays)
  return {_HOST: json.dumps(kept).encode(), _HOST_ARRAYS: stream.getvalue()}


class _Unpickler(pickle.Unpickler):
  """Reads what 0.1 saved too."""

  def find_class(self, module: str, name: str):
    return super().find_class(_MOVED.get((module, name), module), name)


def _print_to_stderr(message: str):
  print(message, file=sys.stderr)
