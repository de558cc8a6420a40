"""What gap-aware links saw, found in the state of any rule that holds one."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import numbers, penalties


class GapMetrics(NamedTuple):
  """What the last correction saw; device scalars of the default float type."""

  mean_gap: jax.typing.ArrayLike  # ‖θ − θs‖₂ / sqrt(k), the paper's Gap.
  penalty: penalties.Penalty  # of G over all parameters.

  @property
  def mean_penalty(self):
    return self.penalty.mean

  @property
  def max_penalty(self):
    return self.penalty.max


def no_gap_metrics(params) -> GapMetrics:
  """The metrics before any gradient came: no gap, no penalty."""
  return GapMetrics(numbers.float_scalar(0.0), penalties.no_penalty(params))


def gap_metrics(opt_state: optax.OptState) -> GapMetrics:
  """The gap and penalty of the last correction, found anywhere in a state.

  Where several links are gap-aware (the groups of `optax.partition`, say), it
  is that of all the parameters that they penalise: gap and mean penalty are
  weighted by the number of parameters, see `gap_metrics_by_group` for each.

  Args:
    opt_state: the state of a rule, or of a chain that holds one.

  Returns:
    `GapMetrics` of device scalars; nothing is copied to the host.

  Raises:
    ValueError: the state holds no gap-aware link, or several of which one does
      not say what it penalises.
  """
  found = list(gap_metrics_by_group(opt_state).values())
  if len(found) == 1:
    return found[0]
  if any(one.penalty.sizes is None for one in found):
    raise ValueError(
      'this state holds several gap-aware links, one of which does not say in '
      'its penalty what it divides (see sizes_of): ask gap_metrics_by_group'
    )
  groups = [penalties.sizes_by_name(one.penalty.sizes) for one in found]
  sizes = [sum(group.values()) for group in groups]
  squares = [
    size / max(sum(sizes), 1) * one.mean_gap**2
    for size, one in zip(sizes, found, strict=True)
  ]
  return GapMetrics(
    mean_gap=jnp.sqrt(numbers.tree_sum(squares)),
    penalty=penalties.combined_penalty(
      [one.penalty for one in found],
      dict(itertools.chain(*(group.items() for group in groups))),
    ),
  )


def gap_metrics_by_group(opt_state: optax.OptState) -> dict[str, GapMetrics]:
  """The gap and penalty of every gap-aware link in a state.

  Args:
    opt_state: see `gap_metrics`.

  Returns:
    `GapMetrics` by name: the label of the link's group in `optax.partition`,
    labels of groups within groups joined by '/'. Links without a label, and
    those of the same label, are numbered in the order of the chain: '0', '1',
    'head/0', 'head/1'.

  Raises:
    ValueError: the state holds no gap-aware link.
  """

  def is_metrics(node):
    return isinstance(node, GapMetrics)

  leaves = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=is_metrics)
  labelled = {}
  for path, node in leaves:
    if is_metrics(node):
      keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
      labelled.setdefault('/'.join(map(str, keys)), []).append(node)
  if not labelled:
    raise ValueError('this optimiser state holds no gap-aware link')
  named = {}
  for label, nodes in labelled.items():
    for i, node in enumerate(nodes):
      number = [str(i)] if len(nodes) > 1 or not label else []
      named['/'.join([label] * bool(label) + number)] = node
  return named
