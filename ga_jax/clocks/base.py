"""What a clock is: how long a worker takes for its tasks.

A clock is a pure function of (worker, chunk), so that every method that is run
on one (workers, seed) meets the same draws, whatever it does with them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CHUNK = 64  # tasks drawn at a time


class Fault(NamedTuple):
  """A worker that stops; in order of time."""

  worker_id: int
  time: float
  duration: float  # infinite: it dies
  noticed_after: float  # until the server hears of a death


class Clock(NamedTuple):
  """Execution times.

  Attributes:
    draw: `draw(worker_id, chunk) -> float64[CHUNK]`, the times of that worker's
      tasks chunk * CHUNK and following, in time units.
    mean: expected time of one batch on an average machine, in time units.
    overhead: time per ticket on top of its batches (messages), time units.
    faults: workers that stall or die.
  """

  draw: Callable[[int, int], np.ndarray]
  mean: float
  overhead: float = 0.0
  faults: tuple[Fault, ...] = ()


def generator(seed: int, *stream: int) -> np.random.Generator:
  """An independent random stream for (seed, *stream).

  The tag keeps it apart from other users of the same seed.
  """
  tag = int.from_bytes(b'clock', 'big')
  return np.random.Generator(np.random.PCG64([tag, seed, *stream]))


def task_times(clock: Clock) -> Callable[[int], float]:
  """Reads a clock task by task.

  Args:
    clock: the clock.

  Returns:
    `next_time(worker_id) -> float`, the time of that worker's next task. It
    remembers where each worker stands.
  """
  readers = {}

  def read(worker_id):
    chunk = 0
    while True:
      yield from clock.draw(worker_id, chunk).tolist()
      chunk += 1

  def next_time(worker_id):
    reader = readers.get(worker_id)
    if reader is None:
      reader = readers[worker_id] = read(worker_id)
    return next(reader)

  return next_time
