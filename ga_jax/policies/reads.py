"""Which version every running worker read, for policies that stop late ones."""

import itertools
from typing import NamedTuple


class Reads(NamedTuple):
  """What is being computed; the dict is never changed in place."""

  version: int  # the server's
  by_worker: dict[int, int]  # the version it read, the oldest first


def init() -> Reads:
  """Nothing is being computed yet."""
  return Reads(0, {})


def begin(reads: Reads, worker_id: int) -> Reads:
  """A worker was given a ticket at the server's version."""
  by_worker = reads.by_worker.copy()  # several times faster than dict()
  by_worker[worker_id] = reads.version
  return Reads(reads.version, by_worker)


def end(reads: Reads, worker_id: int) -> Reads:
  """Its ticket was answered, or lost."""
  if worker_id not in reads.by_worker:
    return reads
  by_worker = reads.by_worker.copy()
  del by_worker[worker_id]
  return Reads(reads.version, by_worker)


def close(reads: Reads, max_staleness: int) -> tuple[Reads, tuple[int, ...]]:
  """The server made an update.

  Args:
    reads: before it.
    max_staleness: the most a running computation may have now.

  Returns:
    The reads that are left, and the workers that have more: to be restarted.
  """
  version = reads.version + 1
  oldest = version - max_staleness
  late = tuple(
    itertools.takewhile(
      lambda worker_id: reads.by_worker[worker_id] < oldest, reads.by_worker
    )
  )
  if not late:
    return Reads(version, reads.by_worker), ()
  kept = itertools.islice(reads.by_worker.items(), len(late), None)
  return Reads(version, dict(kept)), late
