"""A pytree of arrays in a folder: whole or not at all, described and checked.

Arrays are written by Orbax, under numbers: their names may hold anything. Sizes
and hashes of all files are in a manifest, which is written last.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax.guards import forms
from ga_jax.record import files as files_lib

MANIFEST = 'manifest.json'
LEAVES = 'leaves.json'
ARRAYS = 'arrays'
HIDDEN = '.partial-'
_UNKNOWN = ('uint2', 'uint4')  # what Orbax cannot write
_ONE = threading.Lock()  # what `_quiet` replaces is the process's


class Leaf(NamedTuple):
  """What is known of a saved array."""

  shape: tuple[int, ...]
  dtype: str
  key_impl: str | None  # of typed PRNG keys
  empty: np.ndarray | None  # itself, if it has no elements: Orbax refuses it

  def __str__(self):
    return f'{self.dtype}{list(self.shape)}'


def named(tree: Any) -> dict[str, Any]:
  """The leaves of a pytree by the path that leads to them.

  Raises:
    ValueError: two have the same name.
  """
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path) or 'root'
    if name in found:
      raise ValueError(f'two leaves have the name {name}')
    found[name] = leaf
  return found


def describe(name: str, leaf: Any) -> Leaf:
  """What is to be known of an array, or of its shape.

  Raises:
    TypeError: it is no array, or of a dtype that cannot be written; named.
  """
  if not (hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')):
    raise TypeError(f'the leaf {name} is no array: {leaf!r}')
  is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  number = leaf.dtype == bool or jnp.issubdtype(leaf.dtype, np.number)
  if not (is_key or number) or str(leaf.dtype) in _UNKNOWN:
    raise TypeError(
      f'the leaf {name} holds {leaf.dtype}, which cannot be written'
    )
  known = is_key and isinstance(leaf, jax.Array)  # no shape alone
  impl = jax.random.key_impl(leaf) if known else None
  if not isinstance(impl, str | None):
    raise TypeError(
      f'the leaf {name} holds {leaf.dtype}, which cannot be written'
    )
  return Leaf(tuple(leaf.shape), str(leaf.dtype), impl, None)


def on_host(tree: Any) -> tuple[dict[str, Leaf], dict[str, np.ndarray]]:
  """The leaves of a pytree, and what Orbax writes of them.

  Returns:
    (name -> `Leaf`, number of the leaf -> array that is not empty).

  Raises:
    TypeError: a leaf cannot be written, see `describe`.
  """
  leaves, stored = {}, {}
  for i, (name, leaf) in enumerate(named(tree).items()):
    described = describe(name, leaf)
    value = jax.random.key_data(leaf) if described.key_impl else leaf
    value = np.asarray(value)
    if value.size:
      stored[str(i)] = value
    else:
      described = described._replace(empty=value)
    leaves[name] = described
  return leaves, stored


def listed(leaves: dict[str, Leaf]) -> list[dict[str, Any]]:
  """Leaves as `LEAVES` holds them; `leaves_of` reads them."""
  found = []
  for name, leaf in leaves.items():
    empty = leaf.empty
    if empty is not None:
      empty = {'shape': list(empty.shape), 'dtype': str(empty.dtype)}
    known = {'shape': list(leaf.shape), 'dtype': leaf.dtype}
    known |= {'key_impl': leaf.key_impl, 'empty': empty}
    found.append({'name': name, **known})
  return found


_SHAPED = {'shape': forms.listed(forms.integer(0)), 'dtype': forms.text}
LISTED = {
  'name': forms.text,
  **_SHAPED,
  'key_impl': forms.optional(forms.text),
  'empty': forms.optional(forms.fields(_SHAPED)),
}  # of an item of what `listed` makes


def leaves_of(folder: str, found: list[dict[str, Any]]) -> dict[str, Leaf]:
  """Leaves by name, from what `listed` made of them.

  Args:
    folder: that they were read from.
    found: items of the form `LISTED`.

  Raises:
    ValueError: they cannot be.
  """
  leaves = {}
  for one in found:
    empty = one['empty']
    try:
      if empty is not None:
        if math.prod(empty['shape']):
          raise TypeError('an empty array has elements')
        empty = np.zeros(empty['shape'], jnp.dtype(empty['dtype']))
    except (TypeError, ValueError) as error:
      raise ValueError(f'{folder} is damaged: {error}') from error
    shape = tuple(one['shape'])
    leaves[one['name']] = Leaf(shape, one['dtype'], one['key_impl'], empty)
  return leaves


def load(folder: str, leaves: dict[str, Leaf], like: Any) -> Any:
  """The arrays of a folder as a pytree.

  Args:
    folder: that `write` wrote.
    leaves: what `on_host` said of them.
    like: pytree of arrays or shapes, whose tree and sharding are taken.

  Raises:
    ValueError: another tree, shape or dtype was saved; names the leaf.
  """
  wanted = named(like)
  for name in leaves | wanted:
    saved = leaves.get(name, 'nothing')
    asked = describe(name, wanted[name]) if name in wanted else 'nothing'
    if str(saved) != str(asked):
      raise ValueError(f'{folder} holds {saved} at {name}, not {asked}')
  loaded = load_named(folder, leaves, wanted)
  return jax.tree.structure(like).unflatten(loaded[name] for name in wanted)


def load_named(
  folder: str, leaves: dict[str, Leaf], like: dict[str, Any]
) -> dict[str, Any]:
  """The arrays of a folder by name; arguments and errors as of `load`."""
  import orbax.checkpoint as ocp

  stored, path = {}, os.path.join(folder, ARRAYS)
  numbers = {str(i): leaf for i, leaf in enumerate(leaves.values())}
  numbers = {i: leaf for i, leaf in numbers.items() if leaf.empty is None}
  with distrusted(folder):
    if numbers:
      with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(path).item_metadata
        if found is None:
          raise ValueError(f'{ARRAYS} does not say what it holds')
        _check_sizes(found.tree, numbers)
        stored = checkpointer.restore(path)
    return {
      name: _placed(leaf, stored.get(str(i)), like[name])
      for i, (name, leaf) in enumerate(leaves.items())
    }


@contextlib.contextmanager
def distrusted(folder: str):
  """Reads a folder of Orbax that may hold anything.

  Raises:
    DamagedError: the block failed: Orbax raises what it makes of strange files,
      and there may be other files than regular ones, which it is kept from.
  """
  try:
    contents(folder)
    with _quiet():
      yield
  except Exception as error:
    first, *_ = str(error).splitlines() or ['']
    raise files_lib.DamagedError(f'{folder} cannot be read: {first}') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps Orbax from printing what it raises too; one thread at a time.

  It logs errors before it raises them. And where one array cannot be read it
  closes its event loop before the threads that read the others have answered:
  each of them then prints a traceback, some after the block has ended, and so
  does a second one that fails. Their answers are dropped. What is logged in a
  block that ends well is shown then.
  """
  logger, held, new_loop = logging.getLogger('absl'), [], asyncio.new_event_loop

  def hold(record):
    orbax = 'orbax' in record.pathname
    if orbax:
      held.append(record)
    return not orbax

  with _ONE:
    logger.addFilter(hold)
    asyncio.new_event_loop = lambda: _dropping(new_loop())
    try:
      yield
    finally:
      asyncio.new_event_loop = new_loop
      logger.removeFilter(hold)
  for record in held:
    logger.handle(record)


def _dropping(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
  """A loop that, once it is closed, drops what other threads answer."""
  answer = loop.call_soon_threadsafe

  def answer_if_open(*args, **more):
    try:
      return answer(*args, **more)
    except RuntimeError:
      if not loop.is_closed():
        raise

  def told_if_open(_, context):
    if not loop.is_closed():
      loop.default_exception_handler(context)

  loop.call_soon_threadsafe = answer_if_open
  loop.set_exception_handler(told_if_open)
  return loop


def _check_sizes(found: dict[str, Any], leaves: dict[str, Leaf]):
  """Raises a ValueError where Orbax would make other arrays than were saved.

  Nothing is allocated before that.
  """
  if set(found) != set(leaves):
    raise ValueError(f'{ARRAYS} holds {sorted(found)}')
  for number, leaf in leaves.items():
    if leaf.key_impl is None:
      shape = tuple(getattr(found[number], 'shape', None) or ())
      if shape != leaf.shape:
        raise ValueError(f'{ARRAYS} holds {list(shape)}, not {leaf}')
    elif len(getattr(found[number], 'shape', ())) != len(leaf.shape) + 1:
      raise ValueError(f'{ARRAYS} holds no {leaf}')


def _placed(leaf: Leaf, stored, like):
  """An array as it was saved, where another one is.

  It stays NumPy's where `like` is, and where JAX would make another dtype of it
  (float64 without `jax_enable_x64`).
  """
  value = stored if leaf.empty is None else leaf.empty
  if leaf.key_impl:
    value = jax.random.wrap_key_data(value, impl=leaf.key_impl)
  elif isinstance(like, np.ndarray | np.generic) or (
    jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype
  ):
    return value
  committed = getattr(like, 'committed', True)
  return jax.device_put(value, like.sharding if committed else None)


@contextlib.contextmanager
def replacing(path: str, what: str) -> Iterator[str]:
  """Yields a hidden folder's path; it becomes `path` when it is on the disk.

  Args:
    path: of the folder that is to be there.
    what: it is, for the message.

  Raises:
    OSError: it cannot be written; nothing is left of it.
  """
  folder, name = os.path.split(path)
  hidden = os.path.join(folder, HIDDEN + name)
  try:
    os.makedirs(folder, exist_ok=True)
    if os.path.isdir(hidden):  # of a process that was killed
      shutil.rmtree(hidden)
    yield hidden
    os.rename(hidden, path)
    _sync(folder)
  except Exception as error:  # Orbax raises a ValueError on a full disk
    shutil.rmtree(hidden, ignore_errors=True)
    why = getattr(error, 'strerror', None) or error
    raise OSError(f'{what} cannot be saved in {folder}: {why}') from error


def write(
  folder: str,
  stored: dict[str, np.ndarray],
  files: dict[str, bytes],
  about: dict[str, Any],
):
  """Writes a new folder, and returns when it is on the disk.

  Args:
    folder: must not be there.
    stored: arrays, see `on_host`.
    files: other files by name, among them `LEAVES`.
    about: what the manifest holds beside sizes and hashes.
  """
  import orbax.checkpoint as ocp

  os.mkdir(folder)
  # Said here: Orbax says it at great length.
  arrays = sum(array.nbytes for array in stored.values())
  files_lib.check_space(folder, arrays + sum(map(len, files.values())))
  if stored:
    with ocp.PyTreeCheckpointer() as checkpointer:
      checkpointer.save(os.path.join(folder, ARRAYS), stored)
  for name, content in files.items():
    with open(os.path.join(folder, name), 'wb') as file:
      file.write(content)
  hashes = {}
  for parent, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(parent, name)
      hashes[os.path.relpath(path, folder)] = _size_and_hash(path)
      _sync(path)
    _sync(parent)
  path = os.path.join(folder, MANIFEST)
  with open(path, 'w', encoding='utf-8') as file:
    json.dump({**about, 'files': hashes}, file, indent=2)
  _sync(path)
  _sync(folder)


_FILE = forms.row(forms.integer(0), forms.text)  # size and hash


def damage(folder: str, name: str, value: Any) -> str | None:
  """What is wrong with a folder that `write` wrote, if anything is.

  Args:
    folder: the folder.
    name: of something in its manifest.
    value: what that must be.
  """
  form = forms.fields({name: forms.anything, 'files': forms.mapped(_FILE)})
  try:
    manifest = files_lib.read_json(os.path.join(folder, MANIFEST), form)
    if manifest[name] != value:
      return f'its manifest is of {name} {manifest[name]}'
    there = contents(folder)
    for file in manifest['files'].keys() | there:
      if file not in there:
        return f'{file} is missing'
      if file not in manifest['files']:
        return f'{file} was added'
      if _size_and_hash(os.path.join(folder, file)) != manifest['files'][file]:
        return f'{file} has changed'
  except FileNotFoundError as error:
    return f'{os.path.relpath(error.filename, folder)} is missing'
  except OSError as error:
    return str(error)
  except ValueError:
    return f'{MANIFEST} is garbled'
  return None


def contents(folder: str) -> set[str]:
  """The files in a folder that `write` wrote, but the manifest.

  Raises:
    OSError: something there is neither a regular file nor a folder.
  """
  found = set()
  for parent, folders, names in os.walk(folder):
    for name in (*folders, *names):
      path = os.path.join(parent, name)
      kind = files_lib.kind_of(path, folders=True)
      if kind:
        raise OSError(f'{os.path.relpath(path, folder)} is {kind}')
    found |= {os.path.relpath(os.path.join(parent, n), folder) for n in names}
  return found - {MANIFEST}


def _size_and_hash(path: str) -> list:
  return [os.path.getsize(path), files_lib.sha256(path)]


def _sync(path: str):
  """Waits until a file or a folder is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
