"""What the arguments of rules must be."""

from typing import Any

import jax
import jax.numpy as jnp

from ga_jax.guards import checks


def check_number(
  name: str,
  value: Any,
  *,
  low: float | None = None,
  above: float | None = None,
  below: float | None = None,
  schedule: bool = False,
):
  """Raises a ValueError where an argument is no number in its range.

  What is traced is one real number, of which no more can be known.

  Args:
    name: of the argument.
    value: a number of Python, NumPy or JAX.
    low: see `checks.number`.
    above: see `checks.number`.
    below: see `checks.number`.
    schedule: whether it may be a function of a count, too.
  """
  if schedule and callable(value):
    return
  if isinstance(value, jax.core.Tracer) and checks.real_scalar(value):
    return
  checks.number(name, value, low=low, above=above, below=below)


# What `staleness` is, for the message where it is missing.
STALENESS = 'the server updates since the parameters were read'


def require(name: str, argument: str, value, meaning: str):
  """Raises a TypeError where an extra argument was not passed.

  Args:
    name: the link that needs it.
    argument: the argument's name.
    value: what was passed.
    meaning: what is to be passed.
  """
  if value is None:
    raise TypeError(
      f'{name} needs {argument}: call update(grads, state, params, '
      f'{argument}=...) with {meaning}. Under a policy that averages rounds '
      'build the chain with ga_jax.chain.'
    )


def check_stale_params(name: str, stale_params, params):
  """Checks the two trees a gap is measured between.

  Args:
    name: the link that needs them, for the message.
    stale_params: what the worker was sent.
    params: the parameters now.

  Raises:
    TypeError: one of them was not passed.
    ValueError: they differ in structure or shape; the leaf is named.
  """
  if params is None or stale_params is None:
    missing = 'params' if params is None else 'stale_params'
    raise TypeError(
      f'{name} needs {missing}: call update(grads, state, params, '
      'stale_params=...) with the parameters the gradient was computed at. '
      'Under a policy that averages rounds build the chain with ga_jax.chain, '
      'under gradient accumulation use ga_jax.multi_steps.'
    )
  now, _ = jax.tree_util.tree_flatten_with_path(params)
  stale, _ = jax.tree_util.tree_flatten_with_path(stale_params)
  now = {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in now}
  stale = {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in stale}
  for path in {**now, **stale}:
    if now.get(path) != stale.get(path):
      raise ValueError(
        f'{name}: params and stale_params differ at leaf {path or "(root)"}: '
        f'{_describe(now, path)} in params, {_describe(stale, path)} in '
        'stale_params (inside optax.masked or optax.partition pass '
        'mask_compatible_extra_args=True)'
      )
  if jax.tree.structure(params) != jax.tree.structure(stale_params):
    raise ValueError(
      f'{name}: params are {jax.tree.structure(params)}, stale_params are '
      f'{jax.tree.structure(stale_params)}'
    )


def _describe(shapes, path) -> str:
  return f'shape {shapes[path]}' if path in shapes else 'absent'
