"""Workers that stall or die at a given time, on top of any clock."""

import math

from ga_jax.clocks import base
from ga_jax.guards import checks


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
  fault = base.Fault(
    checks.integer('worker_id', worker_id, 0),
    checks.number('time', time, low=0.0),
    checks.number('duration', duration, above=0.0, finite=False),
    checks.number('noticed_after', noticed_after, low=0.0),
  )
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
