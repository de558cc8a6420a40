"""Who is there in a live run, and how many orders each has in hand."""

import collections
from collections.abc import Callable
from typing import Any, Protocol

from ga_jax.workers import worker


class WorkerHandle(Protocol):
  """A worker, as the server sees it."""

  def give(self, order: worker.Order):
    """Tells it what to compute next."""

  def dismiss(self):
    """Ends it after the order in hand."""


class WorkerPool(Protocol):
  """Where workers come from."""

  def warm_up(self, order: worker.Order):
    """Compiles what workers compute, where that happens in this process."""

  def hire(
    self, worker_id: int, deliver: Callable[[Any], None]
  ) -> WorkerHandle:
    """A worker, which delivers `Here` when it is able to take orders.

    Args:
      worker_id: who it is.
      deliver: takes `worker.Here`, `worker.Answer` and `worker.Died`.
    """

  def fetch(self, worker_id: int, worker_state):
    """The arrays of a program state that was in a worker's answer.

    Returns:
      A pytree of arrays; None where they are lost.
    """

  @property
  def may_return(self) -> bool:
    """Whether workers may come although none is here."""

  def end(self):
    """Ends every worker."""


class Roster:
  """The workers of a live run: hired, then here, then gone.

  It knows nothing of membership, which the ledger records: a worker that was
  lost is a member no more, one that is yet to come back may be one already.

  Attributes:
    last_error: of a worker that died; '' where none did.
  """

  def __init__(
    self, pool: WorkerPool, deliver: Callable[[Any], None], depth: int
  ):
    """Begins with nobody.

    Args:
      pool: where workers come from.
      deliver: takes what they say, see `WorkerPool.hire`.
      depth: orders that a worker may have beside the one it computes.
    """
    self.last_error = ''
    self._pool = pool
    self._deliver = deliver
    self._depth = depth
    self._handles = {}  # worker_id -> WorkerHandle, those that were hired
    self._here = set()  # worker_ids of those that take orders
    self._orders = collections.Counter()  # worker_id -> orders in hand

  def hire(self, worker_id: int):
    """Asks for a worker, if it was not."""
    if worker_id not in self._handles:
      self._handles[worker_id] = self._pool.hire(worker_id, self._deliver)

  def enter(self, worker_id: int) -> bool:
    """A worker is able to take orders.

    Returns:
      Whether that is news: it was hired and was not here.
    """
    if worker_id not in self._handles or worker_id in self._here:
      return False
    self._here.add(worker_id)
    self._orders.pop(worker_id, None)
    return True

  def dismiss(self, worker_id: int) -> bool:
    """Lets a worker go; False where it was not hired."""
    if worker_id not in self._handles:
      return False
    self._handles.pop(worker_id).dismiss()
    return True

  def died(self, message: worker.Died):
    """A worker is lost; one that is not gone for good may enter again."""
    self.last_error = message.error
    if message.gone:
      self._handles.pop(message.worker_id, None)

  def leave(self, worker_id: int):
    """A worker takes no more orders, and has none in hand."""
    self._here.discard(worker_id)
    self._orders.pop(worker_id, None)

  @property
  def deserted(self) -> bool:
    """Whether nobody is here and nobody may come."""
    return not (self._here or self._pool.may_return)

  def is_here(self, worker_id: int) -> bool:
    """Whether a worker takes orders."""
    return worker_id in self._here

  def is_free(self, worker_id: int) -> bool:
    """Whether a worker is here and may be given one more order."""
    return self.is_here(worker_id) and self._orders[worker_id] <= self._depth

  def give(self, order: worker.Order):
    """Gives an order to the worker of its ticket."""
    worker_id = order.ticket.worker_id
    self._orders[worker_id] += 1
    self._handles[worker_id].give(order)

  def answered(self, worker_id: int):
    """A worker has an order less in hand."""
    if self._orders[worker_id]:
      self._orders[worker_id] -= 1
