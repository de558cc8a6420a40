"""A server's arrays and what is done to them, step by step; no ledger."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax.policies.parts.base import Action
from ga_jax.rules.parts import optimizer
from ga_jax.server import compiled as compiled_lib
from ga_jax.server import ledger, snapshots, update


class Work(NamedTuple):
  """A ticket with the parameters of its version."""

  ticket: ledger.Ticket
  params: Any
  model_state: Any


class Outcome(NamedTuple):
  """What a submission did.

  Attributes:
    receipt: the ledger's answer.
    metrics: gap and penalty as device scalars; None where it was not used.
  """

  receipt: ledger.Receipt
  metrics: update.Metrics | None


class ServerCore:
  """Parameters and the snapshots that tickets hold, without any policy."""

  def __init__(
    self,
    compiled: compiled_lib.Compiled,
    hparams,
    params,
    model_state,
    accumulates,
    device=None,
  ):
    self._compiled = compiled
    self._hparams = hparams
    self._accumulates = accumulates
    self._looks_ahead = compiled.rule(hparams).looks_ahead
    self._state = compiled.init(hparams, params, model_state)
    if device is not None:
      self._state = jax.device_put(self._state, device)
    self._lent = False  # whether anybody else may hold the optimiser state
    self._published = self._state  # as it was when the version was made
    self.version = 0
    self.store = snapshots.SnapshotStore()

  @property
  def state(self) -> update.ServerState:
    """All it knows; what is returned stays as it is."""
    self._lent = True
    return self._state

  @property
  def params(self):
    """The parameters now."""
    return self._state.params

  @property
  def model_state(self):
    """The model statistics now."""
    return self._state.model_state

  def save(self):
    """All arrays, a pytree."""
    return {
      'state': self.state,
      'published': self._published,
      'snapshots': self.store.save(),
    }

  def like(self, versions: Iterable[int]):
    """What `save` returns where these versions are held: shapes to load."""
    live = dict.fromkeys(versions, self.snapshot())
    return {**self.save(), 'snapshots': live}

  def restore(self, saved, holders: dict[int, int]):
    """Goes on where `save` was called; `holders` are tickets by version."""
    self._state, self._published = saved['state'], saved['published']
    self._lent = True
    self.version = int(self._state.version)
    self.store.restore(saved['snapshots'], holders)

  def hold(self, version: int) -> update.Snapshot:
    """What a worker that starts at the current version is sent."""
    return self.store.hold(version, self.snapshot)

  def snapshot(self) -> update.Snapshot:
    """What is sent at the version that was published last."""
    if not self._looks_ahead:  # the server's own arrays: nothing is donated
      return update.Snapshot(
        self._published.params, self._published.model_state
      )
    return self._compiled.snapshot(self._hparams, self._published)

  def leave(self, worker_id: int):
    """A worker has left; what is sent changes with the next version."""
    if optimizer.per_worker(self._state.opt_state):
      self._state = self._state._replace(
        opt_state=compiled_lib.leave(self._state.opt_state, np.int32(worker_id))
      )

  def keep(self, version: int):
    """`hold`, where nobody looks at it now."""
    self.hold(version)

  def release(self, version: int):
    """A ticket of that version has ended."""
    self.store.release(version)

  def enter(
    self,
    ticket,
    grads,
    model_state,
    *,
    action,
    weight,
    staleness,
    sent=None,
    totals=None,
  ) -> update.Metrics:
    """A gradient enters the open round, which is closed on APPLY.

    Args:
      ticket: that it answers; its version is held.
      grads: pytree like the parameters.
      model_state: the statistics as the worker's step returned them.
      action: APPLY or ACCUMULATE.
      weight: in its round.
      staleness: in server updates.
      sent: what its worker was sent, where it is not that of its version.
      totals: sums over all shards, where this is one; see `compiled.Compiled`.

    Returns:
      Gap and penalty as device scalars, of this shard where it is one.
    """
    enter = (
      self._compiled.accumulate if self._accumulates else self._compiled.apply
    )
    arrival = self.arrival(ticket, grads, model_state, weight, staleness, sent)
    state = self._state if self._accumulates else self._given_up()
    self._state, metrics = enter(self._hparams, state, arrival, totals=totals)
    self._lent = False
    if action == Action.APPLY:
      self.close() if self._accumulates else self._publish()
    return metrics

  def layer_metrics(
    self, ticket, grads, model_state, *, weight, staleness, sent=None
  ) -> update.LayerMetrics:
    """What `enter` with these arguments will do to each layer."""
    arrival = self.arrival(ticket, grads, model_state, weight, staleness, sent)
    return self._compiled.layer_metrics(self._hparams, self._state, arrival)

  def _given_up(self) -> update.ServerState:
    """The state, whose optimiser state is about to be overwritten."""
    if not self._lent:
      return self._state
    copied = jax.tree.map(jnp.copy, self._state.opt_state)
    return self._state._replace(opt_state=copied)

  def arrival(
    self, ticket, grads, model_state, weight, staleness, sent=None
  ) -> update.Arrival:
    """A gradient as the kernel sees it."""
    return update.Arrival(
      grads=grads,
      model_state=model_state,
      sent=self.store.read(ticket.version) if sent is None else sent,
      staleness=np.int32(staleness),
      worker_id=np.int32(ticket.worker_id),
      weight=np.float32(weight),
      num_batches=np.int32(ticket.num_batches),
    )

  def warm_up(self, grads, model_state, sent, totals=None, close_totals=None):
    """Compiles everything, with any gradient; nothing is changed."""
    ticket = ledger.Ticket(0, 0, 0, 0, 1, 0)
    arrival = self.arrival(ticket, grads, model_state, 1.0, 0, sent)
    if self._accumulates:
      state, _ = self._compiled.accumulate(
        self._hparams, self._state, arrival, totals=totals
      )
      self._compiled.close(self._hparams, state, totals=close_totals)
    else:
      self._lent = True  # what is computed is thrown away
      self._compiled.apply(
        self._hparams, self._given_up(), arrival, totals=totals
      )

  def close(self, totals=None):
    """Closes the open round."""
    self._state = self._compiled.close(
      self._hparams, self._state, totals=totals
    )
    self._publish()

  def _publish(self):
    self._published = self._state
    self.version += 1
