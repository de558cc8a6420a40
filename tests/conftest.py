"""Strict settings for every test, and a few shared pieces."""

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_num_cpu_devices', 4)  # for the threads runtime


@pytest.fixture(autouse=True)
def strict_promotion(request):
  """No implicit dtype promotion, but where optax's own parts need it."""
  relaxed = request.node.get_closest_marker('optax_promotes')
  with jax.numpy_dtype_promotion('standard' if relaxed else 'strict'):
    yield


@pytest.fixture
def x64():
  """Runs a test in double precision."""
  with jax.enable_x64(True):
    yield
