"""What outlives a process: parameters, and checkpoints to go on from.

Arrays are written by Orbax.
"""

import contextlib
import hashlib
import json
import operator
import os
import pickle
import re
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ga_jax import exclusive, locks

_ARRAYS, _HOST, _MANIFEST = 'arrays', 'host.pickle', 'manifest.json'
_HIDDEN = '.partial-'
_NAME = re.compile(r'(\d+)-step-(\d+)')  # serial, step


def save_params(path: str, params: Any, model_state: Any = ()):
  """Saves what inference needs.

  Args:
    path: a folder that does not exist yet; it appears when it is complete.
    params: pytree of arrays.
    model_state: pytree of running statistics.
  """
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(
      os.path.abspath(path),
      {'params': params, 'model_state': _dict(model_state)},
    )


def load_params(path: str, like: tuple[Any, Any] | None = None):
  """Loads what `save_params` wrote.

  Args:
    path: the folder.
    like: `(params, model_state)` of arrays or shapes, whose tree and sharding
      are taken; without it nested dicts of arrays are returned.

  Returns:
    `(params, model_state)`.

  Raises:
    FileNotFoundError: no parameters there.
  """
  import orbax.checkpoint as ocp

  path = os.path.abspath(path)
  if not os.path.isdir(path):
    raise FileNotFoundError(f'no saved parameters at {path}')
  target = None
  if like is not None:
    target = {'params': like[0], 'model_state': _dict(like[1])}
  with ocp.StandardCheckpointer() as checkpointer:
    loaded = checkpointer.restore(path, target)
  return loaded['params'], loaded['model_state'] or ()


def _dict(model_state):
  return {} if model_state == () else model_state


class Leaf(NamedTuple):
  """What is known of a saved array."""

  shape: tuple[int, ...]
  dtype: str
  key_impl: str | None  # of typed PRNG keys
  empty: np.ndarray | None  # itself, if it has no elements: Orbax refuses it

  def __str__(self):
    return f'{self.dtype}{list(self.shape)}'


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
  leaves: dict[str, Leaf]

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
    import orbax.checkpoint as ocp

    wanted = _named_leaves(like)
    for name in self.leaves | wanted:
      saved = self.leaves.get(name, 'nothing')
      asked = _describe(name, wanted[name]) if name in wanted else 'nothing'
      if str(saved) != str(asked):
        raise ValueError(f'{self.path} holds {saved} at {name}, not {asked}')
    stored = {}
    if any(leaf.empty is None for leaf in self.leaves.values()):
      with ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.restore(os.path.join(self.path, _ARRAYS))
    loaded = {
      name: _restore(leaf, stored.get(str(i)), wanted[name])
      for i, (name, leaf) in enumerate(self.leaves.items())
    }
    return jax.tree.structure(like).unflatten(loaded[name] for name in wanted)


class CheckpointStore:
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
    if keep < 1:
      raise ValueError(f'keep must be at least 1, got {keep}')
    self.folder = os.path.abspath(folder)
    self.keep = keep
    self._owned = None  # the lock on the folder
    self._lock = threading.RLock()

  @contextlib.contextmanager
  def owned(self):
    """Keeps others from saving here; its folder is made.

    Yields:
      The lock.

    Raises:
      OccupiedError: another process is saving here.
      OSError: there can be no such folder.
    """
    if self._owned is not None:
      yield self._owned
      return
    os.makedirs(self.folder, exist_ok=True)
    with locks.FolderLock(self.folder) as self._owned:
      try:
        yield self._owned
      finally:
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
    step = operator.index(step)
    if step < 0:
      raise ValueError(f'step must be at least 0, got {step}')
    leaves, stored = {}, {}
    for i, (name, leaf) in enumerate(_named_leaves(arrays).items()):
      described = _describe(name, leaf)
      value = jax.random.key_data(leaf) if described.key_impl else leaf
      value = np.asarray(value)
      if value.size:
        stored[str(i)] = value
      else:
        described = described._replace(empty=value)
      leaves[name] = described
    pickled = pickle.dumps((leaves, host))
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(self.owned()).check()
        self._place(step, stored, pickled)
      except (locks.LostError, locks.OccupiedError):
        raise
      except Exception as error:  # Orbax raises a ValueError on a full disk
        raise OSError(
          f'the checkpoint of step {step} cannot be saved in {self.folder}: '
          f'{error}'
        ) from error
      self._prune()

  def _place(self, step: int, stored, pickled):
    """Writes a checkpoint, whole or not at all."""
    serial = max((serial for serial, _ in self._entries()), default=-1) + 1
    path = self._path(serial, step)
    for name in os.listdir(self.folder):
      if name.startswith(_HIDDEN):  # of a process that was killed
        shutil.rmtree(os.path.join(self.folder, name))
    try:
      _write(_hidden(path), step, stored, pickled)
      os.rename(_hidden(path), path)
      _sync(self.folder)
    except Exception:
      shutil.rmtree(_hidden(path), ignore_errors=True)
      raise

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
      damage = _damage(path, step)
      if damage is None:
        with open(os.path.join(path, _HOST), 'rb') as file:
          leaves, host = pickle.load(file)
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


def _named_leaves(tree) -> dict[str, Any]:
  leaves, _ = jax.tree.flatten_with_path(tree)
  return {jax.tree_util.keystr(path) or 'root': leaf for path, leaf in leaves}


def _describe(name, leaf) -> Leaf:
  if not (hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')):
    raise TypeError(f'the leaf {name} is no array: {leaf!r}')
  is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  known = is_key and isinstance(leaf, jax.Array)  # no shape alone
  impl = jax.random.key_impl(leaf) if known else None
  return Leaf(leaf.shape, str(leaf.dtype), impl, None)


def _restore(leaf: Leaf, stored, like):
  value = stored if leaf.empty is None else leaf.empty
  if leaf.key_impl:
    value = jax.random.wrap_key_data(value, impl=leaf.key_impl)
  elif isinstance(like, np.ndarray | np.generic):
    return value
  placed = getattr(like, 'committed', True)
  return jax.device_put(value, like.sharding if placed else None)


def _write(folder, step, stored, pickled):
  import orbax.checkpoint as ocp

  os.mkdir(folder)
  if stored:
    with ocp.PyTreeCheckpointer() as checkpointer:
      checkpointer.save(os.path.join(folder, _ARRAYS), stored)
  with open(os.path.join(folder, _HOST), 'wb') as file:
    file.write(pickled)
  files = {}
  for parent, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(parent, name)
      files[os.path.relpath(path, folder)] = _size_and_hash(path)
      _sync(path)
    _sync(parent)
  path = os.path.join(folder, _MANIFEST)
  with open(path, 'w') as file:
    json.dump({'step': step, 'files': files}, file, indent=2)
  _sync(path)
  _sync(folder)


def _damage(folder: str, step: int) -> str | None:
  """What is wrong with a checkpoint, if anything is."""
  try:
    with open(os.path.join(folder, _MANIFEST)) as file:
      manifest = json.load(file)
    if manifest['step'] != step:
      return f'its manifest is of step {manifest["step"]}'
    for name, wanted in manifest['files'].items():
      if _size_and_hash(os.path.join(folder, name)) != wanted:
        return f'{name} has changed'
  except FileNotFoundError as error:
    return f'{os.path.relpath(error.filename, folder)} is missing'
  except OSError as error:
    return str(error)
  except (ValueError, KeyError, TypeError, AttributeError):
    return f'{_MANIFEST} is garbled'
  return None


def _size_and_hash(path: str) -> list:
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return [file.tell(), digest]


def _sync(path: str):
  """Waits until a file or a folder is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _hidden(path: str) -> str:
  folder, name = os.path.split(path)
  return os.path.join(folder, _HIDDEN + name)


def _print_to_stderr(message: str):
  print(message, file=sys.stderr)
