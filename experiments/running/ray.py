"""Runs one setting on a Ray cluster.

Every process builds the job from the settings, and reads the data where it is.
"""

import dataclasses
import functools
import os
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import ray

import ga_jax
from experiments.running import (
  compilation,
  environment,
  inputs,
  threads,
  watch,
)
from experiments.running import control as control_lib
from experiments.running import setup as run_lib
from experiments.settings import table as settings_lib
from ga_jax import data
from ga_jax.executors import execution
from ga_jax.live.ray import cluster, driver, messages, seats
from ga_jax.live.ray import setup as setup_lib
from ga_jax.live.ray import share as share_lib

# What every process must have in common.
_SAME = ('ga_jax', 'jax', 'jaxlib', 'flax', 'optax')


def connect(settings: settings_lib.Settings):
  """Connects to the cluster; starts one where --address=local.

  Raises:
    SettingError: there is none, or it does not let us in.
  """
  workers = settings.workers * settings.devices_per_worker
  try:
    with warnings.catch_warnings():  # Ray starts its processes by fork and exec
      warnings.filterwarnings('ignore', 'os.fork', RuntimeWarning)
      cluster.connect(settings.address, workers)
  except cluster.AccessError as error:
    raise settings_lib.SettingError(
      'address', settings.address, str(error)
    ) from error
  except (
    ConnectionError,
    RuntimeError,
    ValueError,
    ray.exceptions.RayError,
  ) as error:
    first, *_ = str(error).strip().splitlines() or [repr(error)]
    raise settings_lib.SettingError(
      'address',
      settings.address,
      f'{first} (where a cluster wants a token: RAY_AUTH_MODE=token, and the '
      'token in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH)',
    ) from error


def run(
  settings: settings_lib.Settings,
  job: ga_jax.Job,
  total: int,
  observe: Callable[[watch.Progress], None],
  evaluate_epochs: bool,
  keeping: run_lib.Keeping,
  control: control_lib.Control,
) -> tuple[ga_jax.LiveResult, dict[str, Any]]:
  """Runs `total` batches of a job; see `train.train` for the others."""
  try:
    execution.check_shards(job, settings.server_shards)
  except ValueError as error:
    raise settings_lib.SettingError(
      'server_shards', settings.server_shards, str(error)
    ) from error
  connect(settings)
  recorded = environment.environment()
  if keeping.folder:  # other processes may be in other folders
    keeping = keeping._replace(folder=os.path.abspath(keeping.folder))
  if settings.data_path:
    data_path = os.path.abspath(settings.data_path)
    settings = dataclasses.replace(settings, data_path=data_path)
  share = _share(settings)
  server_share = _server_share(settings, share)
  setup = setup_lib.Setup(
    make_fn=functools.partial(_make, settings, inputs.of(settings)),
    num_workers=settings.workers,
    num_batches=total,
    live=run_lib.live_of(settings, keeping),
    observe_fn=functools.partial(
      *(_following, settings, evaluate_epochs),
      *(recorded, server_share.accelerator),
    ),
    block=run_lib.observed_every(settings),
    check_fn=functools.partial(check, recorded),
    shards=settings.server_shards,
  )
  pool = environment.thread_pool()
  kept = compilation.of_pool(os.environ.get(compilation.FOLDER, ''), pool)
  result = driver.drive(
    setup,
    share,
    _News(observe, control).take,
    settings.wait_for_workers,
    server_share,
    delay_fn=threads.Slower(settings.straggler) if settings.straggler else None,
    facts_fn=environment.environment,
    env={'NPROC': str(pool), compilation.FOLDER: kept},
  )
  missing = sorted(set(range(settings.workers)) - set(result.workers))
  return result, {
    'missing_workers': missing,
    'server_accelerator': server_share.accelerator,
  }


def computes_with(settings: settings_lib.Settings) -> str:
  """What every worker has, for `accelerators.say`; connects to the cluster."""
  connect(settings)
  share = _share(settings)
  server = _server_share(settings, share).accelerator
  each = 'each of its shards' if settings.server_shards > 1 else 'the server'
  return (
    f'{share.accelerator}, of the Ray cluster, for every worker; {server} for '
    f'{each}'
  )


def accelerator(settings: settings_lib.Settings) -> str:
  """What the workers compute with: the best that the cluster has."""
  if settings.accelerator != 'auto':
    return settings.accelerator
  there = ray.cluster_resources()
  return next((a for a in ('tpu', 'gpu') if there.get(a.upper())), 'cpu')


def _share(settings: settings_lib.Settings) -> share_lib.Share:
  """What every worker asks the cluster for.

  Raises:
    SettingError: its device cannot be shared.
  """
  share = share_lib.Share(
    accelerator(settings),
    settings.devices_per_worker,
    settings.workers_per_device,
  )
  try:
    return share.checked()
  except ValueError as error:
    raise settings_lib.SettingError(
      'workers_per_device', settings.workers_per_device, str(error)
    ) from error


def _server_share(
  settings: settings_lib.Settings, share: share_lib.Share
) -> share_lib.Share:
  """What the server asks the cluster for, or each of its shards."""
  return seats.share_of(
    settings.server_accelerator, share, settings.workers, settings.server_shards
  )


def check(recorded: dict[str, Any], worker_id: int, facts: messages.Facts):
  """Lets a worker in, in the server's process.

  Args:
    recorded: the environment that the run records.
    worker_id: who it is.
    facts: where it is.

  Raises:
    RuntimeError: it has other versions.
  """
  found = environment.differences(recorded, facts.found)
  wrong = [str(one) for one in found if one.name in _SAME]
  if wrong:
    raise RuntimeError(
      f'worker {worker_id} on node {facts.node_id} has other versions: '
      f'{"; ".join(wrong)}'
    )
  _tell(f'worker {worker_id}', found)


def _tell(who: str, found: list[environment.Difference]):
  """Says what differs of the environment that a run records."""
  if found:
    print(
      f'note: {who} computes with something else than the driver, so the run '
      f'will not replay to the same bits: {"; ".join(map(str, found))}',
      file=sys.stderr,
    )


class _News:
  """What the server has observed, and what it is to be told."""

  def __init__(self, observe, control):
    self._observe = observe
    self._control = control
    self._pid = self._seen = 0  # of the server's process; items known from it
    self._batches = 0  # that were shown

  def take(self, server):
    """Shows what is new; stops the run where it is to stop."""
    if self._control.stopping:
      ray.get(server.stop.remote())
    pid, fresh = ray.get(server.news.remote(self._pid, self._seen))
    self._seen = len(fresh) + (self._seen if pid == self._pid else 0)
    self._pid = pid
    for progress in fresh:
      if progress.batches > self._batches:  # one that died sees some again
        self._observe(progress)
        self._batches = progress.batches


def _make(settings: settings_lib.Settings, known: dict[str, str]) -> ga_jax.Job:
  """The job as a process of the cluster builds it, on the driver's data.

  Raises:
    DataError: the data that this process reads are others.
  """
  if found := inputs.differences(known, inputs.of(settings)):
    raise data.DataError(
      f'{socket.gethostname()} has other data than the driver: '
      f'{"; ".join(map(str, found))}'
    )
  return run_lib.job_of(settings, run_lib.method_of(settings))


def _following(
  settings, evaluate_epochs, recorded, server, tell, live_run
) -> watch.Watch:
  """What follows a run, in its server's process."""
  found = environment.differences(recorded, environment.environment())
  _tell('the server', found)
  follow = run_lib.following(
    settings, tell, evaluate_epochs, control_lib.Control()
  )
  follow.telemetry, follow.missing = live_run.telemetry, live_run.missing
  follow.server = server
  return follow
