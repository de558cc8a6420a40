"""Asynchronous training on a Ray cluster: server and workers are actors.

The server is the one of every live run; only its workers are other ones.
"""

import dataclasses
import functools
import tempfile

import ray

from ga_jax.guards import checks
from ga_jax.job import job as job_lib
from ga_jax.live import options
from ga_jax.live.ray import actors as actors_lib
from ga_jax.live.ray import cluster
from ga_jax.live.ray import setup as setup_lib
from ga_jax.live.result import LiveResult


@job_lib.takes_a_job
def run_on_ray(
  job: job_lib.Job,
  *,
  num_workers: int,
  num_batches: int,
  live: options.Live = options.Live(),
  address: str = 'local',
  accelerator: str = 'cpu',
  devices_per_worker: int = 1,
  shards: int = 1,
) -> LiveResult:
  """Trains with N workers on a Ray cluster, nobody waiting.

  The job must be picklable (functions and classes of your script are); it is
  sent to every process once.

  Args:
    job: what is trained; its `batch_fn` is called in the workers' processes.
    num_workers: number of workers, at least 1; those for which the cluster has
      no room come in when a node joins.
    num_batches: batches to apply, at least 1.
    live: how; `trace_path` and `checkpoints` are of the driver's machine, where
      the server is.
    address: 'local' for a cluster of this machine, made for the run; 'auto' for
      the one it belongs to; else HOST:PORT of its head.
    accelerator: what workers compute with, 'cpu', 'gpu' or 'tpu'.
    devices_per_worker: how many of them each holds.
    shards: of the server, each in a process of its own; 1 keeps everything in
      the server's.

  Returns:
    A `LiveResult` of NumPy arrays; its trace replays to the same bits in the
    exact executor of a process with the same thread pool.

  Raises:
    ValueError: an argument is out of its range, or the parts do not fit.
    ConnectionError: there is no cluster at that address.
  """
  num_workers = job.check_workers(num_workers)
  devices_per_worker = checks.integer(
    'devices_per_worker', devices_per_worker, 1
  )
  cluster.connect(address, num_workers * devices_per_worker)
  with tempfile.TemporaryDirectory(prefix='ga_jax-') as folder:
    setup = setup_lib.Setup(
      functools.partial(_sent, job),
      num_workers,
      num_batches,
      _recorded(live, folder),
      shards=shards,
    )
    actors = actors_lib.start(
      setup, accelerator=accelerator, devices_per_worker=devices_per_worker
    )
    try:
      return ray.get(actors.server.run.remote())
    finally:
      actors.end()


def _sent(job: job_lib.Job) -> job_lib.Job:
  """The job that came with the call."""
  return job


def _recorded(live: options.Live, folder: str) -> options.Live:
  """With a record, wanted or not: a server that dies goes on from it."""
  if live.trace_path is not None:
    return live
  return dataclasses.replace(live, trace_path=f'{folder}/trace.rows')
