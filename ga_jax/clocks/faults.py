"""Workers that stall or die at a given time, on top of any clock."""

import math

from ga_jax.clocks import base


def with_fault(
  clock: base.Clock,
  *,
  worker_id: int,
  time: float,
  duration: float = math.inf,
  noticed_after: float = 0.0,
) -> base.Clock:
  """Stops a worker at a time, for a while or for good.

  A stalled worker goes on where it stopped. One that dies never answers its
  ticket; after `noticed_after` the server hears of it (a lease that ran out),
  lets it leave and issues its batches again.

  Args:
    clock: the execution times.
    worker_id: who stops.
    time: when, in time units, >= 0.
    duration: for how long, in time units, positive; infinite: it dies.
    noticed_after: time until a death is noticed, in time units, >= 0.

  Returns:
    A `Clock`.
  """
  for name, value, fine in (
    ('worker_id', worker_id, worker_id >= 0),
    ('time', time, time >= 0 and math.isfinite(time)),
    (
      'noticed_after',
      noticed_after,
      noticed_after >= 0 and math.isfinite(noticed_after),
    ),
  ):
    if not fine:
      raise ValueError(f'{name} must be finite and >= 0, got {value}')
  if not duration > 0:
    raise ValueError(f'duration must be positive, got {duration}')
  fault = base.Fault(worker_id, time, duration, noticed_after)
  return clock._replace(faults=tuple(sorted((*clock.faults, fault))))


def finish_time(
  faults: tuple[base.Fault, ...], start: float, duration: float
) -> float:
  """When a task ends whose worker has these faults.

  Args:
    faults: of that worker, in order of time.
    start: when it begins.
    duration: how long it takes without them.

  Returns:
    The time; infinite where the worker dies before.
  """
  end = start + duration
  for fault in faults:
    over = fault.time + fault.duration
    if fault.time < end and over > start:
      end += over - max(fault.time, start)
  return end
