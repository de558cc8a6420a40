"""What happened in a run: from its trace, or by playing its schedule again.

Policy and clock of a simulated run are pure functions, so that its schedule can
be played without computing a gradient, unless the policy asks for losses. It is
only taken where it says what the run's summary says.
"""

import math
from typing import NamedTuple

import numpy as np

import ga_jax
from experiments import tasks
from experiments.catalogue import assembly
from experiments.records import finished as runs_lib
from experiments.records import record
from experiments.reporting import lines
from experiments.running import setup as run_lib
from experiments.settings import table as settings_lib
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.simulation import virtual_cluster

_MOST_PLAYED = 10**6  # workers, and batches


class History(NamedTuple):
  """What happened in a run.

  Attributes:
    trace: all events.
    executed: how many of its applied arrivals were computed.
    gaps: of those, in order; None where they were not recorded.
    recorded: False where it was played again.
  """

  trace: ga_jax.Trace
  executed: int
  gaps: np.ndarray | None = None
  recorded: bool = True

  def computed(self) -> np.ndarray:
    """The events up to the last arrival that was computed."""
    events = self.trace.events
    entered = np.isin(events['action'], (Action.APPLY, Action.ACCUMULATE))
    at = np.flatnonzero(entered & (events['event'] == Kind.ARRIVE))
    if self.executed == len(at):
      return events
    return events[: at[self.executed - 1] + 1] if self.executed else events[:0]

  def staleness(self) -> np.ndarray:
    """Of every arrival that was computed."""
    return self.trace.applied()['staleness'][: self.executed]


class LineHistory(NamedTuple):
  """What is told of a line: its cell with the most workers.

  Attributes:
    cell: that one.
    one: the run of it, None where there is no history.
    history: of the run, or None.
    why: there is none.
  """

  cell: lines.Cell
  one: runs_lib.SavedRun | None
  history: History | None
  why: str = ''


class UnknownHistoryError(ValueError):
  """What happened cannot be told; the message says why."""


def told(comparison: lines.Comparison, most: int) -> dict[str, LineHistory]:
  """The histories of the first `most` lines, by label."""
  cells = {}
  for cell in comparison.cells:  # by workers: the last one has most
    cells[cell.line] = cell
  return {line: _told(cells[line]) for line in list(cells)[:most]}


def _told(cell: lines.Cell) -> LineHistory:
  """The first run of a cell that can be told of."""
  reasons = []
  for one in sorted(cell.runs, key=lambda one: one.trace is None):
    try:
      return LineHistory(cell, one, history(one))
    except UnknownHistoryError as error:
      reasons.append(str(error))
  return LineHistory(cell, None, None, reasons[0])


def history(one: runs_lib.SavedRun) -> History:
  """What happened in a run.

  Raises:
    UnknownHistoryError: it was not recorded and cannot be played again.
  """
  if one.trace is None:
    return _played(one)
  arrivals = one.arrivals or {}
  applied = one.trace.applied()
  if 'loss' in arrivals:
    executed = len(arrivals['loss'])
  elif one.summary:
    executed = _executed(one.trace, one.summary['batches'])
  else:
    executed = len(applied)
  return History(one.trace, min(executed, len(applied)), arrivals.get('gap'))


def per_epoch(one: runs_lib.SavedRun) -> int:
  """Batches of an epoch, as a run's summary says.

  Raises:
    UnknownHistoryError: it does not.
  """
  if not {'batches', 'epochs'} <= set(one.summary):
    raise UnknownHistoryError(
      'its summary does not say how many batches an epoch has'
    )
  return record.batches_per_epoch(one.summary)


def assembled(one: runs_lib.SavedRun) -> assembly.Assembled:
  """The parts of a run."""
  epoch = per_epoch(one)
  return run_lib.assembled(one.settings, _total(one), epoch)


def _total(one) -> int:
  return max(1, round(one.settings.epochs * per_epoch(one)))


def _executed(trace, batches: int) -> int:
  """How many arrivals held so many batches."""
  done = trace.applied()['num_batches'].cumsum()
  return int(done.searchsorted(batches)) + 1


def _played(one) -> History:
  s = one.settings
  if s.runtime != 'simulate':
    raise UnknownHistoryError('a run on real devices whose trace is not there')
  if not one.known or one.summary is None:
    raise UnknownHistoryError(
      'its settings were not recorded' if one.summary else 'unfinished'
    )
  if max(s.workers, _total(one)) > _MOST_PLAYED:
    raise UnknownHistoryError('too long to be played again')
  made = assembled(one)
  if made.policy.needs_loss:
    raise UnknownHistoryError(
      f'the policy {s.parts().policy} decides by losses, which only the run had'
    )
  try:
    messages = _messages(s, made)
    clock = run_lib.clock_of(s, messages)
    program = made.program(assembly.no_loss)
    trace = virtual_cluster.schedule(
      made.policy,
      clock,
      num_workers=s.workers,
      num_batches=_total(one),
      batches_per_ticket=program.num_batches,
      overlaps=program.overlaps,
    )
  except (settings_lib.SettingError, OSError, ValueError) as error:
    raise UnknownHistoryError(str(error)) from error
  found = History(trace, _executed(trace, one.summary['batches']), None, False)
  _check(found, one.summary)
  return found


def _check(found: History, summary):
  """Raises `UnknownHistoryError` unless a schedule is the one that was run."""
  staleness = found.staleness()
  ends = found.trace.applied()['time'][: found.executed]
  pairs = [
    (float(staleness.mean()), summary.get('mean_staleness')),
    (int(staleness.max()), summary.get('max_staleness')),
    (float(ends[-1]), summary.get('simulated_time')),
  ]
  for ours, theirs in pairs:
    if theirs is None or not math.isclose(ours, theirs, rel_tol=1e-6):
      raise UnknownHistoryError(
        'played again, its schedule is not the one that the summary is of'
      )


def _messages(s, made) -> run_lib.MessageBytes:
  """The sizes of messages; nobody asks where they take no time."""
  if not s.latency and math.isinf(s.bandwidth):
    return run_lib.MessageBytes(0, 0)
  return run_lib.message_bytes(tasks.task_of(s), made, *run_lib.initial(s))
