"""Follows a run: epochs, speed, losses that are not finite."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import tasks
from experiments.running import utilisation as utilisation_lib
from ga_jax.job import metrics
from ga_jax.live import result

RECENT = ('loss', 'staleness', 'gap')
_EVERY_SECONDS = 0.1  # nobody reads faster


class Progress(NamedTuple):
  """Where a run stands.

  Attributes:
    epoch: of all workers together.
    batches: that were applied.
    total_batches: of the whole run.
    batches_per_second: None before the second block.
    row: the metrics since the last one, where one ends here.
    recent: means of `RECENT` over a block that the device is done with, a tenth
      of a second old or less; None where there is none yet.
    utilisation: the part of their time so far that workers computed, as old;
      simulated, that they had a ticket in hand. None where it is not known.
    diverged: whether a loss was not finite; the run ends.
    arrivals: where a row ends here the metrics of its arrivals, host arrays by
      name, see `ga_jax.Result`.
    missing: the workers of a run on Ray that are not here.
    server: what the server of a run on Ray computes with, else ''.
  """

  epoch: float
  batches: int
  total_batches: int
  batches_per_second: float | None
  row: dict[str, Any] | None
  recent: dict[str, float] | None = None
  utilisation: float | None = None
  diverged: bool = False
  arrivals: dict[str, np.ndarray] | None = None
  missing: tuple[int, ...] = ()
  server: str = ''


class Watch:
  """Follows a run: epochs, speed, losses that are not finite.

  Attributes:
    telemetry: of the workers of a live run, see `LiveRun.telemetry`.
    missing: who is not there, see `LiveRun.missing`; None where all are.
    server: see `Progress`.
  """

  telemetry: Callable[[], dict[int, result.Telemetry]] | None = None
  missing: Callable[[], tuple[int, ...]] | None = None
  server = ''

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
    self._last = None  # block: its losses are read one block later
    self._simulated = utilisation_lib.Utilisation()
    self._seen = None, None  # `recent` and `utilisation` of a `Progress`
    self._seen_at = -math.inf  # seconds
    self._timed = 0  # batches of which the time was taken
    self._spent = 0.0  # seconds for them
    self._began = None  # (batches, seconds) where the timer last started

  def __call__(self, batches, state, block) -> bool:
    before, self._last = self._last, block
    bad = before is not None and not np.isfinite(before['loss']).all()
    self._blocks.append(block)
    if self._rows_done is None:  # a run may go on where another ended
      begun = batches - int(np.asarray(block['num_batches']).sum())
      self._rows_done = begun // self._every
    next_row = (self._rows_done + 1) * self._every
    ends = batches >= min(next_row, self._total)
    if ends:
      jax.block_until_ready(state.params)
    now, live = time.perf_counter(), self.telemetry is not None
    # A live run goes on while it is evaluated here: its own clock counts.
    at = float(np.asarray(block['time'])[-1]) if live else now
    if self._began:  # from the second block on: the first one compiles
      self._timed += batches - self._began[0]
      self._spent += at - self._began[1]
    row = arrivals = None
    if ends and not bad:
      self._rows_done = batches // self._every
      arrivals, self._blocks = metrics.joined(self._blocks), []
      row = self._row(batches, state, arrivals)
    if self._observe:
      if row or bad or now > self._seen_at + _EVERY_SECONDS:
        self._seen = self._recent(before), self._utilisation(batches)
        self._seen_at = now
      epoch, rate = batches / self._per_epoch, self.rate()
      self._observe(
        Progress(
          *(epoch, batches, self._total, rate, row),
          *(*self._seen, bad, arrivals),
          self.missing() if self.missing else (),
          self.server,
        )
      )
    self._began = (batches, at if live else time.perf_counter())
    return bad or self._control.stopping

  def take_events(self, events):
    """Of a simulated run, see `ga_jax.simulate`."""
    self._simulated.take(events)

  def rate(self) -> float | None:
    """Applied batches per second; None before the second block."""
    return self._timed / self._spent if self._spent else None

  def _recent(self, block) -> dict[str, float] | None:
    if block is None:
      return None
    return {name: float(np.asarray(block[name]).mean()) for name in RECENT}

  def _utilisation(self, batches) -> float | None:
    if self.telemetry is None:
      return self._simulated.at(batches)
    workers = self.telemetry().values()
    total = sum(one.utilisation for one in workers)
    return total / len(workers) if workers else None

  def _row(self, batches, state, seen):
    row = {
      'epoch': batches / self._per_epoch,
      'batches': batches,
      'updates': int(state.version),
      'time': float(seen['time'][-1]),
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
