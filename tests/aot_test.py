"""What the compilers of an H100 and a TPU v5e make of updates; no device.

pip install 'ga_jax[aot-gpu]' or 'ga_jax[aot-tpu]'
python -m pytest tests/aot_test.py -m aot
"""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import compilers, named_rules, resnet50
from ga_jax.kernels import fused

DEVICES = [
  pytest.param(
    name,
    marks=pytest.mark.skipif(
      importlib.util.find_spec(one.package) is None,
      reason=f"needs the compiler: pip install 'ga_jax[{one.extra}]'",
    ),
  )
  for name, one in compilers.COMPILERS.items()
]
H100, V5E = DEVICES
pytestmark = [pytest.mark.aot, pytest.mark.optax_promotes]
each_device = pytest.mark.parametrize('device', DEVICES)

VECTOR, MATRIX = [(25_600_000,)], [(4096, 6144)]
# Rules whose updates, handed out, need a sum or a row: the others are one
# fusion of XLA's there.
WITH_SUMS = ('ga', 'ga_global', 'ga_adam')
WITH_ROWS = ('multi_asgd', 'dana_zero', 'dana_dc', 'dana_ga')
# Arrays that an update may move: by the server, and handed out.
AT_MOST = {
  'ga': (8.3, 10.5),
  'ga_adam': (10.5, 13.1),
  'dana_ga': (11.5, 13.1),
  'dana_zero': (9.0, 9.1),
}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
  """Those of users; a program for a device that is not here is not kept."""
  monkeypatch.delenv(fused.VARIABLE, raising=False)
  jax.config.update('jax_enable_compilation_cache', False)
  yield
  jax.config.update('jax_enable_compilation_cache', True)


def made(device, name, path, shapes, dtype=jnp.float32):
  """What `compiled_for` counts."""
  from experiments.bench import compiled_for  # defines flags

  steps = compiled_for.steps(named_rules.named()[name](), shapes, dtype)
  return compiled_for.measured(device, steps[path])


def assert_in_place(row):
  assert row['temporary'] < 0.05
  assert row['in_place'] == pytest.approx(row['donated'], abs=0.01)


@each_device
@pytest.mark.parametrize('name', sorted(named_rules.named()))
def test_every_rule_is_a_kernel_of_the_server(device, name):
  """The metrics of an arrival are sums, so that all of them need one."""
  row = made(device, name, 'server', MATRIX)
  assert row['kernels'] == row['planned'] == 1
  assert_in_place(row)
  # ga_global divides by what it sums first: θ and θs are read twice.
  assert row['moved'] <= row['floor'] + (1 if name == 'ga_global' else 0) + 0.1


@each_device
@pytest.mark.parametrize('name', sorted(named_rules.named()))
def test_every_rule_in_a_loop_of_optax(device, name):
  row = made(device, name, 'optax', MATRIX)
  kernels = int(name in WITH_SUMS + WITH_ROWS)
  assert row['kernels'] == row['planned'] == kernels
  assert row['in_place'] == pytest.approx(row['donated'], abs=0.01)
  if not kernels:
    assert row['moved'] <= row['floor'] + 0.1
  # Updates that follow from a row of a buffer are an array of their own.
  assert row['temporary'] <= (name in WITH_ROWS) + 0.05


@each_device
@pytest.mark.parametrize('name', AT_MOST)
@pytest.mark.parametrize('shapes', [VECTOR, MATRIX], ids=['vector', 'matrix'])
def test_how_much_memory_an_update_moves(device, name, shapes):
  if device == 'v5e' and name in WITH_ROWS and shapes is VECTOR:
    pytest.skip('rows of vectors share tiles: there is no kernel')
  for path, most in zip(('server', 'optax'), AT_MOST[name], strict=True):
    row = made(device, name, path, shapes)
    assert row['floor'] <= row['moved'] + 1e-6
    assert row['moved'] <= most


@each_device
@pytest.mark.parametrize('name', ['ga', 'ga_adam', 'dana_ga'])
def test_parameters_of_half_precision(device, name):
  row = made(device, name, 'server', MATRIX, jnp.bfloat16)
  assert row['kernels'] == row['planned'] == 1
  assert_in_place(row)
  assert row['moved'] <= row['floor'] + 0.1


@pytest.mark.parametrize('device', [H100])
def test_many_leaves_share_launches(device):
  shapes = resnet50.shapes()
  row = made(device, 'ga', 'server', shapes)
  assert row['kernels'] == row['planned']
  assert row['moved'] <= 10.5
  assert_in_place(row)
  plain = made(device, named_rules.SGD, 'optax', shapes)
  assert plain['launches'] == len(shapes)
  assert row['launches'] <= 2 * plain['launches']


@each_device
def test_what_a_program_moves_is_read_from_its_text(device):
  """Fusions, rows and copies, in arrays that are easily counted."""
  whole = jax.ShapeDtypeStruct((512, 65_536), jnp.float32)
  vector = jax.ShapeDtypeStruct((65_536,), jnp.float32)
  at = jax.ShapeDtypeStruct((), jnp.int32)
  size = math.prod(vector.shape) * 4

  def moved(fn, *args, donate=()):
    found = compilers.compiled(device, fn, args, donate)
    assert found.kernels == compilers.planned(device, fn, args) == 0
    return found.moved / size, compilers.floor(device, fn, args) / size

  def read(whole, vector, at):
    return jax.lax.dynamic_index_in_dim(whole, at, 0, False) * vector

  def write(whole, vector, at):
    return jax.lax.dynamic_update_index_in_dim(whole, vector, at, 0)

  for fn, rows in ((read, 3), (write, 2)):
    donate = (0,) if fn is write else ()
    found, floor = moved(fn, whole, vector, at, donate=donate)
    assert found == pytest.approx(rows, abs=0.05)
    assert floor == pytest.approx(rows, abs=0.05)
  found, floor = moved(lambda whole: jnp.sin(whole) + 1, whole)
  assert found == floor == 1024
