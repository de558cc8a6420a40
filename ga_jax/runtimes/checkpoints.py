"""When a run is saved, and what it goes on with."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

from ga_jax import checkpoint


class Checkpoints:
  """A store, and how often a run is written to it."""

  def __init__(
    self,
    store: checkpoint.CheckpointStore,
    every_updates: int | None = None,
    every_seconds: float | None = None,
    clock_fn: Callable[[], float] = time.monotonic,
  ):
    """Says when.

    Args:
      store: where to.
      every_updates: server updates between two checkpoints, at least 1.
      every_seconds: seconds between two checkpoints, positive. With neither,
        only what a run ends with is saved.
      clock_fn: seconds.
    """
    if every_updates is not None and every_updates < 1:
      raise ValueError(f'every_updates must be at least 1, got {every_updates}')
    if every_seconds is not None and not every_seconds > 0:
      raise ValueError(f'every_seconds must be positive, got {every_seconds}')
    self._store = store
    self._every_updates = every_updates
    self._every_seconds = every_seconds
    self._clock_fn = clock_fn
    self._updates = 0  # where it was saved last
    self._time = clock_fn()

  def owned(self):
    """Keeps others out; see `checkpoint.CheckpointStore.owned`."""
    return self._store.owned()

  def due(self, updates: int) -> bool:
    """Whether a run that made so many updates is to be saved now."""
    every, seconds = self._every_updates, self._every_seconds
    if every is not None and updates // every > self._updates // every:
      return True
    return seconds is not None and self._clock_fn() - self._time >= seconds

  def save(self, updates: int, arrays: Any, host: Any):
    """Saves a run; see `checkpoint.CheckpointStore.save`."""
    self._store.save(updates, arrays, host)
    self.put_off(updates)

  def put_off(self, updates: int):
    """Waits for the next time, as if this one had been saved."""
    self._updates, self._time = updates, self._clock_fn()

  def resume(self, run: dict[str, Any] | None = None):
    """What there is to go on with, after a check that it is of this run.

    Args:
      run: what a resumed run must have in common, by name; compared with
        `host['run']`.

    Returns:
      A `checkpoint.Checkpoint`; None where nothing was saved yet.

    Raises:
      ValueError: the checkpoint is of another run; names what differs.
    """
    newest = self._store.newest()
    if newest is None:
      return None
    for name, value in (run or {}).items():
      if newest.host.get('run', {}).get(name) != value:
        raise ValueError(
          f'{newest.path} is of a run with another {name}: resume with the '
          'same arguments, or begin in an empty folder'
        )
    self._updates = newest.step
    return newest


def digest(trace) -> str:
  """The SHA-256 of a trace's events, in hexadecimal."""
  return hashlib.sha256(trace.events.tobytes()).hexdigest()
