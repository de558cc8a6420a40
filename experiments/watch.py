"""Follows a run: epochs, speed, losses that are not finite."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import tasks
from ga_jax.runtimes import job


class Progress(NamedTuple):
  """Where a run stands."""

  epoch: float
  batches: int
  total_batches: int
  batches_per_second: float | None
  row: dict[str, Any] | None  # the metrics since the last one, if it ended


class Watch:
  """Follows a run: epochs, speed, losses that are not finite."""

  def __init__(
    self, the_task, per_epoch, every, total, observe, evaluate_epochs, control
  ):
    self._control = control
    self._task = the_task
    self._per_epoch = per_epoch
    self._every = every  # batches between two rows
    self._total = total
    self._observe = observe
    self._evaluate_epochs = evaluate_epochs
    self._rows_done = None  # not known before the first block
    self._blocks = []  # metrics of the next row's blocks, device arrays
    self._unread = None  # the last block's losses: read one block later
    self._timed = 0  # batches of which the time was taken
    self._spent = 0.0  # seconds for them, evaluations left out
    self._began = None  # (batches, seconds) where the timer last started

  def __call__(self, batches, state, block) -> bool:
    bad = self._unread is not None and not np.isfinite(self._unread).all()
    self._unread = block['loss']
    self._blocks.append(block)
    if self._rows_done is None:  # a run may go on where another ended
      begun = batches - int(np.asarray(block['num_batches']).sum())
      self._rows_done = begun // self._every
    next_row = (self._rows_done + 1) * self._every
    ends = batches >= min(next_row, self._total)
    if ends:
      jax.block_until_ready(state.params)
    now = time.perf_counter()
    if self._began:  # from the second block on: the first one compiles
      self._timed += batches - self._began[0]
      self._spent += now - self._began[1]
    if bad:
      return True
    row = None
    if ends:
      self._rows_done = batches // self._every
      row = self._row(batches, state)
    if self._observe:
      epoch = batches / self._per_epoch
      self._observe(Progress(epoch, batches, self._total, self.rate(), row))
    self._began = (batches, time.perf_counter())
    return self._control.stopping

  def rate(self) -> float | None:
    """Applied batches per second; None before the second block."""
    return self._timed / self._spent if self._timed else None

  def _row(self, batches, state):
    seen = job.joined(self._blocks)
    self._blocks = []
    row = {
      'epoch': batches / self._per_epoch,
      'batches': batches,
      'updates': int(state.version),
      'train_loss': float(seen['loss'].mean()),
      'mean_staleness': float(seen['staleness'].mean()),
      'max_staleness': int(seen['staleness'].max()),
      'mean_gap': float(seen['gap'].mean()),
      'mean_penalty': float(seen['mean_penalty'].mean()),
      'max_penalty': float(seen['max_penalty'].max()),
    }
    if self._evaluate_epochs:
      row |= evaluate(self._task, state)
    row['batches_per_second'] = self.rate()
    return row


def evaluate(the_task: tasks.Task, state) -> dict[str, float | None]:
  """The task's metric for the server's parameters, by split; None for no split.

  {'test_error': 0.12, 'validation_error': None}, for example.
  """
  return {
    f'{split}_{the_task.metric.name}': the_task.evaluate(
      state.params, state.model_state, split
    )[0]
    if split in the_task.splits
    else None
    for split in ('test', 'validation')
  }
