"""Penalties by layer, for those who ask.

A rule's state keeps what its penalty came to over all parameters. What it was
on each leaf is computed only where the rule is traced within `asked`: elsewhere
`tell` does nothing, and what is compiled is the same.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ga_jax.kernels import fused
from ga_jax.rules.parts import numbers

_TOLD = contextvars.ContextVar('told', default=None)  # None: nobody asks


def names(params) -> tuple[str, ...]:
  """The layers of a pytree: the paths of its leaves, 'Dense_0/kernel'."""
  return tuple(map(_name, _paths(params)))


def tell(penalties: Any):
  """A rule tells what it divides a gradient by; not inside control flow.

  Args:
    penalties: G, a pytree with a leaf, or a scalar, per leaf of the parameters
      that are penalised.
  """
  told = _TOLD.get()
  if told is not None:
    leaves = jax.tree.leaves(penalties)
    told.append(
      {
        name: numbers.float_scalar(jnp.mean(leaf) if leaf.size else 1.0)
        for name, leaf in zip(names(penalties), leaves, strict=True)
      }
    )


@contextlib.contextmanager
def asked() -> Iterator[list[dict[str, jax.Array]]]:
  """What is traced within tells its penalties.

  Yields:
    The list that gets the mean of G by layer of every penalty there is.
  """
  told = []
  token = _TOLD.set(told)
  try:
    with fused.formula():
      yield told
  finally:
    _TOLD.reset(token)


def mean_penalties(params, told: list[dict[str, jax.Array]]) -> jax.Array:
  """The product of all penalties, by layer.

  Args:
    params: the parameters, for their layers.
    told: see `asked`.

  Returns:
    [layers], 1 where a layer has no penalty.

  Raises:
    ValueError: a penalty is of a layer that is none of these.
  """
  means = dict.fromkeys(names(params), numbers.float_scalar(1.0))
  for penalty in told:
    for name, mean in penalty.items():
      if name not in means:
        raise ValueError(
          f'this rule penalises {name}, which is no leaf of the parameters '
          '(optax.flatten may do that): its penalty has no layers'
        )
      means[name] = means[name] * mean
  return jnp.stack(list(means.values()))


def _paths(tree):
  return [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/') or 'params'
