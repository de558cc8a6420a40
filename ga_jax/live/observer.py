"""Watches a live run from its own thread, so that the server never waits."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ga_jax.guards import forms
from ga_jax.job import metrics as metrics_lib
from ga_jax.workers import inheritance

_PIECE = 64  # arrivals that are given to the thread together, at most

FORM = forms.fields(
  {
    'batches': forms.integer(0),
    'shown': metrics_lib.check_columns,
    'open': metrics_lib.check_columns,
  }
)  # of what `Observer.save` returns


class Observer:
  """Collects metrics and shows them, in a thread that may wait for devices.

  Attributes:
    observed: batches that it has shown; all that it can after `save`.
  """

  def __init__(
    self, observe, block: int, num_batches: int, stop: Callable[[], None]
  ):
    """Starts the thread.

    Args:
      observe: `observe(batches, state, metrics) -> stop`, or None.
      block: arrivals between two calls of it.
      num_batches: of the run; the last block waits for `close`.
      stop: called where it says so, or fails.
    """
    self.observed = 0
    self._observe = observe
    self._block = block
    self._num_batches = num_batches
    self._stop = stop
    self._batches = 0
    self._waiting = 0  # arrivals of the block that is not full yet
    self._open = []  # metrics of the newest of them
    self._log = metrics_lib.Log()  # of all others; the thread's own
    self._shown = 0  # arrivals in it whose block was full
    self._queue = queue.SimpleQueue()
    self._error = None
    self._thread = threading.Thread(
      target=inheritance.inheriting(self._run), name='observer', daemon=True
    )
    self._thread.start()

  def take(self, metrics, state_fn: Callable[[], Any]):
    """One more gradient entered a round; `state_fn` is asked at block ends."""
    self._open.append(metrics)
    self._waiting += 1
    self._batches += metrics['num_batches']
    # The last arrival's round may still be closed after it.
    if self._waiting >= self._block and self._batches < self._num_batches:
      # Who holds the state has the next update copy it.
      self._show(state_fn() if self._observe else None)
    elif len(self._open) >= _PIECE:
      self._hand_over()

  def save(self) -> dict[str, Any]:
    """What was seen so far, on the host; waits for it.

    Returns:
      How many batches, and metrics by name: of the blocks that were shown, and
      of the one that is open.
    """
    self._hand_over()
    idle = threading.Event()
    self._queue.put(idle)
    idle.wait()
    shown, log = self._shown, self._log
    return {
      'batches': self._batches,
      'shown': log.part(0, shown),
      'open': log.part(shown),
    }

  def restore(self, saved: dict[str, Any]):
    """Goes on where `save` was called.

    Args:
      saved: what it returned, of the form `FORM`.
    """
    self._log.extend(saved['shown'])
    self._shown = len(self._log)
    self._log.extend(saved['open'])
    self._batches = saved['batches']
    self._waiting = len(self._log) - self._shown

  def close(self, state):
    """Shows the last block, however short; `state` is that after it."""
    if self._waiting:
      self._show(state)

  def end(self, state) -> dict[str, np.ndarray]:
    """Waits for everything; the metrics of all arrivals."""
    self.close(state)
    self._queue.put(None)
    self._thread.join()
    if self._error is not None:
      raise self._error
    return self._log.part()

  def _show(self, state):
    self._hand_over((self._batches, state))
    self._waiting = 0

  def _hand_over(self, end=None):
    """Gives the thread what is new; and what a block ends with, if one does."""
    self._queue.put((self._open, end))
    self._open = []

  def _run(self):
    while (item := self._queue.get()) is not None:
      if isinstance(item, threading.Event):
        item.set()
        continue
      rows, end = item
      self._log.extend(rows)
      if end is None:
        continue
      start, self._shown = self._shown, len(self._log)
      if self._observe is None or self._error is not None:
        continue
      try:
        if self._observe(*end, self._log.part(start)):
          self._stop()
        else:
          self.observed = end[0]
      except Exception as error:  # shown where the run ends
        self._error = error
        self._stop()
