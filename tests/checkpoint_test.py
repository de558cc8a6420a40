"""Parameters and checkpoints on disk, and what is left when a save fails."""

import json
import os
import pathlib
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from ga_jax.record import arrays as arrays_lib
from ga_jax.record import checkpoints
from ga_jax.record import files as files_lib
from ga_jax.record import params as params_lib
from tests import cases

# Parameters.


def saved_params():
  keys = jax.random.split(jax.random.key(0), 2)
  return {
    'Dense_0': {'kernel': jax.random.normal(keys[0], (3, 4))},
    'Dense_1': {'bias': jax.random.normal(keys[1], (4,)).astype(jnp.bfloat16)},
  }


STATISTICS = {'BatchNorm_0': {'mean': np.arange(4.0, dtype=np.float32)}}


@pytest.mark.parametrize('model_state', [(), STATISTICS])
@pytest.mark.parametrize('like', ['none', 'arrays', 'shapes'])
def test_params_round_trip(tmp_path, model_state, like):
  path, params = str(tmp_path / 'params'), saved_params()
  params_lib.save_params(path, params, model_state)
  shapes = jax.eval_shape(lambda: (params, model_state))
  target = {'none': None, 'arrays': (params, model_state), 'shapes': shapes}
  loaded = params_lib.load_params(path, target[like])
  wanted = (params, model_state)
  assert cases.same_tree(loaded, wanted)


def test_loading_missing_params_names_their_path(tmp_path):
  path = str(tmp_path / 'params')
  with pytest.raises(FileNotFoundError, match=path):
    params_lib.load_params(path)
  (tmp_path / 'params').mkdir()  # a folder, but nobody saved into it
  with pytest.raises(FileNotFoundError, match=path):
    params_lib.load_params(path)


def test_params_of_another_model_are_refused(tmp_path):
  path, params = str(tmp_path / 'params'), saved_params()
  params_lib.save_params(path, params, STATISTICS)
  kernel = r"\['params'\]\['Dense_0'\]\['kernel'\]"
  for change, message in (
    (lambda p: p['Dense_0'].pop('kernel'), rf'\[3, 4\] at {kernel}, not noth'),
    (
      lambda p: p['Dense_0'].update(kernel=jnp.zeros((4, 3))),
      rf'float32\[3, 4\] at {kernel}, not float32\[4, 3\]',
    ),
    (
      lambda p: p['Dense_0'].update(kernel=jnp.zeros((3, 4), jnp.bfloat16)),
      rf'float32\[3, 4\] at {kernel}, not bfloat16',
    ),
    (lambda p: p.update(a=jnp.zeros(1)), r"nothing at \['params'\]\['a'\]"),
  ):
    other = saved_params()
    change(other)
    with pytest.raises(ValueError, match=message):
      params_lib.load_params(path, (other, STATISTICS))
  with pytest.raises(ValueError, match=r"\['model_state'\].*, not nothing"):
    params_lib.load_params(path, (params, ()))


def test_params_are_not_overwritten(tmp_path):
  path, params = str(tmp_path / 'params'), saved_params()
  params_lib.save_params(path, params)
  with pytest.raises(ValueError, match='exists'):
    params_lib.save_params(path, jax.tree.map(jnp.zeros_like, params))
  loaded, _ = params_lib.load_params(path)
  kernel = params['Dense_0']['kernel']
  assert np.array_equal(loaded['Dense_0']['kernel'], kernel)


class Layer(NamedTuple):
  """Parameters that are no dict."""

  w: object
  b: object


def any_params():
  """Names that collide where they are joined, and every kind of leaf."""
  return {
    'a.b': jnp.arange(2.0),
    'a': {'b': jnp.arange(3), 'b.c/d': jnp.ones(1)},
    "a']['b": jnp.zeros(1),
    '': jnp.ones((1, 2)),
    'ids': {1: jnp.ones(1), 10: jnp.ones(2), 2: jnp.ones(3)},
    'list': [jnp.full(2, i) for i in range(12)],
    'tuple': (None, jnp.ones(1), Layer(jnp.ones(2), np.float64(3.5))),
    'frozen': flax.core.freeze({'x': jnp.ones(2, jnp.bfloat16)}),
    'key': jax.random.key(3),
    'keys': jax.random.split(jax.random.key(4, impl='rbg'), (2, 2)),
    'wide': np.full(2, 1 / 3),
    'small': (jnp.ones(2, jnp.int4), jnp.ones(2, jnp.float8_e4m3fn)),
    'flag': jnp.bool_(True),
    'complex': jnp.full((), 1 + 2j),
    'empty': (jnp.zeros((0, 3), jnp.bfloat16), np.zeros((2, 0)), jnp.ones(0)),
    'no_keys': jax.random.split(jax.random.key(0), 0),
    'nothing': {},
  }


@pytest.mark.parametrize('like', ['arrays', 'shapes'])
def test_any_params_round_trip(tmp_path, like):
  params, statistics = any_params(), [np.ones(2), jnp.arange(3)]
  path = str(tmp_path / 'not' / 'there' / 'params')
  params_lib.save_params(path, params, statistics)
  target = params, statistics
  if like == 'shapes':
    target = jax.tree.map(
      lambda x: (
        x
        if isinstance(x, np.ndarray | np.generic)
        else jax.ShapeDtypeStruct(x.shape, x.dtype)
      ),
      target,
    )
  assert_loaded(params_lib.load_params(path, target), (params, statistics))
  assert os.listdir(tmp_path / 'not' / 'there') == ['params']


def test_any_params_come_back_as_dicts_and_lists(tmp_path):
  params, path = any_params(), str(tmp_path / 'params')
  params_lib.save_params(path, params, [np.ones(2), jnp.arange(3)])
  loaded = params_lib.load_params(path)
  wanted = any_params()
  wanted['tuple'] = [None, wanted['tuple'][1], wanted['tuple'][2]._asdict()]
  wanted['frozen'] = dict(wanted['frozen'])
  wanted['small'], wanted['empty'] = map(
    list, (wanted['small'], wanted['empty'])
  )
  del wanted['nothing']  # there is no leaf in it
  assert_loaded(loaded, (wanted, [np.ones(2), jnp.arange(3)]))
  assert [int(x[0]) for x in loaded[0]['list']] == list(range(12))


@pytest.mark.parametrize('params', [jnp.arange(3.0), {}, [], {'a': 1.5}])
def test_params_that_are_no_dict_of_arrays_round_trip(tmp_path, params):
  path = str(tmp_path / 'params')
  params_lib.save_params(path, params)
  loaded, statistics = params_lib.load_params(path)
  assert statistics == ()
  wanted = {} if isinstance(params, list) else params
  assert jax.tree.structure(loaded) == jax.tree.structure(wanted)
  assert cases.same_bits(loaded, wanted)
  again, _ = params_lib.load_params(path, (params, ()))
  assert jax.tree.structure(again) == jax.tree.structure(params)


def test_float64_params_stay_float64_without_x64(tmp_path):
  path, wide = str(tmp_path / 'params'), np.full(2, 1 / 3)
  with jax.enable_x64(True):
    params_lib.save_params(path, {'w': jnp.asarray(wide)})
    inside, _ = params_lib.load_params(path)
  outside, _ = params_lib.load_params(path)
  assert isinstance(inside['w'], jax.Array)
  assert outside['w'].dtype == inside['w'].dtype == np.float64
  assert cases.same_bits(outside, {'w': wide})


def test_params_are_loaded_with_the_sharding_asked_for(tmp_path):
  path = str(tmp_path / 'params')
  mesh = jax.sharding.Mesh(jax.devices(), ('a',))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('a'))
  params = {'w': jax.device_put(jnp.arange(8.0), split), 'b': jnp.ones(1)}
  params_lib.save_params(path, params)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    params,
  )
  loaded, _ = params_lib.load_params(path, (shapes, ()))
  assert loaded['w'].sharding == split
  assert_loaded(loaded, params)


@pytest.mark.parametrize(
  ('params', 'message'),
  [
    ({'a': [jnp.ones(1), 'x']}, r"leaf \['params'\]\['a'\]\[1\] is no array"),
    ({'a': np.array(['x'])}, r"\['params'\]\['a'\] holds <U1, which cannot"),
    ({'a': np.array([None])}, r"\['a'\] holds object, which cannot be written"),
    ({'a': jnp.ones(2, jnp.uint4)}, r"\['a'\] holds uint4, which cannot"),
    ({(1, 2): jnp.ones(1)}, r'key \(1, 2\) in .* is neither a string nor an'),
    ({True: jnp.ones(1)}, 'the key True in .* is neither a string nor an int'),
  ],
)
def test_a_leaf_that_cannot_be_saved_is_named(tmp_path, params, message):
  path = str(tmp_path / 'params')
  with pytest.raises((TypeError, ValueError), match=message):
    params_lib.check_params(params)
  with pytest.raises((TypeError, ValueError), match=message):
    params_lib.save_params(path, params)
  assert os.listdir(tmp_path) == []


def test_check_params_takes_arrays_and_shapes():
  plain = {k: v for k, v in any_params().items() if k != 'small'}
  params_lib.check_params(any_params(), STATISTICS)
  params_lib.check_params(*jax.eval_shape(lambda: (plain, STATISTICS)))


def test_damaged_params_are_refused(tmp_path):
  path = tmp_path / 'params'
  params_lib.save_params(str(path), saved_params(), STATISTICS)
  files = [p for p in path.rglob('*') if p.is_file()]
  assert {'leaves.json', 'manifest.json'} < {p.name for p in files}
  for file in files:
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 1])
    for damaged in (
      None,
      b'',
      content[:-1],
      content[:middle] + flipped + content[middle + 1 :],
    ):
      file.unlink(missing_ok=True)
      if damaged is not None:
        file.write_bytes(damaged)
      named = '' if file.name == 'manifest.json' else file.name
      with pytest.raises(ValueError, match=f'{path} is damaged: .*{named}'):
        params_lib.load_params(str(path))
    file.write_bytes(content)
  params_lib.load_params(str(path))
  store = saved_store(tmp_path / 'store', [1])
  with pytest.raises(ValueError, match=r'damaged: manifest.json is garbled'):
    params_lib.load_params(store.newest().path)
  manifest = json.loads((path / 'manifest.json').read_text())
  manifest['format'] = 'ga_jax parameters 9'
  (path / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match='its manifest is of format ga_jax para'):
    params_lib.load_params(str(path))


@pytest.mark.parametrize('function', ['mkdir', 'fsync', 'rename'])
def test_params_are_saved_whole_or_not_at_all(tmp_path, monkeypatch, function):
  path = str(tmp_path / 'folder' / 'params')
  (tmp_path / 'folder' / '.partial-params' / 'arrays').mkdir(parents=True)

  def fail(*args, **kwargs):
    raise PermissionError(13, 'nobody may do this')

  with monkeypatch.context() as patch:
    patch.setattr(os, function, fail)
    with pytest.raises(OSError, match=r'params cannot be saved in .*nobody'):
      params_lib.save_params(path, saved_params())
  assert os.listdir(tmp_path / 'folder') == []
  params_lib.save_params(path, saved_params())
  assert os.listdir(tmp_path / 'folder') == ['params']


def save_as_0_1(path, params, model_state=()):
  """What `save_params` of version 0.1 did."""
  model_state = {} if model_state == () else model_state
  with orbax.checkpoint.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, {'params': params, 'model_state': model_state})


@pytest.mark.parametrize('model_state', [(), STATISTICS])
def test_params_saved_by_version_0_1_are_loaded(tmp_path, model_state):
  path = str(tmp_path / 'params')
  params = {**saved_params(), 'all': (jnp.ones(2), Layer(jnp.ones(1), None))}
  save_as_0_1(path, params, model_state)
  like = jax.eval_shape(lambda: (params, model_state))
  loaded = params_lib.load_params(path, like)
  assert jax.tree.structure(loaded) == jax.tree.structure(like)
  assert cases.same_bits(loaded, (params, model_state))
  plain, statistics = params_lib.load_params(path)
  assert plain['all'][1]['w'].shape == (1,)
  assert cases.same_bits(statistics, model_state)
  narrow = jax.eval_shape(lambda: params)
  kernel = jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)
  narrow['Dense_0'] = {'kernel': kernel}
  with pytest.raises(
    ValueError,
    match=r'float32\[3, 4\] at params.Dense_0.kernel, not bfloat16\[3, 4\]',
  ):
    params_lib.load_params(path, (narrow, like[1]))


# Checkpoints.


def values(step=0):
  """Every kind of leaf; another step, other values."""
  key = jax.random.key(step)
  return {
    'keys': (key, jax.random.split(jax.random.key(step, impl='rbg'), (2, 3))),
    'bf16': jax.random.normal(key, (4,)).astype(jnp.bfloat16),
    'scalars': [jnp.float32(step), np.float64(step), np.array(step % 2 == 0)],
    'nothing': (),
    'none': None,
    'empty': (
      jnp.zeros((0, 3), jnp.int8),
      np.zeros(0),
      jax.random.split(key, 0),
    ),
    'host': np.full((3, 4), step),
  }


def on_device(tree):
  """Whether each leaf is an array of JAX; the others are NumPy's."""
  return [isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)]


def assert_loaded(loaded, wanted):
  assert cases.same_tree(loaded, wanted)
  assert on_device(loaded) == on_device(wanted)


def saved_store(folder, steps, keep=3):
  store = checkpoints.CheckpointStore(folder, keep)
  for step in steps:
    store.save(step, values(step), {'step': step})
  return store


def assert_newest(store, step, warnings=0):
  """The newest one is whole, of that step, after so many warnings."""
  said = []
  newest = store.newest(said.append)
  assert newest.step == newest.host['step'] == step
  assert_loaded(newest.load(values()), values(step))
  assert len(said) == warnings, said


def test_checkpoints_round_trip(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path / 'not' / 'there')
  assert store.newest() is None
  assert store.steps() == []
  host = {'deep': [[1, 2.5], {'x': [np.inf]}, '4', None], 'array': np.arange(3)}
  store.save(np.int64(12), values(5), host)
  newest = checkpoints.CheckpointStore(store.folder).newest()
  assert newest.step == 12
  assert newest.host.pop('array').tolist() == [0, 1, 2]
  assert newest.host == {'deep': host['deep']}
  assert_loaded(newest.load(values(0)), values(5))


@pytest.mark.parametrize('arrays', [(), {'a': None}, {'a': np.zeros((2, 0))}])
def test_checkpoints_without_a_number_round_trip(tmp_path, arrays):
  store = checkpoints.CheckpointStore(tmp_path)
  store.save(0, arrays)
  assert_loaded(store.newest().load(arrays), arrays)


def test_checkpoints_are_loaded_with_the_shardings_asked_for(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path)
  arrays = {'x': jnp.arange(4.0), 'key': jax.random.key(3), 'root': np.ones(2)}
  store.save(0, arrays)
  mesh = jax.sharding.Mesh(jax.devices(), ('a',))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('a'))
  like = jax.eval_shape(lambda: {**arrays, 'root': jnp.ones(2)})
  loaded = store.newest().load(
    {
      'x': jax.ShapeDtypeStruct((4,), np.float32, sharding=split),
      'key': like['key'],
      'root': np.ones(2),
    }
  )
  assert loaded['x'].sharding == split
  assert_loaded(loaded, arrays)
  again = store.newest().load(arrays)
  assert not again['x'].committed  # as jnp.arange has it


def test_saved_arrays_may_be_donated_afterwards(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path)
  x = jnp.arange(100_000.0)
  wanted = np.array(x)
  store.save(0, {'x': x})
  jax.jit(lambda x: x + 1, donate_argnums=0)(x)
  assert x.is_deleted()
  assert_loaded(store.newest().load({'x': wanted}), {'x': wanted})


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'bf16': np.zeros(5, jnp.bfloat16)}, r"bfloat16\[4\] at \['bf16'\], not"),
    ({'bf16': np.zeros(4, np.float16)}, r"\['bf16'\], not float16\[4\]"),
    ({'more': np.zeros(2)}, r"nothing at \['more'\], not float64\[2\]"),
    ({'host': None}, r"int64\[3, 4\] at \['host'\], not nothing"),
    ({'keys': (np.zeros(2, np.uint32),) * 2}, r"key<fry>\[\] at \['keys'\]\[0"),
  ],
)
def test_loading_into_another_tree_is_refused(tmp_path, change, message):
  store = saved_store(tmp_path, [3])
  with pytest.raises(ValueError, match=message):
    store.newest().load({**values(), **change})


def test_bad_arguments_of_a_store_are_refused_by_name(tmp_path):
  with pytest.raises(
    ValueError, match='keep must be an integer of at least 1, got 0'
  ):
    checkpoints.CheckpointStore(tmp_path, keep=0)
  store = checkpoints.CheckpointStore(tmp_path)
  with pytest.raises(
    ValueError, match='step must be an integer of at least 0, got -1'
  ):
    store.save(-1, ())
  with pytest.raises(TypeError, match=r"leaf \['a'\]\[1\] is no array: 2\.5"):
    store.save(0, {'a': (np.ones(1), 2.5)})
  assert os.listdir(tmp_path) == []


def pickled(tmp_path, host):
  """A store with a checkpoint as version 0.1 wrote it."""
  store = saved_store(tmp_path, [1])
  folder = pathlib.Path(store.newest().path)
  for name in ('host.json', 'host.npz', 'leaves.json'):
    (folder / name).unlink()
  content = pickle.dumps((arrays_lib.on_host(values(1))[0], host))
  (folder / 'host.pickle').write_bytes(content)
  rewrite_manifest(folder)
  return store


def rewrite_manifest(folder):
  """Has a manifest say what is in its folder."""
  path = folder / 'manifest.json'
  manifest = json.loads(path.read_text())
  manifest['files'] = {
    name: [(folder / name).stat().st_size, files_lib.sha256(str(folder / name))]
    for name in arrays_lib.contents(str(folder))
  }
  path.write_text(json.dumps(manifest))


class Bomb:
  """Writes a file where it is unpickled."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return open, (self.path, 'w')


def test_a_pickled_checkpoint_is_not_read_unless_that_is_asked_for(tmp_path):
  store = pickled(tmp_path / 'store', Bomb(tmp_path / 'bomb'))
  with pytest.raises(checkpoints.PickledError, match=r'is of version 0\.1'):
    store.newest()
  assert not (tmp_path / 'bomb').exists()
  trusting = checkpoints.CheckpointStore(store.folder, allow_pickle=True)
  trusting.newest().host.close()
  assert (tmp_path / 'bomb').exists()


@pytest.mark.parametrize(
  ('module', 'name'),
  [
    ('ga_jax.checkpoint', 'Leaf'),
    ('ga_jax.saving', 'Leaf'),
    ('ga_jax.ledger', 'Ticket'),
    ('ga_jax.runtimes.live', 'Telemetry'),
  ],
)
def test_checkpoints_of_version_0_1_load_though_modules_moved(
  module, name, tmp_path, monkeypatch
):
  old = types.ModuleType(module)
  setattr(old, name, type(name, (), {'__module__': module}))
  with monkeypatch.context() as then:
    then.setitem(sys.modules, module, old)
    store = pickled(tmp_path, getattr(old, name))
  store = checkpoints.CheckpointStore(tmp_path, allow_pickle=True)
  assert store.newest().host.__name__ == name
  assert store.newest().host.__module__ in sys.modules
  assert_loaded(store.newest().load(values(1)), values(1))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
  store = saved_store(tmp_path, range(5), keep=3)
  assert store.steps() == [2, 3, 4]
  assert len(os.listdir(tmp_path)) == 3
  saved_store(tmp_path, [9], keep=1)
  assert store.steps() == [9]
  assert_newest(store, 9)


def test_saving_a_step_again_replaces_it(tmp_path):
  store = saved_store(tmp_path, [1, 2, 3])
  store.save(2, values(7), {'step': 2, 'again': True})
  assert store.steps() == [1, 3, 2]  # the newest is the one saved last
  assert store.newest().host['again']
  assert_loaded(store.newest().load(values()), values(7))


def test_a_store_leaves_other_files_alone(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  (tmp_path / '.partial-000003-step-9' / 'arrays').mkdir(parents=True)
  store = saved_store(tmp_path, [1])
  assert sorted(os.listdir(tmp_path)) == ['000000-step-1', 'notes.txt']
  assert_newest(store, 1)


# Damage.


def test_any_damage_to_a_checkpoint_is_found(tmp_path):
  store = saved_store(tmp_path / 'store', [1, 2])
  newest = pathlib.Path(store.newest().path)
  good = shutil.copytree(newest, tmp_path / 'good')
  files = [p.relative_to(good) for p in good.rglob('*') if p.is_file()]
  assert {'host.json', 'host.npz', 'manifest.json'} < {
    str(name) for name in files
  }
  for name in files:
    content = (good / name).read_bytes()
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 1])
    for damaged in (
      None,
      b'',
      content[:-1],
      content + b' ',
      content[:middle] + flipped + content[middle + 1 :],
    ):
      if name.name == 'manifest.json' and damaged == content + b' ':
        continue
      (newest / name).unlink()
      if damaged is not None:
        (newest / name).write_bytes(damaged)
      assert_newest(store, 1, warnings=1)
      (newest / name).write_bytes(content)
    assert_newest(store, 2)


@pytest.mark.parametrize(
  'content', ['', '{', '[]', 'null', '{}', '{"step": 2, "files": [1]}', '\xff']
)
def test_a_checkpoint_with_a_garbled_manifest_is_passed_over(tmp_path, content):
  store = saved_store(tmp_path, [1, 2])
  manifest = pathlib.Path(store.newest().path, 'manifest.json')
  manifest.write_bytes(content.encode('latin1'))
  assert_newest(store, 1, warnings=1)


@pytest.mark.parametrize('every', [8, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_a_manifest_never_gives_wrong_values(tmp_path, every):
  store = saved_store(tmp_path, [1, 2])
  manifest = pathlib.Path(store.newest().path, 'manifest.json')
  content = manifest.read_bytes()
  json.loads(content)
  rng = random.Random(0)
  for i in range(0, len(content), every):
    flipped = content[i] ^ 1 << rng.randrange(8)
    manifest.write_bytes(content[:i] + bytes([flipped]) + content[i + 1 :])
    newest = store.newest(warn=lambda message: None)
    assert newest.host['step'] == newest.step
    # Where it is still taken, nothing but white space was changed.
    assert newest.step == 1 or content[i : i + 1].isspace()


def test_damage_is_told_in_one_line(tmp_path, capsys):
  store = saved_store(tmp_path, [1, 2, 3])
  paths = sorted(tmp_path.iterdir())
  (paths[2] / 'manifest.json').unlink()
  (paths[1] / 'host.json').write_bytes(b'')
  assert store.newest().step == 1
  assert capsys.readouterr().err.splitlines() == [
    f'checkpoint {paths[2]} is damaged (manifest.json is missing): that of '
    'step 2 is used instead',
    f'checkpoint {paths[1]} is damaged (host.json has changed): that of '
    'step 1 is used instead',
  ]
  shutil.rmtree(paths[0] / 'arrays')
  said = []
  assert store.newest(said.append) is None
  assert said[-1].endswith('is missing): none is used instead')
  store.save(4, values(4), {'step': 4})  # and life goes on
  assert_newest(store, 4)


# Failures while saving.


@pytest.mark.parametrize('function', ['mkdir', 'fsync', 'rename'])
@pytest.mark.parametrize('steps', [[], [1, 2]])
def test_a_failed_save_leaves_older_checkpoints(
  tmp_path, monkeypatch, function, steps
):
  store = saved_store(tmp_path, steps)

  def fail(*args, **kwargs):
    raise PermissionError(13, 'nobody may do this')

  with monkeypatch.context() as patch:
    patch.setattr(os, function, fail)
    with pytest.raises(OSError, match=r'step 3 cannot be saved.*nobody may'):
      store.save(3, values(3), {'step': 3})
  assert store.steps() == steps
  assert len(os.listdir(tmp_path)) == len(steps)
  store.save(3, values(3), {'step': 3})
  assert_newest(store, 3)


def test_a_full_disk_leaves_older_checkpoints(tmp_path):
  store = saved_store(tmp_path, [1])
  large = np.random.default_rng(0).integers(0, 256, 4_000_000, np.uint8)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
  try:
    with pytest.raises(OSError, match=r'step 2 cannot be saved.*too large'):
      store.save(2, {'large': large}, {'step': 2})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert len(os.listdir(tmp_path)) == 1
  assert_newest(store, 1)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  store = checkpoints.CheckpointStore(tmp_path / 'file' / 'store')
  with pytest.raises(
    OSError, match=f'cannot be saved in {store.folder}: .*Not'
  ):
    store.save(0, values())


@pytest.mark.parametrize(
  ('host', 'message'),
  [
    (lambda: None, r'^host is of the type builtins.function; it must be of'),
    ({'a': [0, (1, 2)]}, r"^host\['a'\]\[1\] is of the type builtins.tuple"),
    ({'a': {3: 1}}, r"^host\['a'\] has the key 3: no string"),
    ([2**63], r'^host\[0\] is an integer of more than 64 bits'),
    ([np.array(None)], r'^host\[0\] is of dtype object'),
    ([np.ones(2, jnp.bfloat16)], r'^host\[0\] is of dtype bfloat16'),
    ({'a': jnp.ones(2)}, r"^host\['a'\] is of the type jax"),
  ],
)
def test_a_host_value_of_other_kinds_is_refused_by_its_place(
  tmp_path, host, message
):
  store = checkpoints.CheckpointStore(tmp_path)
  with pytest.raises(TypeError, match=message):
    store.save(0, values(), host)
  assert os.listdir(tmp_path) == []


# Death while saving.

# Forks a process for every line it reads. That saves each step twice, for ever,
# and says so. The imports are shared.
SAVER = """
import os, sys
import jax, numpy as np, orbax.checkpoint
from ga_jax.record import checkpoints

def save_for_ever():
  print('pid', os.getpid(), flush=True)
  store = checkpoints.CheckpointStore(sys.argv[1], keep=1)
  newest = store.newest()
  count = newest.host['count'] if newest else 0
  while True:
    count += 1
    arrays = {'count': np.int64(count), 'x': np.full(count % 50_000, count)}
    store.save(count // 2, arrays, {'count': count})
    print(count, flush=True)

for _ in sys.stdin:
  pid = os.fork()
  if not pid:
    save_for_ever()
  os.waitpid(pid, 0)
  print('dead', flush=True)
"""


@pytest.mark.parametrize(
  'kills', [8, pytest.param(200, marks=pytest.mark.slow)]
)
def test_a_kill_while_saving_loses_no_saved_checkpoint(tmp_path, kills):
  store = checkpoints.CheckpointStore(tmp_path, keep=1)
  rng = random.Random(0)
  last = 0
  with subprocess.Popen(
    [sys.executable, '-c', SAVER, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as saver:
    for _ in range(kills):
      saver.stdin.write('next\n')
      saver.stdin.flush()
      for line in saver.stdout:
        word, *number = line.split()
        if word == 'dead':
          break
        if word == 'pid':
          pid = int(number[0])
          continue
        last = int(word)
        if pid:
          time.sleep(rng.uniform(0, 0.05))
          os.kill(pid, signal.SIGKILL)
          pid = None
      assert pid is None  # it did not fail
      newest = store.newest(warn=pytest.fail)
      assert newest.host['count'] >= last  # what was said to be saved is
      assert newest.step == newest.host['count'] // 2
      count = newest.host['count']
      like = {'count': np.int64(0), 'x': np.zeros(count % 50_000, np.int64)}
      arrays = newest.load(like)
      assert arrays['count'] == count
      assert np.all(arrays['x'] == count)
  store.save(0, (), {'count': 0})
  assert len(os.listdir(tmp_path)) == 1
