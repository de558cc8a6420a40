"""Batches that threads make before they are asked for.

Threads suffice, up to about ten cores: Pillow decodes and resizes without
Python's lock, which an image holds for 0.13 of its 1.5 ms. Processes would have
to send their pixels over. `experiments.bench.decoding` measures both.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, NamedTuple


class Begun(NamedTuple):
  """A batch that is being made.

  Attributes:
    parts: futures; the batch is whole when all of them are done.
    batch: what they fill.
  """

  parts: Sequence[futures.Future]
  batch: Any

  def result(self):
    """The batch, when it is whole; raises what a part raised."""
    for part in self.parts:
      part.result()
    return self.batch

  def cancel(self):
    """Leaves out what has not begun."""
    for part in self.parts:
      part.cancel()


class Ahead:
  """Makes batches, some of them ahead of time; all of them the same.

  It looks ahead along the order that it was told (`expect`). Where it was told
  none it looks ahead once batches were asked for one after the other for a
  while, for longer each time that this guess was wrong.
  """

  def __init__(self, begin_fn: Callable[[int], Begun], ahead: int):
    """Begins nothing yet.

    Args:
      begin_fn: `begin_fn(batch_id) -> Begun`; returns at once.
      ahead: batches that are held before they are asked for, at least 1.
    """
    self._begin_fn, self._ahead = begin_fn, ahead
    self._lock = threading.Lock()
    self._begun = {}  # batch_id -> Begun, not asked for yet
    self._order, self._places = [], {}
    self._last, self._in_turn, self._patience = None, 0, ahead

  def expect(self, batch_ids: Sequence[int]):
    """Tells in which order batches will be asked for, each of them once."""
    with self._lock:
      self._order = [int(batch_id) for batch_id in batch_ids]
      self._places = {b: place for place, b in enumerate(self._order)}
      self._make(self._order[: self._ahead])

  def __call__(self, batch_id: int):
    """The batch, made now if it was not made ahead."""
    with self._lock:
      begun = self._begun.pop(batch_id, None)
      guessed = begun is not None
      begun = begun or self._begin_fn(batch_id)
      if (coming := self._coming(batch_id, guessed)) is not None:
        self._make(coming)
    return begun.result()

  def _make(self, coming):
    """Begins these batches and drops all others."""
    for other in set(self._begun).difference(coming):
      self._begun.pop(other).cancel()
    for other in coming:
      if other not in self._begun:
        self._begun[other] = self._begin_fn(other)

  def _coming(self, batch_id, guessed) -> Sequence[int] | None:
    """What comes after a batch; None to leave everything as it is."""
    if self._order:
      place = self._places.get(batch_id)
      if place is None:
        return None
      return self._order[place + 1 : place + 1 + self._ahead]
    if self._begun and not guessed:
      self._patience *= 2
    follows = self._last is not None and batch_id == self._last + 1
    self._in_turn = self._in_turn + 1 if follows else 0
    self._last = batch_id
    if self._in_turn < self._patience:
      return ()
    return range(batch_id + 1, batch_id + 1 + self._ahead)


def cores() -> int:
  """Processors that this process may use."""
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # not on every system
    return os.cpu_count() or 1


@functools.cache
def pool() -> futures.ThreadPoolExecutor:
  """The threads that decode, one per core, shared by the process."""
  return futures.ThreadPoolExecutor(cores(), thread_name_prefix='decode')
