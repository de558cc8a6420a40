"""Compiled programs that are kept: the same bits, and never in the way."""

import glob
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import ga_jax
from experiments.running import compilation, environment, watch
from experiments.screens import progress
from tests import cases


@pytest.fixture(autouse=True)
def nothing_is_kept_afterwards(monkeypatch):
  options = ('jax_compilation_cache_dir', *compilation._LIMITS)
  for name in options:
    monkeypatch.setenv(name.upper(), '')  # set back afterwards
    monkeypatch.delenv(name.upper())
  for name in environment._POOL_VARIABLES:
    monkeypatch.delenv(name, raising=False)
  before = {name: jax.config.values[name] for name in options}
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def trained(executor):
  """(final state, what was compiled) of a model that no one has run before."""

  def loss_fn(params, model_state, batch, key):
    x, y = batch
    del key
    hidden = jnp.tanh(x @ params['w'])
    return jnp.mean((hidden @ params['v'] - y) ** 2), model_state

  def batch(i):
    rng = np.random.default_rng(i)
    x = rng.normal(size=(32, 8)).astype(np.float32)
    return x, np.sin(x.sum(-1))

  rng = np.random.default_rng(0)
  params = {
    'w': rng.normal(size=(8, 16)).astype(np.float32),
    'v': rng.normal(size=16).astype(np.float32),
  }
  before = compilation.so_far()
  result = ga_jax.simulate(
    ga_jax.Job(
      loss_fn,
      params,
      batch,
      ga_jax.gap_aware(0.05),
      ga_jax.policies.asynchronous(),
    ),
    ga_jax.clocks.homogeneous(0),
    num_workers=4,
    num_batches=40,
    block=8,
    executor=executor,
  )
  state = jax.tree.map(np.asarray, result.state)
  return state, compilation.so_far().since(before)


@pytest.mark.parametrize(
  'executor', ['fast', pytest.param('exact', marks=pytest.mark.slow)]
)
def test_a_program_from_the_cache_gives_the_same_bits(tmp_path, executor):
  compilation.keep(compilation.NONE)
  plain, compiled = trained(executor)
  assert compiled.programs >= 2
  assert compiled.cached == 0
  compilation.keep(str(tmp_path))
  first, _ = trained(executor)
  second, compiled = trained(executor)
  assert compiled.programs >= 2
  assert compiled.cached == compiled.programs
  assert list(tmp_path.iterdir())
  for other in (first, second):
    assert cases.same_bits(plain, other)


def double(x):
  return x * 2 + jnp.flip(x)


def compiled_now(number):
  """How many of the programs of a fresh `double` came from the cache."""
  before = compilation.so_far()
  # A lambda of its own: JAX would know the function again.
  jax.block_until_ready(jax.jit(lambda x: double(x))(np.arange(number)))
  return compilation.so_far().since(before).cached


def test_a_damaged_entry_is_warned_of_once_and_replaced(tmp_path, capsys):
  compilation.keep(str(tmp_path))
  warnings.simplefilter('always')
  compiled_now(3)
  compiled_now(5)
  entries = glob.glob(str(tmp_path / '*' / 'jit__lambda*-cache'))
  assert len(entries) == 2
  for path in entries:
    with open(path, 'r+b') as file:
      file.truncate(os.path.getsize(path) // 2)
  assert compiled_now(3) == 0
  assert compiled_now(5) == 0
  said = capsys.readouterr().err
  assert said.count('\n') == 1
  assert str(tmp_path) in said
  assert 'lambda' in said
  assert compiled_now(5) == 1
  assert not capsys.readouterr().err


def test_a_cache_folder_that_cannot_be_used_only_warns(tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  compilation.keep(str(tmp_path / 'file' / 'cache'))
  said = capsys.readouterr().err
  assert said.count('\n') == 1
  assert '--compilation_cache' in said
  assert str(tmp_path / 'file' / 'cache') in said
  assert compiled_now(7) == 0
  assert compiled_now(7) == 0


@pytest.mark.parametrize('given', ['', 'none'])
def test_the_cache_can_be_switched_off(tmp_path, monkeypatch, given):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  compilation.keep(given)
  assert not jax.config.jax_compilation_cache_dir
  assert compiled_now(9) == 0
  assert not list(tmp_path.iterdir())
  assert os.environ[compilation.FOLDER] == ''  # so do processes it starts


def test_the_cache_folder_is_private_and_follows_the_environment(
  tmp_path, monkeypatch
):
  for name in ('GA_JAX_CACHE', 'XDG_CACHE_HOME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('HOME', '/home/me')
  assert compilation.default_folder() == '/home/me/.cache/ga_jax/compiled'
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  compilation.keep()
  kept = str(tmp_path / 'xdg' / 'ga_jax' / 'compiled')
  here = f'threads-{environment.wanted_threads()}'
  assert jax.config.jax_compilation_cache_dir == os.path.join(kept, here)
  assert os.stat(kept).st_mode & 0o077 == 0  # whoever writes there runs code
  assert os.stat(os.path.join(kept, here)).st_mode & 0o077 == 0
  monkeypatch.setenv('GA_JAX_CACHE', str(tmp_path / 'own'))
  assert compilation.default_folder() == str(tmp_path / 'own' / 'compiled')
  monkeypatch.setenv(compilation.FOLDER, str(tmp_path / 'jax'))
  compilation.keep()  # what JAX was told already
  inside = str(tmp_path / 'jax' / here)
  assert jax.config.jax_compilation_cache_dir == inside
  compilation.keep()  # as in a process that this one starts
  assert jax.config.jax_compilation_cache_dir == inside


def test_programs_are_kept_apart_by_thread_pool_size(tmp_path, monkeypatch):
  found = {}
  for threads in ('5', '5', '6', '5'):
    monkeypatch.setenv('NPROC', threads)
    compilation.keep(str(tmp_path))
    found.setdefault(threads, []).append(compiled_now(11))
  assert found == {'5': [0, 1, 1], '6': [0]}
  folders = sorted(path.name for path in tmp_path.iterdir())
  assert folders == ['threads-5', 'threads-6']
  assert os.environ[compilation.FOLDER] == str(tmp_path)
  assert compilation.of_pool(str(tmp_path), 5) == str(tmp_path / 'threads-5')
  assert compilation.of_pool('', 5) == ''


def test_progress_says_how_long_compiling_took(capsys):
  at = watch.Progress(0.5, 4, 8, None, None)
  with progress.TrainingProgress() as shown:
    shown.update(at)
    shown.update(at)
  first, second, *rest = capsys.readouterr().out.splitlines()
  assert first == 'compiling ...'
  assert second.startswith('compiled ')
  assert ' s' in second
  assert not rest


def train(folder, workdir, **variables):
  command = [sys.executable, '-m', 'experiments.train', '--epochs=0.5']
  flags = [f'--compilation_cache={folder}', f'--workdir={workdir}']
  return subprocess.run(
    command + flags,
    env={**os.environ, **variables},
    capture_output=True,
    text=True,
    check=True,
    timeout=300,
  ).stdout


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_replays(tmp_path):
  cache = tmp_path / 'cache'
  first = train(cache, tmp_path / 'first')
  assert 'from the cache' not in first
  second = train(cache, tmp_path / 'second')
  line = next(x for x in second.splitlines() if x.startswith('compiled'))
  _, number, *_ = line.split()
  assert f'{number} of them from the cache' in line
  replay = [sys.executable, '-m', 'experiments.replay', '--fast']
  subprocess.run(
    [*replay, f'--workdir={tmp_path}/second', '--compilation_cache=none'],
    check=True,  # the same bits, compiled anew
    timeout=300,
  )


@pytest.mark.slow
def test_every_thread_pool_size_compiles_its_own_block(tmp_path):
  for number in ('1', '2'):
    train(tmp_path / 'cache', tmp_path / number, NPROC=number)
  blocks = glob.glob(str(tmp_path / 'cache' / '*' / 'jit_block-*'))
  assert len(blocks) == 2


ROUNDS_BY_ITS_PARTS = """
import hashlib, sys
import jax, jax.numpy as jnp, numpy as np
from experiments.running import compilation
compilation.keep(sys.argv[1])

@jax.jit
def out(x):
  return jax.nn.gelu(x, approximate=False) * jnp.log1p(jnp.abs(x))

x = np.random.default_rng(0).normal(size=1000003).astype(np.float32)
print(hashlib.sha256(np.asarray(out(x)).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_cache_gives_no_program_of_another_thread_pool(tmp_path):
  # Two threads halve the loop, and on x86 some sums then round differently.
  def bits(folder, threads):
    return subprocess.run(
      [sys.executable, '-c', ROUNDS_BY_ITS_PARTS, str(folder)],
      env={**os.environ, 'NPROC': threads},
      capture_output=True,
      text=True,
      check=True,
      timeout=120,
    ).stdout

  plain = {threads: bits('none', threads) for threads in ('1', '2')}
  for threads in ('2', '1', '2', '1'):
    assert bits(tmp_path, threads) == plain[threads]
