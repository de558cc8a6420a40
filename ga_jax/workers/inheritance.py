"""JAX's settings of one thread, handed on to the threads that it starts."""

import contextlib
from collections.abc import Callable

import jax

# Those that change what is computed, or what is refused.
_OWN = {
  'jax_enable_x64': jax.enable_x64,
  'jax_default_matmul_precision': jax.default_matmul_precision,
  'jax_numpy_dtype_promotion': jax.numpy_dtype_promotion,
  'jax_numpy_rank_promotion': jax.numpy_rank_promotion,
  'jax_default_prng_impl': jax.default_prng_impl,
  'jax_threefry_partitionable': jax.threefry_partitionable,
}


def inheriting(run: Callable) -> Callable:
  """A function under the settings of the thread that calls this, anywhere.

  A setting made by a context manager, `with jax.enable_x64(True)`, holds in its
  own thread only.

  Args:
    run: what another thread will call.

  Returns:
    A function of the same arguments.
  """
  settings = {name: getattr(jax.config, name) for name in _OWN}

  def inherited(*args):
    with contextlib.ExitStack() as stack:
      for name, value in settings.items():
        stack.enter_context(_OWN[name](value))
      return run(*args)

  return inherited
