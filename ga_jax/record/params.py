"""Trained parameters: a folder, there whole or not at all; see `arrays`."""

import json
import os
from typing import Any

import jax
import numpy as np

from ga_jax.guards import forms
from ga_jax.record import arrays as arrays_lib
from ga_jax.record import files as files_lib

_FORMAT = 'ga_jax parameters 1'
_MOST_ITEMS = 2**20  # of a list: it is made as long as its last index says
_STEP = forms.any_of(
  forms.row(forms.one_of('item'), forms.integer(0, _MOST_ITEMS)),
  forms.row(forms.one_of('key'), forms.any_of(forms.integer(), forms.text)),
)
_ABOUT = {
  **arrays_lib.LISTED,
  'path': forms.listed(_STEP, most=100),
  'numpy': forms.flag,
}


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
  leaves, stored = arrays_lib.on_host(tree)
  about = [
    {**known, 'path': keys, 'numpy': isinstance(x, np.ndarray | np.generic)}
    for known, keys, x in zip(
      arrays_lib.listed(leaves),
      _paths(tree),
      jax.tree.leaves(tree),
      strict=True,
    )
  ]
  files = {arrays_lib.LEAVES: json.dumps(about, indent=2).encode()}
  with arrays_lib.replacing(path, os.path.basename(path)) as hidden:
    arrays_lib.write(hidden, stored, files, {'format': _FORMAT})


def check_params(params: Any, model_state: Any = ()):
  """Raises what `save_params` would say of the leaves; writes nothing.

  Args:
    params: pytree of arrays, or of their shapes.
    model_state: likewise.
  """
  tree = _both(params, model_state)
  for name, leaf in arrays_lib.named(tree).items():
    arrays_lib.describe(name, leaf)
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
  ours = (arrays_lib.MANIFEST, arrays_lib.ARRAYS, arrays_lib.LEAVES)
  if not any(os.path.exists(os.path.join(path, name)) for name in ours):
    return _load_orbax(path, like)
  damage = arrays_lib.damage(path, 'format', _FORMAT)
  if damage is not None:
    raise ValueError(f'{path} is damaged: {damage}')
  found = files_lib.read_json(
    os.path.join(path, arrays_lib.LEAVES), forms.listed(forms.fields(_ABOUT))
  )
  leaves = arrays_lib.leaves_of(path, found)
  about = {one['name']: one for one in found}
  if like is None:
    kinds = {True: np.zeros(()), False: jax.ShapeDtypeStruct((), np.float32)}
    places = {name: kinds[one['numpy']] for name, one in about.items()}
    found = arrays_lib.load_named(path, leaves, places)
    both = _nested([(one['path'], found[name]) for name, one in about.items()])
  else:
    both = arrays_lib.load(path, leaves, _both(*like))
  if not isinstance(both, dict):
    raise ValueError(f'{path} is damaged: it holds one array')
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
      with arrays_lib.distrusted(path):
        saved = checkpointer.metadata(path).item_metadata.tree
      _check_orbax(path, saved, target)
    with arrays_lib.distrusted(path):
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
