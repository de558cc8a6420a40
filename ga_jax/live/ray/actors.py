"""Asynchronous training on a Ray cluster: server and workers are actors.

Every worker is an independent JAX process that owns its devices. The server is
the one of every live run; only its workers are other ones. It lives on the
driver's machine and is started again when it dies: it then goes on from its
last checkpoint and the record that it wrote ahead.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import secrets
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax
import ray
from ray.util import scheduling_strategies

from ga_jax.guards import checks, locks
from ga_jax.job import job as job_lib
from ga_jax.live import options
from ga_jax.live import server as server_lib
from ga_jax.live.ray import handle, messages, wire
from ga_jax.live.ray import shards as shards_lib
from ga_jax.live.ray import worker as worker_lib
from ga_jax.live.result import LiveResult
from ga_jax.server import shards as server_shards
from ga_jax.workers import worker

ACCELERATORS = ('cpu', 'gpu', 'tpu')
# Environment variables that every process of a run has in common.
_SHARED = (
  *('XLA_FLAGS', 'PJRT_NPROC', 'NPROC', 'PYTHONPATH', 'JAX_ENABLE_X64'),
  'JAX_COMPILATION_CACHE_DIR',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES',
)

# Every update makes arrays of the parameters' size, in fresh memory: the kernel
# clears it page by page, which takes longer than the update where a page is
# 4 KiB. This asks for 2 MiB where Linux gives them on request (glibc 2.35 and
# later; others ignore it). At most 2 MiB of each large block are wasted.
_ALLOCATOR = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}

# Ray ends the server of a driver that was killed a moment later: until then it
# has record and checkpoints, which the next driver's server waits for.
_ORPHAN_SECONDS, _ORPHAN_PAUSE = 30.0, 0.2


class Setup(NamedTuple):
  """A run as it is sent to the processes that make it.

  Attributes:
    make_fn: `make_fn() -> Job`, called in every process.
    num_workers: how many workers are asked for.
    num_batches: batches to apply.
    live: how it is made.
    observe_fn: `observe_fn(tell, telemetry) -> observe`, called in the server's
      process; what it has `tell(item)` is the server's `news`, `telemetry` is
      that of `LiveRun`. For observe see `LiveRun.run`.
    block: see `LiveRun.run`.
    check_fn: see `handle.RayWorkerHandle`.
    shards: of the server, each in a process of its own; 1 keeps everything in
      the server's.
  """

  make_fn: Callable[[], job_lib.Job]
  num_workers: int
  num_batches: int
  live: options.Live = options.Live()
  observe_fn: Callable[..., Callable[..., bool]] | None = None
  block: int | None = None
  check_fn: Callable[[int, messages.Facts], None] | None = None
  shards: int = 1


class RayPool:
  """Workers that are actors; see `server.WorkerPool`."""

  def __init__(self, actors, layouts: messages.Layouts, device, setup: Setup):
    self._actors = actors
    self._layouts = layouts
    self._snapshots = handle.PackedSnapshots(layouts)
    self._device = device
    self._setup = setup
    self._handles = {}

  @property
  def may_return(self) -> bool:
    """Whether workers may come although none is here."""
    return any(one.may_return for one in self._handles.values())

  def warm_up(self, order: worker.Order):
    """Workers compile on their own."""

  def hire(self, worker_id: int, deliver: Callable[[Any], None]):
    """Waits for an actor, as long as it takes until there is room for it."""
    if worker_id not in self._actors:
      raise ValueError(
        f'worker {worker_id} has no actor, only {sorted(self._actors)}'
      )
    one = self._handles[worker_id] = handle.RayWorkerHandle(
      worker_id,
      self._actors[worker_id],
      self._layouts,
      self._snapshots,
      self._device,
      self._setup.live.pipeline_depth,
      self._setup.live.pipeline_depth == 0 and self._setup.shards == 1,
      deliver,
      self._setup.check_fn,
    )
    return one

  def fetch(self, worker_id: int, worker_state):
    """Asks a worker for a state that it keeps; None where it is lost."""
    if not isinstance(worker_state, messages.Kept):
      return worker_state
    method = self._actors[worker_id].state
    asked = method.options(concurrency_group=messages.STATES)
    try:
      return ray.get(
        asked.remote(worker_state.ticket_id), timeout=messages.STATE_SECONDS
      )
    except ray.exceptions.RayError:
      return None

  def end(self):
    """Lets go of the workers; the driver ends them."""
    for one in self._handles.values():
      one.dismiss()


class RayServer:
  """The server's process. To be made an actor by `ray.remote`."""

  def __init__(self, setup: Setup, names: dict[int, str]):
    """Begins; `names` are those of `worker.RayWorker`s by worker_id."""
    self._setup = setup
    self._names = names
    self._live_run = None
    self._stop_wanted = False
    self._news = []
    # At once: an actor that was started again is told only seconds later to.
    self._result = futures.ThreadPoolExecutor(1).submit(self._run)

  def run(self) -> LiveResult:
    """Waits for the end; the result's arrays are NumPy's."""
    return self._result.result()

  def _run(self) -> LiveResult:
    self._live_run = self._built()
    if self._stop_wanted:
      self._live_run.stop()
    observe = None
    if self._setup.observe_fn is not None:
      observe = self._setup.observe_fn(
        self._news.append, self._live_run.telemetry
      )
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while True:
      try:
        result = self._live_run.run(observe, self._setup.block)
        break
      except ray.exceptions.RayActorError:  # a shard is lost
        os._exit(1)  # Ray starts the server again, with other shards
      except locks.OccupiedError:
        if time.monotonic() > deadline:
          raise
        time.sleep(_ORPHAN_PAUSE)
    return dataclasses.replace(result, state=wire.to_host(result.state))

  def _built(self) -> server_lib.LiveRun:
    setup = self._setup
    actors = {w: ray.get_actor(name) for w, name in self._names.items()}
    job = setup.make_fn()
    device = jax.local_devices(backend='cpu')[0]
    recover = setup.live.recover or _started_again()
    return server_lib.LiveRun(
      job,
      RayPool(actors, messages.layouts_of(job), device, setup),
      num_workers=setup.num_workers,
      num_batches=setup.num_batches,
      live=dataclasses.replace(setup.live, recover=recover),
      device=device,
      shards=setup.shards,
      remote=server_shards.Remote(shards_lib.RayShardCalls, ray.get),
    )

  def news(self, pid: int, start: int) -> tuple[int, list[Any]]:
    """What was observed.

    Args:
      pid: of the server's process when it was asked last.
      start: items that are known from it.

    Returns:
      (its pid now, the items that are not known).
    """
    return os.getpid(), self._news[start if pid == os.getpid() else 0 :]

  def version(self) -> int:
    """Updates made."""
    return 0 if self._live_run is None else self._live_run.version

  def stop(self):
    """Ends the run after the update in hand."""
    self._stop_wanted = True
    if self._live_run is not None:
      self._live_run.stop()

  def pid(self) -> int:
    """Of the server's process."""
    return os.getpid()


def _started_again() -> bool:
  """Whether Ray started this actor again."""
  with warnings.catch_warnings():  # of a method that Ray itself calls
    warnings.simplefilter('ignore')
    return ray.get_runtime_context().was_current_actor_reconstructed


class Actors(NamedTuple):
  """The actors of a run.

  Attributes:
    server: handle of a `RayServer`.
    workers: handles of `worker.RayWorker`s, by worker_id.
  """

  server: Any
  workers: dict[int, Any]

  def end(self):
    """Ends every process of the run."""
    for actor in (self.server, *self.workers.values()):
      ray.kill(actor)


def start(
  setup: Setup,
  *,
  accelerator: str = 'cpu',
  devices_per_worker: int = 1,
  delay_fn: Callable[[int, float], float] | None = None,
  facts_fn: Callable[[], Any] | None = None,
  env: dict[str, str] | None = None,
) -> Actors:
  """Creates the actors of a run on the cluster that Ray is connected to.

  A worker for which the cluster has no room comes in when a node joins.

  Args:
    setup: the run.
    accelerator: what workers compute with, one of `ACCELERATORS`.
    devices_per_worker: how many of them each holds.
    delay_fn: see `threads.Threads`.
    facts_fn: see `worker.RayWorker`.
    env: environment variables of every process beside those that are taken from
      this one; they win, also over the memory allocator's settings.

  Returns:
    The `Actors`.

  Raises:
    ValueError: an argument is out of its range.
  """
  if accelerator not in ACCELERATORS:
    raise ValueError(
      f'accelerator must be one of {ACCELERATORS}, got {accelerator!r}'
    )
  shared = environment(devices_per_worker, env)
  needs = {
    'cpu': {'num_cpus': devices_per_worker},
    'gpu': {'num_cpus': 1, 'num_gpus': devices_per_worker},
    'tpu': {'num_cpus': 1, 'resources': {'TPU': devices_per_worker}},
  }[accelerator]
  platform = {} if accelerator != 'cpu' else {'JAX_PLATFORMS': 'cpu'}
  run = uuid.uuid4().hex[:8]
  names = {w: f'ga_jax-{run}-worker-{w}' for w in range(setup.num_workers)}
  actor = ray.remote(concurrency_groups={messages.STATES: 1})(
    worker_lib.RayWorker
  )
  workers = {
    worker_id: actor.options(
      name=name,
      max_restarts=-1,
      runtime_env={'env_vars': shared | platform},
      **needs,
    ).remote(
      worker_id,
      setup.make_fn,
      devices_per_worker,
      delay_fn,
      facts_fn,
      setup.shards,
    )
    for worker_id, name in names.items()
  }
  here = scheduling_strategies.NodeAffinitySchedulingStrategy(
    ray.get_runtime_context().get_node_id(), soft=False
  )
  server = (
    ray.remote(RayServer)
    .options(
      num_cpus=0,
      max_restarts=-1,
      max_task_retries=-1,
      max_concurrency=4,
      scheduling_strategy=here,
      runtime_env={'env_vars': shared | {'JAX_PLATFORMS': 'cpu'}},
    )
    .remote(setup, names)
  )
  return Actors(server, workers)


def environment(devices: int, given: dict[str, str] | None) -> dict[str, str]:
  """Environment variables of every process of a run.

  Args:
    devices: that each process may hold.
    given: those that win over all others; the next are this process's own.
  """
  names = (*_SHARED, *_ALLOCATOR)
  own = {name: os.environ[name] for name in names if name in os.environ}
  number = {'JAX_NUM_CPU_DEVICES': str(devices)}
  return _ALLOCATOR | own | number | (given or {})


def connect(address: str, num_cpus: int):
  """Connects this process to a cluster, if it is not.

  Args:
    address: 'auto' for the cluster that this machine belongs to, 'local' for a
      new one on this machine, with a token, else HOST:PORT of its head.
    num_cpus: of the new one, so that all workers find room.

  Raises:
    ConnectionError: there is none at that address.
  """
  if ray.is_initialized():
    return
  if address != 'local':
    ray.init(address=address)
    return
  _make_token()
  ray.init(address='local', num_cpus=num_cpus, include_dashboard=False)


def _make_token():
  """Makes Ray's token where there is none, for nobody else's eyes.

  Ray would make it too, but readable by everybody.
  """
  if {'RAY_AUTH_TOKEN', 'RAY_AUTH_TOKEN_PATH'} & set(os.environ):
    return
  path = pathlib.Path.home() / '.ray' / 'auth_token'
  path.parent.mkdir(mode=0o700, exist_ok=True)
  with contextlib.suppress(FileExistsError):
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with open(os.open(path, flags, 0o600), 'w') as file:
      file.write(secrets.token_hex(32))


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
    address: see `connect`.
    accelerator: see `start`.
    devices_per_worker: see `start`.
    shards: of the server, see `Setup`.

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
  connect(address, num_workers * devices_per_worker)
  with tempfile.TemporaryDirectory(prefix='ga_jax-') as folder:
    if live.trace_path is None:
      # A server that dies goes on from its record, wanted or not.
      path = os.path.join(folder, 'trace.rows')
      live = dataclasses.replace(live, trace_path=path)
    setup = Setup(
      functools.partial(_sent, job),
      num_workers,
      num_batches,
      live,
      shards=shards,
    )
    actors = start(
      setup, accelerator=accelerator, devices_per_worker=devices_per_worker
    )
    try:
      return ray.get(actors.server.run.remote())
    finally:
      actors.end()


def _sent(job: job_lib.Job) -> job_lib.Job:
  """The job that came with the call."""
  return job
