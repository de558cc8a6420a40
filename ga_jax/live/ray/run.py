"""Asynchronous training on a Ray cluster: server and workers are actors.

The server is the one of every live run; only its workers are other ones.
"""

import functools
import sys

import ray

from ga_jax.guards import checks
from ga_jax.job import job as job_lib
from ga_jax.live import options
from ga_jax.live.ray import cluster, driver, seats, signals
from ga_jax.live.ray import setup as setup_lib
from ga_jax.live.ray import share as share_lib
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
  server_accelerator: str = 'auto',
  devices_per_worker: int = 1,
  workers_per_device: int = 1,
  shards: int = 1,
  wait_for_workers: float = driver.WAIT_SECONDS,
) -> LiveResult:
  """Trains with N workers on a Ray cluster, nobody waiting.

  The job must be picklable (functions and classes of your script are); it is
  sent to every process once.

  SIGINT and SIGTERM end the run after the update in hand, with a checkpoint
  where there are any; then they come to the caller's own handler, and where
  that lets the process live on, `stopped` is True in the result. A second
  signal comes to it at once.

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
    server_accelerator: what the server, on the driver's machine, computes with,
      or each of its shards, anywhere: the same, or 'auto' for one that the
      cluster has beside those that the workers ask for, else the CPU.
    devices_per_worker: how many of them each holds.
    workers_per_device: how many workers share one, with an equal part of its
      memory; not on TPUs. A server on such a one is one of them.
    shards: of the server, each in a process of its own; 1 keeps everything in
      the server's.
    wait_for_workers: seconds until the first worker must have found room. What
      a run waits for it says after a few seconds.

  Returns:
    A `LiveResult` of NumPy arrays; its trace replays to the same bits in the
    exact executor of a process with the same thread pool.

  Raises:
    ValueError: an argument is out of its range, or the parts do not fit.
    ConnectionError: there is no cluster at that address, or it has another
      token.
    AccessError: `RAY_AUTH_MODE` or the mode of the token's file lets others in.
    ServerMissingError: the server found no room in time.
    WorkersMissingError: no worker found room in time.
    ClusterLostError: the cluster, or this machine's part of it, ended.
  """
  num_workers = job.check_workers(num_workers)
  share = share_lib.Share(accelerator, devices_per_worker, workers_per_device)
  share = share.checked()
  wait_for_workers = checks.number(
    'wait_for_workers', wait_for_workers, above=0.0, finite=False
  )
  cluster.connect(address, num_workers * share.devices_per_worker)
  setup = setup_lib.Setup(
    functools.partial(_sent, job), num_workers, num_batches, live, shards=shards
  )
  server_share = seats.share_of(server_accelerator, share, num_workers, shards)
  return _driven(setup, share, server_share, wait_for_workers)


def _driven(setup, share, server_share, wait_for_workers) -> LiveResult:
  """Runs; a signal ends that in order, and then comes to the caller."""
  with signals.deferred() as told:

    def stop(server):
      if told.number:
        ray.get(server.stop.remote())

    result = driver.drive(setup, share, stop, wait_for_workers, server_share)
    if told.number and result.stopped:
      version, more = int(result.state.version), _goes_on(setup.live)
      print(f'stopped at version {version}; {more}', file=sys.stderr)
  return result


def _sent(job: job_lib.Job) -> job_lib.Job:
  """The job that came with the call."""
  return job


def _goes_on(live: options.Live) -> str:
  """How a run that was stopped goes on."""
  if live.checkpoints:
    return 'the same call goes on from its checkpoint'
  if live.trace_path:
    return 'the same call with Live(recover=True) goes on with its record'
  return 'nothing to go on with: Live(trace_path=..., checkpoints=...) keeps it'
