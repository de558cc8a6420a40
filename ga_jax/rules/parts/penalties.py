"""What a rule divided gradients by, wherever it keeps that."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import numbers


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sizes:
  """Leaves by their path, and how many scalars each has; holds no array."""

  scalars: tuple[tuple[str, int], ...]


def sizes_of(params) -> Any:
  """The `Sizes` of a pytree; what `optax.masked` takes out is not in them."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  if not leaves:  # a place-holder of optax.tree_map_params stays what it is
    return params
  return Sizes(
    tuple((jax.tree_util.keystr(path), jnp.size(leaf)) for path, leaf in leaves)
  )


def sizes_by_name(sizes) -> dict[str, int]:
  """What `sizes_of` returns as a dict."""
  return dict(sizes.scalars) if isinstance(sizes, Sizes) else {}


class Penalty(NamedTuple):
  """What the last gradient was divided by; every penalising state holds one."""

  mean: jax.typing.ArrayLike  # over what is divided, shape=(), 1 = no penalty.
  max: jax.typing.ArrayLike  # the largest, shape=().
  sizes: Any = None  # `sizes_of` what is divided; None: of all parameters.


def no_penalty(params=None) -> Penalty:
  """The penalty before any gradient came.

  Args:
    params: what will be divided; None for all parameters that there are.
  """
  sizes = None if params is None else sizes_of(params)
  return Penalty(numbers.float_scalar(1.0), numbers.float_scalar(1.0), sizes)


def penalties_in(opt_state: optax.OptState) -> list[Penalty]:
  """All penalties in a state."""

  def is_penalty(node):
    return isinstance(node, Penalty)

  nodes = jax.tree.leaves(opt_state, is_leaf=is_penalty)
  return [node for node in nodes if is_penalty(node)]


def total_penalty(opt_state: optax.OptState, params) -> Penalty:
  """What all penalties in a state come to; 1 where a rule has none.

  Args:
    opt_state: the state of a rule.
    params: the parameters, or their shapes; the mean is over all of them.
  """
  sizes = sizes_by_name(sizes_of(params))
  return combined_penalty(penalties_in(opt_state), sizes)


def combined_penalty(
  penalties: list[Penalty], sizes: dict[str, int]
) -> Penalty:
  """What several penalties come to.

  Of those that divide the same leaves, one after the other, it is the product;
  over groups of leaves that are divided by different ones the mean, weighted by
  the number of parameters, and the maximum. It is 1 where nothing divides.

  Args:
    penalties: any number.
    sizes: of the leaves that the mean is over, by name.
  """
  divided = [_divided(penalty, sizes) for penalty in penalties]
  groups = {}  # numbers of the penalties that divide them -> scalars
  for name, size in sizes.items():
    by = tuple(i for i, names in enumerate(divided) if name in names)
    groups[by] = groups.get(by, 0) + size
  totals = {by: _product([penalties[i] for i in by]) for by in groups}
  if len(groups) < 2:
    return next(iter(totals.values()), no_penalty())
  scalars = max(sum(groups.values()), 1)
  mean = numbers.tree_sum(
    [groups[by] / scalars * totals[by].mean for by in groups]
  )
  largest = [totals[by].max for by in groups if groups[by]]
  return Penalty(mean, functools.reduce(jnp.maximum, largest))


def _divided(penalty: Penalty, sizes: dict[str, int]) -> set[str]:
  """The names of the leaves that a penalty is of."""
  if penalty.sizes is None:
    return set(sizes)
  names = set(sizes_by_name(penalty.sizes))
  # Of a tree of its own (optax.flatten) it is not known which they are.
  return names if names <= set(sizes) else set(sizes)


def _product(penalties: list[Penalty]) -> Penalty:
  """Of penalties of the same leaves."""
  mean = largest = numbers.float_scalar(1.0)
  for penalty in penalties:
    mean, largest = mean * penalty.mean, largest * penalty.max
  return Penalty(mean, largest)
