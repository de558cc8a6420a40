"""Execution times recorded on a real cluster, replayed.

clocks.recorded(times=clocks.recorded_times(trace.events))
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ga_jax.clocks import base
from ga_jax.guards import checks

_ISSUE, _ARRIVE = 0, 1  # policies.Kind, which clocks do not import


def recorded(
  seed: int = 0,
  *,
  times: Mapping[int, Sequence[float]] | Sequence[Sequence[float]],
) -> base.Clock:
  """Every worker's times in the order in which they were recorded.

  A worker whose times run out begins again. One that was not recorded takes the
  times of another: those of number `worker_id` modulo how many there are.

  Args:
    seed: ignored; there so that all clocks are built alike.
    times: by worker, the times of its batches in order, in time units, >= 0.

  Returns:
    A `Clock`; its mean is that of all times.

  Raises:
    ValueError: there are no times, or times of which no clock can be made.
  """
  checks.integer('seed', seed, 0)
  if not isinstance(times, Mapping):
    times = dict(enumerate(times))
  times = {w: np.array(times[w], np.float64) for w in sorted(times)}
  if not times:
    raise ValueError('times must hold at least one worker')
  for worker_id, recording in times.items():
    fine = recording.ndim == 1 and recording.size and recording.mean() > 0
    if not (fine and np.all(np.isfinite(recording) & (recording >= 0))):
      raise ValueError(
        'times must be finite, >= 0 and not all 0, one sequence per worker; '
        f'worker {worker_id} has {recording}'
      )
  workers = list(times)

  def draw(worker_id, chunk):
    if worker_id not in times:
      worker_id = workers[worker_id % len(workers)]
    tasks = np.arange(chunk * base.CHUNK, (chunk + 1) * base.CHUNK)
    return times[worker_id].take(tasks, mode='wrap')

  mean = float(np.concatenate(list(times.values())).mean())
  return base.Clock(draw=draw, mean=mean)


def recorded_times(events: np.ndarray) -> dict[int, np.ndarray]:
  """Reads the times of batches out of a trace.

  A ticket's time is that from its issue to its first answer, messages included,
  whether the answer was used or came too late; tickets that were never answered
  say nothing. It is shared equally among the ticket's batches.

  Args:
    events: a trace's structured array.

  Returns:
    By worker, the times of its batches in order of issue, in the trace's units.

  Raises:
    ValueError: no ticket was answered.
  """
  fields = ['event', 'time', 'worker_id', 'ticket_id', 'num_batches']
  issued, taken = {}, {}
  for kind, time, worker_id, ticket_id, number in events[fields].tolist():
    ticket = worker_id, ticket_id
    if kind == _ISSUE:
      issued[ticket] = time, number
    elif kind == _ARRIVE and ticket in issued:
      taken.setdefault(ticket, time - issued[ticket][0])
  if not taken:
    raise ValueError('events must hold a ticket that was answered')
  times = {}
  for ticket, (_, number) in issued.items():  # in order of issue
    if ticket in taken:
      shares = [taken[ticket] / number] * number
      times.setdefault(ticket[0], []).extend(shares)
  return {worker_id: np.array(times[worker_id]) for worker_id in sorted(times)}
