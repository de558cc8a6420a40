"""What a model is: a pair of pure functions, whatever library made them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from ga_jax.guards import checks


def classes(num_classes: int) -> int:
  """A number of classes; a ValueError where it is none."""
  return checks.integer('num_classes', num_classes, 1)


class Model(NamedTuple):
  """A classifier.

  Attributes:
    init: `init(key, inputs) -> (params, model_state)`.
    apply: `apply(params, model_state, inputs, train) -> (logits, model_state)`,
      logits [B, num_classes]. With `train` False the state comes back as it is.
    stats_momentum: momentum of the running statistics in `model_state`.
    reads: 'any' inputs, 'images' [B, H, W, C] or 'tokens'.
  """

  init: Callable[..., tuple[Any, Any]]
  apply: Callable[..., tuple[jax.Array, Any]]
  stats_momentum: float = 0.9
  reads: str = 'any'


def from_linen(
  module: nn.Module, *, stats_momentum: float = 0.9, reads: str = 'any'
) -> Model:
  """Wraps a Flax linen module called as `module(inputs, train)`.

  Args:
    module: its BatchNorm layers must use `stats_momentum`.
    stats_momentum: momentum of its running averages.
    reads: what inputs it takes, see `Model`.

  Returns:
    A `Model` whose `model_state` is the 'batch_stats' collection, () without.
  """
  checks.number('stats_momentum', stats_momentum, low=0.0, high=1.0)

  def init(key, inputs):
    variables = dict(module.init(key, inputs, train=False))
    params = variables.pop('params')
    return params, variables.pop('batch_stats', ())

  def apply(params, model_state, inputs, train):
    variables = {'params': params}
    if model_state != ():
      variables['batch_stats'] = model_state
    if not train or model_state == ():
      return module.apply(variables, inputs, train=train), model_state
    logits, changed = module.apply(
      variables, inputs, train=True, mutable=['batch_stats']
    )
    return logits, changed['batch_stats']

  return Model(init, apply, stats_momentum, reads)
