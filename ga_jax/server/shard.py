"""One piece of a server: `sharded.ShardedCore` is made of several."""

from collections.abc import Callable
from typing import Any

import jax

from ga_jax.policies.parts.base import Action
from ga_jax.rules.parts import global_sums, optimizer
from ga_jax.server import compiled as compiled_lib
from ga_jax.server import core as core_lib
from ga_jax.server import ledger, statistics, update


class Shard:
  """One piece of a server.

  All that goes in and out are pytrees of arrays and plain values, and nothing
  is asked but by a call, so that it can live in a process of its own.
  """

  def __init__(
    self,
    rule_fn: Callable[[Any], optimizer.AsyncOptimizer],
    fold_fn: statistics.FoldFn,
    accumulates: bool,
    hparams,
    params,
    model_state=(),
    device=None,
  ):
    """Starts a shard.

    Args:
      rule_fn: see `shards.core`, as the next three.
      fold_fn: how model statistics are folded.
      accumulates: whether a round may hold several gradients.
      hparams: given to `rule_fn`.
      params: its piece of the initial parameters.
      model_state: initial model statistics; () on all shards but the first.
      device: where the arrays are; by default JAX's default device.
    """
    compiled = compiled_lib.compiled(rule_fn, fold_fn, accumulates)
    self._accumulates = accumulates
    self._core = core_lib.ServerCore(
      compiled, hparams, params, model_state, accumulates, device
    )
    self._entry = None  # the gradient that is offered

  def sums(self) -> tuple[int, int]:
    """Sums over all shards per gradient that enters, and per round's end."""
    return self._core.sums()

  def state(self) -> update.ServerState:
    """All it knows."""
    return self._core.state

  def snapshot(self) -> update.Snapshot:
    """Its piece of what is sent at the version that was published last."""
    return self._core.snapshot()

  def hold(self, version: int) -> update.Snapshot:
    """Keeps its piece of a snapshot until `release`, and returns it.

    Raises:
      ValueError: the shard is not at this version.
    """
    if version != self._core.version:
      raise ValueError(
        f'a shard is at version {self._core.version} where version {version} '
        'is asked for: the shards of a server must be told the same'
      )
    self._core.hold(version)
    return self._core.read(version)

  def read(self, version: int) -> update.Snapshot:
    """Its piece of a snapshot that is held."""
    return self._core.read(version)

  def release(self, version: int):
    """Nobody needs that snapshot any more."""
    self._core.release(version)

  def held(self) -> list[int]:
    """The versions whose snapshots it keeps."""
    return sorted(self._core.holders())

  def leave(self, worker_id: int):
    """A worker has left."""
    self._core.leave(worker_id)

  def offer(self, ticket: ledger.Ticket, grads, model_state, weight, staleness):
    """Brings its piece of a gradient; `enter` must follow.

    Each is an argument of its own, since Ray brings the values of handles only
    where they are arguments.
    """
    self._entry = core_lib.Entry(ticket, grads, model_state, weight, staleness)

  def enter_part(self, totals) -> jax.Array:
    """Its part of the sum after `totals` that the offered gradient needs."""
    return self._core.enter_part(self._core.arrival(self._entry), totals)

  def enter(self, totals) -> update.Metrics:
    """The offered gradient enters the round; without rounds it is applied."""
    action = Action.ACCUMULATE if self._accumulates else Action.APPLY
    entry, self._entry = self._entry, None
    metrics, _ = self._core.enter(entry, action, totals)
    return metrics

  def close_part(self, totals) -> jax.Array:
    """Its part of the sum after `totals` that closing the round needs."""
    return self._core.close_part(totals)

  def close(self, totals):
    """Closes the open round."""
    self._core.close(totals)

  def warm_up(self, grads, model_state):
    """Compiles everything, with any gradient; nothing is changed."""
    arrival = self._core.any_arrival(grads, model_state)
    entering, closing = self.sums()
    totals, close_totals = (), ()
    for _ in range(entering):
      part = self._core.enter_part(arrival, totals)
      totals += (global_sums.total([part]),)
    for _ in range(closing):
      part = self._core.close_part(close_totals)
      close_totals += (global_sums.total([part]),)
    self._core.warm_up(
      grads, model_state, totals=totals, close_totals=close_totals
    )

  def save(self):
    """All arrays, a pytree."""
    return self._core.save()

  def restore(self, saved):
    """Goes on where `save` was called."""
    self._core.restore(saved, dict.fromkeys(saved['snapshots'], 1))
