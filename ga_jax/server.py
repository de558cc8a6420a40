"""The server: policy, rule and snapshots behind two calls.

It is the host-side loop's counterpart in every runtime and in loops written by
hand: a worker asks for a `ticket`, computes whatever it likes at the parameters
that come with it, and answers with `submit`.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ga_jax import (
  checks,
  exclusive,
  kernel,
  ledger,
  snapshots,
  statistics,
  trace,
)
from ga_jax.policies import base as policies
from ga_jax.policies.base import Action, Policy
from ga_jax.rules import base


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
  metrics: kernel.Metrics | None


class ServerCore:
  """Parameters and the snapshots that tickets hold, without any policy."""

  def __init__(
    self,
    compiled: kernel.Compiled,
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
  def state(self) -> kernel.ServerState:
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

  def hold(self, version: int) -> kernel.Snapshot:
    """What a worker that starts at the current version is sent."""
    return self.store.hold(version, self.snapshot)

  def snapshot(self) -> kernel.Snapshot:
    """What is sent at the version that was published last."""
    if not self._looks_ahead:  # the server's own arrays: nothing is donated
      return kernel.Snapshot(
        self._published.params, self._published.model_state
      )
    return self._compiled.snapshot(self._hparams, self._published)

  def leave(self, worker_id: int):
    """A worker has left; what is sent changes with the next version."""
    if base.per_worker(self._state.opt_state):
      self._state = self._state._replace(
        opt_state=kernel.leave(self._state.opt_state, np.int32(worker_id))
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
  ) -> kernel.Metrics:
    """A gradient enters the open round, which is closed on APPLY.

    Args:
      ticket: that it answers; its version is held.
      grads: pytree like the parameters.
      model_state: the statistics as the worker's step returned them.
      action: APPLY or ACCUMULATE.
      weight: in its round.
      staleness: in server updates.
      sent: what its worker was sent, where it is not that of its version.
      totals: sums over all shards, where this is one; see `kernel.Compiled`.

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
  ) -> kernel.LayerMetrics:
    """What `enter` with these arguments will do to each layer."""
    arrival = self.arrival(ticket, grads, model_state, weight, staleness, sent)
    return self._compiled.layer_metrics(self._hparams, self._state, arrival)

  def _given_up(self) -> kernel.ServerState:
    """The state, whose optimiser state is about to be overwritten."""
    if not self._lent:
      return self._state
    copied = jax.tree.map(jnp.copy, self._state.opt_state)
    return self._state._replace(opt_state=copied)

  def arrival(
    self, ticket, grads, model_state, weight, staleness, sent=None
  ) -> kernel.Arrival:
    """A gradient as the kernel sees it."""
    return kernel.Arrival(
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


def fixed(rule: optax.GradientTransformation) -> Callable[[Any], Any]:
  """A rule as a function of hyper-parameters that ignores them."""
  return _Fixed(base.lift(rule))


class _Fixed(NamedTuple):
  rule: base.AsyncOptimizer

  def __call__(self, hparams):
    del hparams
    return self.rule


class Server(exclusive.Exclusive):
  """An asynchronous parameter server in this process.

  Workers may be threads: each method is one step of ledger, parameters and
  record together.

  Attributes:
    params: the parameters now.
    model_state: the model statistics now.
    version: updates made.
    finished: whether every batch is in a closed round.
  """

  def __init__(
    self,
    params,
    rule: optax.GradientTransformation,
    policy: Policy,
    *,
    num_workers: int,
    num_batches: int,
    model_state=(),
    stats_momentum: float | None = None,
    fold_fn: statistics.FoldFn | None = None,
    batches_per_ticket: int = 1,
    allow_non_finite: bool = False,
  ):
    """Starts a server and lets the workers 0 ... num_workers − 1 in.

    Args:
      params: pytree of arrays; copied.
      rule: a rule, or a plain optax transformation.
      policy: whom the server waits for.
      num_workers: how many workers there are.
      num_batches: batches to apply; they have the ids 0 ... num_batches − 1.
      model_state: pytree of running statistics, () without; copied.
      stats_momentum: momentum of the moving averages in it (0.99 in Flax's
        BatchNorm by default); required where there are any.
      fold_fn: for statistics of another kind, see `simulate`.
      batches_per_ticket: consecutive batches per ticket.
      allow_non_finite: whether gradients that are not finite are applied; else
        `submit` waits for a gradient to see whether it is, and refuses it.

    Raises:
      ValueError: the rule and the policy do not go together.
      TypeError: one of them is something else.
    """
    num_workers = checks.integer('num_workers', num_workers, 1)
    policies.check(policy)
    self._rule = base.lift(rule)
    kernel.check_rule(self._rule, policy.accumulates, num_workers, params)
    compiled = kernel.compiled(
      fixed(self._rule),
      statistics.fold_of(model_state, stats_momentum, fold_fn),
      policy.accumulates,
    )
    self._core = ServerCore(
      compiled, (), params, model_state, policy.accumulates
    )
    self._ledger = ledger.Ledger(
      policy, num_batches=num_batches, batches_per_ticket=batches_per_ticket
    )
    self._num_workers = num_workers
    self._allow_non_finite = allow_non_finite
    self._latest = 0.0  # time
    super().__init__()
    for worker_id in range(num_workers):
      self._ledger.join(worker_id)

  @property
  @exclusive.locked
  def state(self) -> kernel.ServerState:
    return self._core.state

  @property
  @exclusive.locked
  def params(self):
    return self._core.params

  @property
  @exclusive.locked
  def model_state(self):
    return self._core.model_state

  @property
  @exclusive.locked
  def version(self) -> int:
    return self._ledger.version

  @property
  @exclusive.locked
  def finished(self) -> bool:
    return self._ledger.finished

  @exclusive.locked
  def ticket(self, worker_id: int, time: float = 0.0) -> Work | None:
    """Asks for work.

    Args:
      worker_id: who asks.
      time: now, for the trace. One before an earlier call's, which threads may
        bring, is recorded as that one's.

    Returns:
      `Work`, or None where the worker must wait for others or no batch is left
      (`finished` says which).

    Raises:
      ValueError: no such worker.
    """
    if worker_id not in self._ledger.workers:
      raise ValueError(
        f'worker {worker_id} is not here, only {sorted(self._ledger.workers)}'
      )
    issued = self._ledger.ticket(worker_id, self._at(time))
    if issued is None:
      return None
    sent = self._core.hold(issued.version)
    return Work(issued, sent.params, sent.model_state)

  def submit(
    self,
    ticket: ledger.Ticket,
    grads,
    *,
    model_state=(),
    loss: float | None = None,
    time: float = 0.0,
  ) -> Outcome:
    """Answers a ticket.

    Args:
      ticket: from `ticket`; each is answered once, anything else is refused.
      grads: pytree like the parameters, in gradient sign; complex leaves are
        the conjugate of what `jax.grad` returns, as for optax. NumPy arrays are
        copied.
      model_state: the statistics as the worker's step returned them.
      loss: mean loss of the batches, where the policy needs it.
      time: now, for the trace; see `ticket`.

    Returns:
      An `Outcome`. What is not finite is refused for the cause 'non-finite':
      its ticket has ended and its batches are issued again.

    Raises:
      ledger.NotFiniteError: the same batches gave no finite gradient again and
        again.
      ValueError: `grads` or `model_state` differ from the server's own in
        structure, shape or dtype; nothing is changed and the ticket still
        stands.
    """
    _check_like('grads', grads, self.params)
    _check_like('model_state', model_state, self.model_state)
    grads, model_state = kernel.owned((grads, model_state))
    # Before the lock: it waits for the gradient.
    usable = self._allow_non_finite or (
      bool(kernel.finite((grads, model_state)))
      and (loss is None or math.isfinite(loss))
    )
    if usable:
      return self._enter(ticket, grads, model_state, loss, time)
    return self._refuse(ticket, time)

  @exclusive.locked
  def _enter(self, ticket, grads, model_state, loss, time) -> Outcome:
    time = self._at(time)
    receipt = self._ledger.arrive(ticket, time, loss)
    metrics = None
    if receipt.action in (Action.APPLY, Action.ACCUMULATE):
      metrics = self._core.enter(
        ticket,
        grads,
        model_state,
        action=receipt.action,
        weight=receipt.weight,
        staleness=receipt.staleness,
      )
    if receipt.action != Action.REFUSE:
      self._core.release(ticket.version)
    for revoked in receipt.revoked:
      self._core.release(revoked.version)
    if self._ledger.done and self._ledger.finish(time):
      self._core.close()
    return Outcome(receipt, metrics)

  @exclusive.locked
  def _refuse(self, ticket, time) -> Outcome:
    """What an answer comes to that is not finite."""
    time = self._at(time)
    if self._ledger.outstanding.get(ticket.ticket_id) != ticket:
      return Outcome(self._ledger.arrive(ticket, time), None)
    staleness = self._ledger.version - ticket.version
    _, *revoked = self._end(
      lambda: self._ledger.expire(ticket, time, 'non-finite')
    )
    self._ledger.count_not_finite(ticket)  # when all is done that it meant
    receipt = ledger.Receipt(
      Action.REFUSE, 0.0, staleness, tuple(revoked), 'non-finite'
    )
    return Outcome(receipt, None)

  def _at(self, time: float) -> float:
    """The time of a call, never before an earlier one's."""
    self._latest = max(self._latest, checks.number('time', time))
    return self._latest

  @exclusive.locked
  def add_worker(self, worker_id: int, time: float = 0.0):
    """A worker comes in; it may then ask for tickets.

    Raises:
      ValueError: it is here already, or the rule has no buffer for it.
    """
    worker_id = ledger.check_worker_id(worker_id)
    kernel.check_rule(self._rule, False, worker_id + 1, self.params)
    self._ledger.join(worker_id, self._at(time))
    self._num_workers = max(self._num_workers, worker_id + 1)

  @exclusive.locked
  def remove_worker(self, worker_id: int, time: float = 0.0):
    """A worker goes; its batches are issued again, its answers are refused."""
    time = self._at(time)
    self._end(lambda: self._ledger.leave(worker_id, time), worker_id)

  def _end(self, end_fn, left: int | None = None):
    """Has the ledger end tickets without an answer, and follows it.

    Args:
      end_fn: `end_fn() -> tickets that have ended`.
      left: the worker that has left, if one has.

    Returns:
      Those tickets.
    """
    before = self._ledger.version
    ended = end_fn()
    for ticket in ended:
      self._core.release(ticket.version)
    if left is not None:
      self._core.leave(left)
    if self._ledger.version > before:  # the others' round is complete now
      self._core.close()
    return ended

  @exclusive.locked
  def trace(self) -> trace.Trace:
    """The record so far."""
    return self._ledger.trace(self._num_workers)


def _spec(tree):
  return {
    jax.tree_util.keystr(path): (jnp.shape(leaf), jnp.result_type(leaf))
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _check_like(name, tree, like):
  expected, got = _spec(like), _spec(tree)
  for path in {**expected, **got}:
    if got.get(path) != expected.get(path):
      raise ValueError(
        f'{name} differ from the server at leaf {path or "(root)"}: got '
        f'{got.get(path, "nothing")}, expected {expected.get(path, "nothing")}'
      )
  if jax.tree.structure(tree) != jax.tree.structure(like):
    raise ValueError(
      f'{name} differ from the server in structure: got '
      f'{jax.tree.structure(tree)}, expected {jax.tree.structure(like)}'
    )
