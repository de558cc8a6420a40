"""Real asynchrony on one machine: a thread per worker, on any local devices.

Arrays stay on devices: answers go from the worker's to the server's as soon as
they are there.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ga_jax.job import job as job_lib
from ga_jax.live import options, server
from ga_jax.live.result import LiveResult
from ga_jax.server import update
from ga_jax.workers import placement, worker

JOIN_SECONDS = 5.0  # what a hung worker is given at the end


class ThreadPool:
  """Workers that are threads; they share the placements where these are less.

  See `roster.WorkerPool`.
  """

  may_return = False  # a worker whose thread has died does not come back

  def __init__(
    self,
    job: job_lib.Job,
    placements: Sequence[placement.Placement],
    delay_fn: Callable[[int, float], float] | None = None,
  ):
    """Starts no thread yet.

    Args:
      job: what to compute.
      placements: where; the first device of the first is the server's.
      delay_fn: see `Threads`.
    """
    server_device = placements[0].devices[0]
    self._machines = [
      worker.machine_of(job, one, server_device) for one in placements
    ]
    self._delay_fn = delay_fn
    self._stopping = threading.Event()
    self._workers = []

  def warm_up(self, order: worker.Order):
    """Compiles for every device: compiling holds the GIL."""
    for machine in self._machines:
      batches = machine.load(order.ticket.first_batch, order.ticket.num_batches)
      answer = machine.dispatch(order, batches)
      finite = update.finite(answer[0])
      jax.block_until_ready((finite, machine.to_server(answer)))

  def hire(self, worker_id: int, deliver: Callable[[Any], None]):
    """A worker's thread, which is here at once."""
    delay_fn = self._delay_fn and functools.partial(self._delay_fn, worker_id)
    machine = self._machines[worker_id % len(self._machines)]
    computing = worker.Computing(machine, delay_fn, self._stopping)
    one = worker.Worker(worker_id, computing, queue.SimpleQueue(), deliver)
    self._workers.append(one)
    deliver(worker.Here(worker_id))
    return one

  def fetch(self, worker_id: int, worker_state):
    """States are arrays already."""
    del worker_id
    return worker_state

  def end(self):
    """Ends the threads; a hung one is left behind."""
    self._stopping.set()
    for one in self._workers:
      one.dismiss()
    deadline = time.monotonic() + JOIN_SECONDS
    for one in self._workers:
      one.thread.join(max(0.0, deadline - time.monotonic()))


class Threads(server.LiveRun):
  """A live run whose workers are threads of this process.

  `add_worker`, `remove_worker` and `stop` may be called from other threads.
  """

  def __init__(
    self,
    job: job_lib.Job,
    *,
    num_workers: int,
    num_batches: int,
    live: options.Live = options.Live(),
    devices: Sequence[Any] | None = None,
    devices_per_worker: int = 1,
    delay_fn: Callable[[int, float], float] | None = None,
    **for_tests,
  ):
    """Prepares a run; nothing is computed yet.

    Args:
      job: what is trained.
      num_workers: workers, shared out over the devices in turn.
      num_batches: batches to apply.
      live: how.
      devices: of the workers; the first is the server's too. By default all
        local devices.
      devices_per_worker: how many share a worker's batches.
      delay_fn: `delay_fn(worker_id, compute_seconds) -> seconds` that a worker
        sleeps after a computation, for stragglers.
      **for_tests: `deliver_fn` and `clock_fn` of `server.LiveRun`.

    Raises:
      ValueError: an argument is out of its range, or the parts do not fit.
    """
    placements = placement.shared_out(
      list(devices or jax.local_devices()), devices_per_worker
    )
    super().__init__(
      job,
      ThreadPool(job, placements, delay_fn),
      num_workers=num_workers,
      num_batches=num_batches,
      live=live,
      device=placements[0].devices[0],
      placement=placements[0] if devices_per_worker > 1 else None,
      **for_tests,
    )


@job_lib.takes_a_job
def run_on_threads(
  job: job_lib.Job,
  *,
  num_workers: int,
  num_batches: int,
  live: options.Live = options.Live(),
  devices: Sequence[Any] | None = None,
  devices_per_worker: int = 1,
  delay_fn: Callable[[int, float], float] | None = None,
  observe: Callable[[int, update.ServerState, Any], bool] | None = None,
  block: int | None = None,
) -> LiveResult:
  """Trains with N workers on this machine's devices, nobody waiting.

  Args:
    job: what is trained; its `batch_fn` is called from the workers' threads.
    num_workers: number of workers, at least 1; they share the devices where
      these are less.
    num_batches: batches to apply, at least 1.
    live: how.
    devices: of the workers, see `Threads`; by default all local ones.
    devices_per_worker: how many share a worker's batches.
    delay_fn: for stragglers, see `Threads`.
    observe: `observe(batches, state, metrics) -> stop`, called in a thread of
      its own every `block` applied arrivals.
    block: arrivals between two observations; 64 by default.

  Returns:
    A `LiveResult`; its trace replays to the same bits in the exact executor.

  Raises:
    ValueError: an argument is out of its range, or the parts do not fit.
    WorkersLostError: every worker died and batches are left; for others see
      `LiveRun.run`.

  Examples:
    >>> import ga_jax, jax.numpy as jnp, numpy as np
    >>> loss = lambda p, s, x, key: (jnp.mean((x - p) ** 2), s)
    >>> job = ga_jax.Job(
    ...     loss, jnp.zeros(()), lambda i: np.ones(4, np.float32),
    ...     ga_jax.gap_aware(0.02), ga_jax.policies.asynchronous())
    >>> result = ga_jax.run_on_threads(job, num_workers=2, num_batches=500)
    >>> print(round(float(result.params), 2))
    1.0
  """
  threads = Threads(
    job,
    num_workers=num_workers,
    num_batches=num_batches,
    live=live,
    devices=devices,
    devices_per_worker=devices_per_worker,
    delay_fn=delay_fn,
  )
  return threads.run(observe, block)
