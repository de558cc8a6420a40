"""A server's core on any number of shards, and what cannot run on several.

The shards may be in this process or anywhere else; the bits are the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from ga_jax.rules.parts import optimizer
from ga_jax.server import compiled as compiled_lib
from ga_jax.server import core as core_lib
from ga_jax.server import probe, sharded, statistics
from ga_jax.server import shard as shard_lib
from ga_jax.server import split as split_lib


class Remote(NamedTuple):
  """Shards that are elsewhere.

  Attributes:
    shard_fn: starts a shard from the arguments of `shard.Shard`; its methods
      may return handles of the values.
    gather_fn: from handles to values, waits for them.
  """

  shard_fn: Callable[..., Any]
  gather_fn: Callable[[list[Any]], list[Any]]


def check(
  shards: int,
  rule: optax.GradientTransformation,
  params,
  layer_metrics: bool = False,
):
  """Refuses what cannot run on so many shards.

  Args:
    shards: number of shards.
    rule: the server rule, or a plain optax transformation.
    params: pytree of arrays.
    layer_metrics: whether gap and penalty are measured by layer too.

  Raises:
    ValueError: says why.
  """
  if shards > 1 and layer_metrics:
    raise ValueError(
      'layer_metrics are measured where a layer is whole: take one server '
      'shard, or no layer_metrics'
    )
  split_lib.split(params, shards)
  if shards > 1:
    probe.check_rule(optimizer.lift(rule), params)


def core(
  rule_fn: Callable[[Any], optimizer.AsyncOptimizer],
  fold_fn: statistics.FoldFn,
  accumulates: bool,
  hparams,
  params,
  model_state=(),
  *,
  layer_metrics: bool = False,
  shards: int = 1,
  device=None,
  remote: Remote | None = None,
) -> core_lib.Core:
  """A server's core on any number of shards.

  Args:
    rule_fn: see `compiled.compiled`, as the next two.
    fold_fn: how model statistics are folded.
    accumulates: whether a round may hold several gradients.
    hparams: given to `rule_fn`.
    params: initial parameters.
    model_state: initial model statistics.
    layer_metrics: whether gap and penalty are measured by layer too.
    shards: number of shards; with 1 the arrays are whole, and here.
    device: where arrays are that are here; by default JAX's default device.
    remote: where the shards are, if not here.

  Returns:
    A core; the same number of shards gives the same bits, wherever they are.

  Raises:
    ValueError: the rule cannot run on so many shards.
  """
  compiled = compiled_lib.compiled(rule_fn, fold_fn, accumulates)
  check(shards, compiled.rule(hparams), params, layer_metrics)
  if shards == 1:
    return core_lib.ServerCore(
      compiled, hparams, params, model_state, accumulates, device, layer_metrics
    )
  shard_fn, gather_fn = remote or (shard_lib.Shard, None)
  split = split_lib.split(params, shards)
  made = []
  for i, piece in enumerate(split.pieces(params)):
    fold, stats = (statistics.NOTHING, ()) if i else (fold_fn, model_state)
    where = None if remote else device
    made.append(
      shard_fn(rule_fn, fold, accumulates, hparams, piece, stats, where)
    )
  return sharded.ShardedCore(made, split, accumulates, gather_fn)
