"""The server: policy, rule and snapshots behind two calls.

It is the host-side loop's counterpart in every runtime and in loops written by
hand: a worker asks for a `ticket`, computes whatever it likes at the parameters
that come with it, and answers with `submit`.
"""

import math
from typing import Any, NamedTuple

import optax

from ga_jax.guards import checks, exclusive
from ga_jax.policies.parts import base as policies
from ga_jax.policies.parts.base import Action, Policy
from ga_jax.record import trace as trace_lib
from ga_jax.rules.parts import optimizer
from ga_jax.server import alike, core, ledger, statistics, update
from ga_jax.server import compiled as compiled_lib


class Assignment(NamedTuple):
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
      fold_fn: for statistics of another kind, see `Job`.
      batches_per_ticket: consecutive batches per ticket.
      allow_non_finite: whether gradients that are not finite are applied; else
        `submit` waits for a gradient to see whether it is, and refuses it.

    Raises:
      ValueError: the rule and the policy do not go together, or a parameter is
        not finite.
      TypeError: one of them is something else, or a parameter is no
        floating-point array.
      TooLargeError: there is no memory for so many workers.
    """
    num_workers = checks.integer('num_workers', num_workers, 1)
    policies.check(policy)
    update.check_params(params)
    ledger.check_record(num_workers)
    self._rule = optimizer.lift(rule)
    update.check_rule(self._rule, policy.accumulates, num_workers, params)
    compiled = compiled_lib.compiled(
      compiled_lib.fixed(self._rule),
      statistics.fold_of(model_state, stats_momentum, fold_fn),
      policy.accumulates,
    )
    self._core = core.ServerCore(
      compiled, None, params, model_state, policy.accumulates
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
  def state(self) -> update.ServerState:
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
  def ticket(self, worker_id: int, time: float = 0.0) -> Assignment | None:
    """Asks for work.

    Args:
      worker_id: who asks.
      time: now, for the trace. One before an earlier call's, which threads may
        bring, is recorded as that one's.

    Returns:
      An `Assignment`, or None where the worker must wait for others or no batch
      is left (`finished` says which).

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
    self._core.hold(issued.version)
    sent = self._core.read(issued.version)
    return Assignment(issued, sent.params, sent.model_state)

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
    alike.check('submit was given', 'grads', grads, self.params)
    alike.check(
      'submit was given', 'model_state', model_state, self.model_state
    )
    grads, model_state = update.owned((grads, model_state))
    # Before the lock: it waits for the gradient.
    usable = self._allow_non_finite or (
      bool(update.finite((grads, model_state)))
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
      weight, staleness = receipt.weight, receipt.staleness
      entry = core.Entry(ticket, grads, model_state, weight, staleness)
      metrics, _ = self._core.enter(entry, receipt.action)
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
    update.check_rule(self._rule, False, worker_id + 1, self.params)
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
  def trace(self) -> trace_lib.Trace:
    """The record so far."""
    return self._ledger.trace(self._num_workers)
