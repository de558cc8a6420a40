"""What outlives a process: parameters, and checkpoints to go on from.

Both are folders that are there whole or not at all, with sizes and hashes of
all their files; see `saving`.
"""

import contextlib
import json
import os
import pickle
import re
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax import checks, exclusive, locks, saving

Leaf = saving.Leaf  # what checkpoints of 0.1 call it
_HOST = 'host.pickle'
_LEAVES = 'leaves.json'
_FORMAT = 'ga_jax parameters 1'
_NAME = re.compile(r'(\d+)-step-(\d+)')  # serial, step


def save_params(path: str, params: Any, model_state: Any = ()):
  """Saves what inference needs.

  Args:
    path: a folder that does not exist yet; it appears when it is complete.
    params: pytree of arrays; numbers of Python are taken for NumPy's.
    model_state: pytree of running statistics.

  Raises:
    TypeError: a leaf is no array, or of a dtype that cannot be written; named.
    ValueError: the folder exists, or a key on the way to a leaf is neither a
      string nor an integer.
    OSError: it cannot be written; nothing is left of it.
  """
  path = os.path.abspath(path)
  if os.path.lexists(path):
    raise ValueError(f'{path} exists: parameters are saved in a new folder')
  tree = _both(params, model_state)
  leaves, stored = saving.on_host(tree)
  about = [
    _about(name, keys, leaf, isinstance(value, np.ndarray | np.generic))
    for (name, leaf), keys, value in zip(
      leaves.items(), _paths(tree), jax.tree.leaves(tree), strict=True
    )
  ]
  files = {_LEAVES: json.dumps(about, indent=2).encode()}
  with saving.replacing(path, os.path.basename(path)) as hidden:
    saving.write(hidden, stored, files, {'format': _FORMAT})


def check_params(params: Any, model_state: Any = ()):
  """Raises what `save_params` would say of the leaves; writes nothing.

  Args:
    params: pytree of arrays, or of their shapes.
    model_state: likewise.
  """
  tree = _both(params, model_state)
  for name, leaf in saving.named(tree).items():
    saving.describe(name, leaf)
  _paths(tree)


def load_params(path: str, like: tuple[Any, Any] | None = None):
  """Loads what `save_params` wrote, that of version 0.1 too.

  Args:
    path: the folder.
    like: `(params, model_state)` of arrays or shapes, whose tree and sharding
      are taken. Without it nested dicts of arrays are returned: fields of a
      NamedTuple or a dataclass are keys, lists and tuples are lists (with None
      where nothing was). Arrays are NumPy's where they were, and where JAX
      would make another dtype of them (float64 without `jax_enable_x64`).

  Returns:
    `(params, model_state)`.

  Raises:
    FileNotFoundError: no parameters there.
    ValueError: another tree, shape or dtype was saved, which names the leaf; or
      the folder is damaged.
  """
  path = os.path.abspath(path)
  ours = (saving.MANIFEST, saving.ARRAYS, _LEAVES)
  if not any(os.path.exists(os.path.join(path, name)) for name in ours):
    return _load_orbax(path, like)
  damage = saving.damage(path, 'format', _FORMAT)
  if damage is not None:
    raise ValueError(f'{path} is damaged: {damage}')
  with open(os.path.join(path, _LEAVES)) as file:
    about = {one['name']: one for one in json.load(file)}
  leaves = {name: _leaf(one) for name, one in about.items()}
  if like is None:
    kinds = {True: np.zeros(()), False: jax.ShapeDtypeStruct((), np.float32)}
    places = {name: kinds[one['numpy']] for name, one in about.items()}
    found = saving.load_named(path, leaves, places)
    both = _nested([(one['path'], found[name]) for name, one in about.items()])
  else:
    both = saving.load(path, leaves, _both(*like))
  return both.get('params', {}), both.get('model_state', ())


def _both(params, model_state):
  """Parameters and statistics as one tree, numbers of Python as arrays."""
  return jax.tree.map(
    lambda x: np.asarray(x) if isinstance(x, int | float | complex) else x,
    {'params': params, 'model_state': model_state},
  )


def _paths(tree) -> list[list[tuple[str, str | int]]]:
  """The ways to the leaves of a tree, as JSON keeps them."""

  def step(entry, path):
    if isinstance(entry, jax.tree_util.GetAttrKey):
      return 'key', entry.name
    if isinstance(entry, jax.tree_util.SequenceKey):
      return 'item', entry.idx
    if isinstance(entry, jax.tree_util.FlattenedIndexKey):
      return 'item', entry.key
    key = getattr(entry, 'key', entry)
    if isinstance(key, bool) or not isinstance(key, str | int):
      raise ValueError(
        f'the key {key!r} in {jax.tree_util.keystr(path)} is neither a string '
        'nor an integer'
      )
    return 'key', key

  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
  return [[step(entry, path) for entry in path] for path in paths]


def _nested(leaves):
  """Nested dicts and lists of (path, leaf)."""
  groups = {}
  for path, leaf in leaves:
    if not path:
      return leaf
    groups.setdefault(tuple(path[0]), []).append((path[1:], leaf))
  parts = {step: _nested(group) for step, group in groups.items()}
  if not parts or {kind for kind, _ in parts} != {'item'}:
    return {key: part for (_, key), part in parts.items()}
  length = 1 + max(i for _, i in parts)
  return [parts.get(('item', i)) for i in range(length)]


def _about(name: str, path, leaf: Leaf, is_numpy: bool) -> dict[str, Any]:
  """What `_LEAVES` holds of a leaf."""
  empty = leaf.empty
  if empty is not None:
    empty = {'shape': empty.shape, 'dtype': str(empty.dtype)}
  known = leaf._asdict() | {'empty': empty}
  return {'name': name, 'path': path, **known, 'numpy': is_numpy}


def _leaf(about: dict[str, Any]) -> Leaf:
  """The leaf that `_about` was told of."""
  empty = about['empty']
  if empty is not None:
    empty = np.zeros(empty['shape'], jnp.dtype(empty['dtype']))
  shape = tuple(about['shape'])
  return Leaf(shape, about['dtype'], about['key_impl'], empty)


def _load_orbax(path, like):
  """Loads the folder of Orbax that version 0.1 wrote."""
  import orbax.checkpoint as ocp

  if not os.path.isfile(os.path.join(path, '_METADATA')):
    raise FileNotFoundError(f'no saved parameters at {path}')
  target = None
  with ocp.StandardCheckpointer() as checkpointer:
    if like is not None:
      target = dict(zip(('params', 'model_state'), like, strict=True))
      if target['model_state'] == ():
        target['model_state'] = {}
      _check_orbax(path, checkpointer.metadata(path).item_metadata.tree, target)
    loaded = checkpointer.restore(path, target)
  return loaded['params'], loaded['model_state'] or ()


def _check_orbax(path, saved, target):
  """Raises a ValueError where a shape or a dtype differs: Orbax would cast."""
  asked = {
    jax.tree_util.keystr(keys, simple=True, separator='.'): leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(target)
  }
  found = jax.tree.leaves(saved, is_leaf=lambda x: hasattr(x, 'storage'))
  for leaf in found:
    like = asked.get(leaf.name)
    shape = getattr(leaf, 'shape', ())
    if hasattr(like, 'dtype') and (shape, leaf.dtype) != (
      tuple(like.shape),
      like.dtype,
    ):
      raise ValueError(
        f'{path} holds {leaf.dtype}{list(shape)} at {leaf.name}, not '
        f'{like.dtype}{list(like.shape)}'
      )


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
    return saving.load(self.path, self.leaves, like)


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
    leaves, stored = saving.on_host(arrays)
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
      with saving.replacing(self._path(serial, step), what) as hidden:
        for name in os.listdir(self.folder):
          if name.startswith(saving.HIDDEN):  # of a process that was killed
            shutil.rmtree(os.path.join(self.folder, name))
        saving.write(hidden, stored, files, {'step': step})
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
      damage = saving.damage(path, 'step', step)
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


def _print_to_stderr(message: str):
  print(message, file=sys.stderr)
