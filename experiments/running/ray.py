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
from ga_jax.live.ray import actors as runtime
from ga_jax.live.ray import messages

_POLL_SECONDS = 0.2
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
      runtime.connect(settings.address, workers)
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
  observe: Callable[[watch.Progress], None],
  evaluate_epochs: bool,
  keeping: run_lib.Keeping,
  control: control_lib.Control,
) -> tuple[ga_jax.LiveResult, dict[str, Any]]:
  """Runs to the end; see `train.train` for the arguments."""
  try:
    known = inputs.of(settings)
    execution.check_shards(_make(settings, known), settings.server_shards)
  except ValueError as error:
    raise settings_lib.SettingError(
      'server_shards', settings.server_shards, str(error)
    ) from error
  connect(settings)
  recorded = environment.environment()
  # Other processes may be in other folders.
  keeping = keeping._replace(folder=os.path.abspath(keeping.folder))
  if settings.data_path:
    data_path = os.path.abspath(settings.data_path)
    settings = dataclasses.replace(settings, data_path=data_path)
  setup = runtime.Setup(
    make_fn=functools.partial(_make, settings, known),
    num_workers=settings.workers,
    num_batches=run_lib.total_batches(settings),
    live=run_lib.live_of(settings, keeping),
    observe_fn=functools.partial(_following, settings, evaluate_epochs),
    block=run_lib.observed_every(settings),
    check_fn=functools.partial(check, recorded),
    shards=settings.server_shards,
  )
  pool = environment.thread_pool()
  kept = compilation.of_pool(os.environ.get(compilation.FOLDER, ''), pool)
  actors = runtime.start(
    setup,
    accelerator=accelerator(settings),
    devices_per_worker=settings.devices_per_worker,
    delay_fn=threads.Slower(settings.straggler) if settings.straggler else None,
    facts_fn=environment.environment,
    env={'NPROC': str(pool), compilation.FOLDER: kept},
  )
  try:
    return _followed(actors.server, observe, control), {}
  finally:
    actors.end()


def computes_with(settings: settings_lib.Settings) -> str:
  """What every worker has, for `accelerators.say`; connects to the cluster."""
  connect(settings)
  return f'{accelerator(settings)}, of the Ray cluster, for every worker'


def accelerator(settings: settings_lib.Settings) -> str:
  """What the workers compute with: the best that the cluster has."""
  if settings.accelerator != 'auto':
    return settings.accelerator
  there = ray.cluster_resources()
  return next((a for a in ('tpu', 'gpu') if there.get(a.upper())), 'cpu')


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
  if found:
    print(
      f'note: worker {worker_id} is another machine, so the run will not '
      f'replay to the same bits: {"; ".join(map(str, found))}',
      file=sys.stderr,
    )


def _followed(server, observe, control) -> ga_jax.LiveResult:
  """Shows what the server observes until it has its result."""
  result, pid, seen, told = server.run.remote(), 0, 0, False
  batches = 0  # that were shown
  while True:
    ended, _ = ray.wait([result], timeout=_POLL_SECONDS)
    if control.stopping and not told:
      server.stop.remote()
      told = True
    now, fresh = ray.get(server.news.remote(pid, seen))
    pid, seen = now, len(fresh) + (seen if now == pid else 0)
    for progress in fresh:
      if progress.batches > batches:  # a server that died sees some again
        observe(progress)
        batches = progress.batches
    if ended:
      return ray.get(result)


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


def _following(settings, evaluate_epochs, tell, telemetry) -> watch.Watch:
  follow = run_lib.following(
    settings, tell, evaluate_epochs, control_lib.Control()
  )
  follow.telemetry = telemetry
  return follow
