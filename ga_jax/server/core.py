"""A server's arrays and what is done to them, step by step; no ledger.

`Core` says what that is; `ServerCore` is one with whole arrays, and
`sharded.ShardedCore` one whose arrays are in pieces.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax.policies.parts.base import Action
from ga_jax.rules.parts import optimizer
from ga_jax.server import compiled as compiled_lib
from ga_jax.server import ledger, snapshots, update
from ga_jax.server import split as split_lib

# With which everything is compiled before there is any.
_ANY_TICKET = ledger.Ticket(0, 0, 0, 0, 1, 0)


class Entry(NamedTuple):
  """A gradient that enters a round.

  Attributes:
    ticket: that it answers; its version is held.
    grads: pytree like the parameters, or `split.Pieces` where the shards that
      it is for are elsewhere.
    model_state: the statistics as the worker's step returned them.
    weight: in its round.
    staleness: in server updates.
    sent: what it was computed at; None for the snapshot of its version.
  """

  ticket: ledger.Ticket
  grads: Any
  model_state: Any
  weight: float
  staleness: int
  sent: update.Snapshot | None = None


class Core(Protocol):
  """Parameters and the snapshots that tickets hold, without any policy.

  Attributes:
    version: updates made.
  """

  version: int

  @property
  def state(self) -> update.ServerState:
    """All it knows, with whole parameters; what is returned stays as it is."""

  @property
  def params(self):
    """The whole parameters now."""

  @property
  def model_state(self):
    """The model statistics now."""

  def snapshot(self) -> update.Snapshot:
    """What is sent at the version that was published last."""

  def hold(self, version: int):
    """Keeps the snapshot of the current version for one more ticket."""

  def read(self, version: int) -> update.Snapshot:
    """The snapshot of a version that is held.

    Raises:
      KeyError: no ticket holds it.
    """

  def to_send(self, version: int) -> update.Snapshot | split_lib.Pieces:
    """`read`, or its pieces where the shards are elsewhere."""

  def release(self, version: int):
    """A ticket of that version has ended."""

  def holders(self) -> dict[int, int]:
    """By version, how many tickets hold its snapshot."""

  def leave(self, worker_id: int):
    """A worker has left; what is sent changes with the next version."""

  def enter(
    self, entry: Entry, action: Action
  ) -> tuple[update.Metrics, update.LayerMetrics | None]:
    """A gradient enters the open round.

    Args:
      entry: the gradient.
      action: APPLY, which closes the round, or ACCUMULATE.

    Returns:
      Gap and penalty as device scalars, or what becomes numbers when somebody
      looks at it, and those by layer where they were asked for.
    """

  def close(self):
    """Closes the open round: an update and a new version."""

  def warm_up(self, grads, model_state, sent: update.Snapshot | None = None):
    """Compiles everything; nothing is changed.

    Args:
      grads: any gradient.
      model_state: any statistics.
      sent: see `Entry`.
    """

  def save(self) -> dict[str, Any]:
    """All arrays, a pytree; 'snapshots' are by version."""

  def like(self, versions: Iterable[int]) -> dict[str, Any]:
    """What `save` returns where these versions are held: shapes to load."""

  def restore(self, saved: dict[str, Any], holders: dict[int, int]):
    """Goes on where `save` was called; `holders` are tickets by version."""


class ServerCore(Core):
  """A `Core` with whole arrays."""

  def __init__(
    self,
    compiled: compiled_lib.Compiled,
    hparams,
    params,
    model_state,
    accumulates: bool,
    device=None,
    layer_metrics: bool = False,
  ):
    """Begins with version 0.

    Args:
      compiled: the functions of `update`, compiled for the rule.
      hparams: given to them.
      params: initial parameters; copied.
      model_state: initial model statistics; copied.
      accumulates: whether a round may hold several gradients.
      device: where the arrays are; by default JAX's default device.
      layer_metrics: whether gap and penalty are measured by layer too.
    """
    self._compiled = compiled
    self._hparams = hparams
    self._accumulates = accumulates
    self._layer_metrics = layer_metrics
    self._looks_ahead = compiled.rule(hparams).looks_ahead
    self._state = compiled.init(hparams, params, model_state)
    if device is not None:
      self._state = jax.device_put(self._state, device)
    self._lent = False  # whether anybody else may hold the optimiser state
    self._published = self._state  # as it was when the version was made
    self._store = snapshots.SnapshotStore()
    self.version = 0

  @property
  def state(self) -> update.ServerState:
    self._lent = True
    return self._state

  @property
  def params(self):
    return self._state.params

  @property
  def model_state(self):
    return self._state.model_state

  def save(self):
    return {
      'state': self.state,
      'published': self._published,
      'snapshots': self._store.save(),
    }

  def like(self, versions: Iterable[int]):
    live = dict.fromkeys(versions, self.snapshot())
    return {**self.save(), 'snapshots': live}

  def restore(self, saved, holders: dict[int, int]):
    self._state, self._published = saved['state'], saved['published']
    self._lent = True
    self.version = int(self._state.version)
    self._store.restore(saved['snapshots'], holders)

  def snapshot(self) -> update.Snapshot:
    if not self._looks_ahead:  # the server's own arrays: nothing is donated
      return update.Snapshot(
        self._published.params, self._published.model_state
      )
    return self._compiled.snapshot(self._hparams, self._published)

  def hold(self, version: int):
    self._store.hold(version, self.snapshot)

  def read(self, version: int) -> update.Snapshot:
    return self._store.read(version)

  def to_send(self, version: int) -> update.Snapshot:
    return self.read(version)

  def release(self, version: int):
    self._store.release(version)

  def holders(self) -> dict[int, int]:
    return self._store.holders()

  def leave(self, worker_id: int):
    if optimizer.per_worker(self._state.opt_state):
      self._state = self._state._replace(
        opt_state=compiled_lib.leave(self._state.opt_state, np.int32(worker_id))
      )

  def enter(self, entry: Entry, action: Action, totals=None):
    """See `Core`.

    Args:
      entry: the gradient.
      action: APPLY or ACCUMULATE.
      totals: sums over all shards, where this is one; see `compiled.Compiled`.
    """
    arrival, layers = self.arrival(entry), None
    if self._layer_metrics:
      layers = self._compiled.layer_metrics(self._hparams, self._state, arrival)
    if self._accumulates:
      enter, state = self._compiled.accumulate, self._state
    else:
      enter, state = self._compiled.apply, self._given_up()
    self._state, metrics = enter(self._hparams, state, arrival, totals=totals)
    self._lent = False
    if action == Action.APPLY:
      self.close() if self._accumulates else self._publish()
    return metrics, layers

  def close(self, totals=None):
    """See `Core`; for `totals` see `enter`."""
    self._state = self._compiled.close(
      self._hparams, self._state, totals=totals
    )
    self._publish()

  def enter_part(self, arrival: update.Arrival, totals) -> jax.Array:
    """A shard's part of the sum after `totals` that a gradient needs."""
    return self._compiled.enter_part(
      self._hparams, self._state, arrival, totals=totals
    )

  def close_part(self, totals) -> jax.Array:
    """A shard's part of the sum after `totals` that closing needs."""
    return self._compiled.close_part(self._hparams, self._state, totals=totals)

  def sums(self) -> tuple[int, int]:
    """Sums over all shards per gradient that enters, and per round's end."""
    return self._compiled.sums(self._hparams, self._state)

  def arrival(self, entry: Entry) -> update.Arrival:
    """A gradient as `update` sees it."""
    ticket, sent = entry.ticket, entry.sent
    return update.Arrival(
      grads=entry.grads,
      model_state=entry.model_state,
      sent=self.read(ticket.version) if sent is None else sent,
      staleness=np.int32(entry.staleness),
      worker_id=np.int32(ticket.worker_id),
      weight=np.float32(entry.weight),
      num_batches=np.int32(ticket.num_batches),
    )

  def any_arrival(self, grads, model_state, sent=None) -> update.Arrival:
    """An arrival to compile with; see `warm_up`."""
    sent = self.snapshot() if sent is None else sent
    return self.arrival(Entry(_ANY_TICKET, grads, model_state, 1.0, 0, sent))

  def warm_up(
    self, grads, model_state, sent=None, totals=None, close_totals=None
  ):
    """See `Core`; for the totals see `enter` and `close`."""
    arrival = self.any_arrival(grads, model_state, sent)
    if self._layer_metrics:
      self._compiled.layer_metrics(self._hparams, self._state, arrival)
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

  def _given_up(self) -> update.ServerState:
    """The state, whose optimiser state is about to be overwritten."""
    if not self._lent:
      return self._state
    copied = jax.tree.map(jnp.copy, self._state.opt_state)
    return self._state._replace(opt_state=copied)

  def _publish(self):
    self._published = self._state
    self.version += 1
