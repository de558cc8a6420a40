"""What an update must move, and how many kernels do it; no compiler is asked.

With the compilers: `tests/aot_test.py`.
"""

import jax.numpy as jnp
import pytest

from experiments.bench import compilers, named_rules
from tests import scripts

SHAPES = [(64, 256), (8, 128)]
# Arrays in and out: of the server, whose metrics compare θ with θs; of optax.
FLOORS = {
  'asgd': (6, 5),  # g, θs; v and θ in and out
  'ga': (8, 8),  # and s in and out
  'dana_ga': (10, 10),  # g, θs; v_w, Σ v, s and θ in and out
}


@pytest.fixture(scope='module')
def compiled_for():
  with scripts.own_flags('bench.compiled_for'):
    from experiments.bench import compiled_for

    yield compiled_for


@pytest.mark.parametrize('device', sorted(compilers.COMPILERS))
@pytest.mark.parametrize(
  'name', ['asgd', 'ga', pytest.param('dana_ga', marks=pytest.mark.slow)]
)
def test_what_an_update_must_move(compiled_for, device, name):
  rule = named_rules.named()[name]()
  steps = compiled_for.steps(rule, SHAPES, jnp.float32)
  for path, arrays in zip(('server', 'optax'), FLOORS[name], strict=True):
    fn, args, _, size = steps[path]
    floor = compilers.floor(device, fn, args)
    assert floor / size == pytest.approx(arrays, abs=0.01)
    fell_back = name == 'asgd' and path == 'optax'  # XLA's one fusion
    kernels = compilers.planned(device, fn, args)
    assert kernels == (0 if fell_back else len(SHAPES))


def test_the_compiler_that_is_not_installed_is_named(monkeypatch):
  for name, one in compilers.COMPILERS.items():
    away = one._replace(package='no_such_package')
    monkeypatch.setitem(compilers.COMPILERS, name, away)
  ended = scripts.call('bench.compiled_for', '--device=v5e')
  assert ended.code == 2
  assert "pip install 'ga_jax[aot-tpu]'" in ended.err
