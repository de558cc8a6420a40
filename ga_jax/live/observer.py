"""Watches a live run from its own thread, so that the server never waits."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ga_jax.job import metrics as metrics_lib
from ga_jax.workers import inheritance


class Observer:
  """Collects metrics and shows them, in a thread that may wait for devices."""

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
    self._observe = observe
    self._block = block
    self._num_batches = num_batches
    self._stop = stop
    self._open = []  # metrics of the block that is not full yet
    self._batches = 0
    self._done = []  # blocks on the host
    self._queue = queue.SimpleQueue()
    self._error = None
    self._thread = threading.Thread(
      target=inheritance.inheriting(self._run), name='observer', daemon=True
    )
    self._thread.start()

  def take(self, metrics, state_fn: Callable[[], Any]):
    """One more gradient entered a round; `state_fn` is asked at block ends."""
    self._open.append(metrics)
    self._batches += metrics['num_batches']
    # The last arrival's round may still be closed after it.
    if len(self._open) >= self._block and self._batches < self._num_batches:
      self._hand_over(state_fn())

  def save(self):
    """What was seen so far, on the host; waits for it."""
    seen = threading.Event()
    self._queue.put(seen)
    seen.wait()
    log = [{k: np.asarray(v) for k, v in row.items()} for row in self._open]
    return self._batches, list(self._done), log

  def restore(self, batches, done, log):
    """Goes on where `save` was called."""
    self._batches, self._done, self._open = batches, list(done), list(log)

  def close(self, state):
    """Shows the last block, however short; `state` is that after it."""
    if self._open:
      self._hand_over(state)

  def end(self, state) -> dict[str, np.ndarray]:
    """Waits for everything; the metrics of all arrivals."""
    self.close(state)
    self._queue.put(None)
    self._thread.join()
    if self._error is not None:
      raise self._error
    return metrics_lib.joined(self._done)

  def _hand_over(self, state):
    self._queue.put((self._batches, state, self._open))
    self._open = []

  def _run(self):
    while (item := self._queue.get()) is not None:
      if isinstance(item, threading.Event):
        item.set()
        continue
      batches, state, log = item
      block = metrics_lib.stacked(log)
      self._done.append(block)
      if self._observe is None or self._error is not None:
        continue
      try:
        if self._observe(batches, state, block):
          self._stop()
      except Exception as error:  # shown where the run ends
        self._error = error
        self._stop()
