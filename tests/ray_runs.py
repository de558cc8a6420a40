"""Runs on Ray nodes of this machine, for tests that watch and break them."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import pytest
import ray
from ray import cluster_utils
from ray._private import authentication_test_utils as authentication

from experiments.running import environment
from ga_jax.executors import exact
from ga_jax.live.ray import actors as runtime
from ga_jax.live.ray import messages
from ga_jax.live.ray import setup as setup_lib
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.record import trace
from tests import cases

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECONDS = 180.0  # that anything may take where the machine is busy
STORE_BYTES = 80 * 2**20
_SYSTEM = {  # a node that was killed is missed after 2 s, not 15
  'health_check_initial_delay_ms': 0,
  'health_check_period_ms': 500,
  'health_check_failure_threshold': 4,
}


@contextlib.contextmanager
def cluster(num_cpus: int = 2, num_gpus: int = 0):
  """A cluster of one node that this process is connected to.

  All processes compute with a thread pool of the same size.

  Args:
    num_cpus: of the node; one for each worker on it.
    num_gpus: that Ray is told it has; JAX computes on the CPU all the same.

  Yields:
    A `cluster_utils.Cluster`, for more nodes.
  """
  folder = tempfile.mkdtemp(prefix='ga', dir='/tmp')  # short, for sockets
  token = os.path.join(folder, 'token')
  with open(os.open(token, os.O_WRONLY | os.O_CREAT, 0o600), 'w') as file:
    file.write(secrets.token_hex(32))
  with pytest.MonkeyPatch.context() as patch:
    for name in [name for name in os.environ if name.startswith('RAY_')]:
      patch.delenv(name)
    patch.setenv('RAY_TMPDIR', folder)
    patch.setenv('RAY_AUTH_MODE', 'token')
    patch.setenv('RAY_AUTH_TOKEN_PATH', token)
    patch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    patch.setenv('RAY_worker_niceness', '0')  # or other tests go first
    patch.setenv('NPROC', str(environment.thread_pool()))
    authentication.reset_auth_token_state()  # Ray read it at import
    nodes = cluster_utils.Cluster()
    try:
      with warnings.catch_warnings():  # Ray starts processes by fork and exec
        warnings.filterwarnings('ignore', 'os.fork', RuntimeWarning)
        nodes.add_node(
          num_cpus=num_cpus,
          num_gpus=num_gpus,
          object_store_memory=STORE_BYTES,
          include_dashboard=False,
          _system_config=_SYSTEM,
        )
      ray.init(address=nodes.address, log_to_driver=False)
      yield nodes
    finally:
      ray.shutdown()
      nodes.shutdown()
      shutil.rmtree(folder, ignore_errors=True)
  authentication.reset_auth_token_state()


def until(holds, what: str = '', run=None):
  """Waits until `holds()`; shows the error of a run that ends meanwhile."""
  deadline = time.monotonic() + SECONDS
  while not holds():
    if run is not None and ray.wait([run.result], timeout=0)[0]:
      ray.get(run.result)
      raise AssertionError(f'the run ended before {what}')
    assert time.monotonic() < deadline, f'no {what} after {SECONDS} s'
    time.sleep(0.01)


class Run:
  """A run that goes on while a test looks at it."""

  def __init__(self, setup: setup_lib.Setup, **options):
    """Starts it; see `runtime.start` for the options."""
    self.setup = setup
    self.actors = runtime.start(setup, **options)
    self.result = self.actors.server.run.remote()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.actors.end()

  def version(self) -> int:
    return ray.get(self.actors.server.version.remote(), timeout=SECONDS)

  def reach(self, version: int):
    """Waits until so many updates were made."""
    until(lambda: self.version() >= version, f'update {version}', self)

  def rows(self, *kinds: Kind, start: int = 0) -> list[tuple]:
    """The record so far, from a row on; of these kinds, if any are given."""
    rows = trace.read_rows(self.setup.live.trace_path)[start:]
    return [row for row in rows if not kinds or row[1] in kinds]

  def contributes(self, worker_id: int, start: int):
    """Waits until a gradient of a worker is applied after row `start`."""

    def contributed():
      return any(
        row[2] == worker_id and row[8] in (Action.APPLY, Action.ACCUMULATE)
        for row in self.rows(Kind.ARRIVE, start=start)
      )

    until(contributed, f'gradient of worker {worker_id}', self)

  def at_work(self) -> set[int]:
    """The workers with an order in their hands; for a depth of 0."""
    last = {row[2]: row[1] for row in self.rows() if row[3] >= 0}
    return {worker for worker, kind in last.items() if kind == Kind.ISSUE}

  def facts(self, worker_id: int) -> messages.Facts:
    """Who a worker is; told while it computes, too."""
    facts = self.actors.workers[worker_id].facts
    asked = facts.options(concurrency_group=messages.STATES).remote()
    return ray.get(asked, timeout=SECONDS)

  def kill_server(self):
    """Kills the server's process and waits until it is gone."""
    asked = self.actors.server.pid.remote()
    kill(ray.get(asked, timeout=SECONDS))

  def finish(self):
    """The result; it is complete, exactly once, and replays to its bits."""
    result = ray.get(self.result, timeout=SECONDS)
    check(self.setup.make_fn(), result)
    return result


def check(job, result, **how):
  """A result is complete, exactly once, and replays to its bits.

  Args:
    job: what was computed.
    result: what came out.
    **how: of `exact.execute`: shards, placement.
  """
  result.trace.verify()
  assert not result.stopped
  assert result.executed == len(result.trace.applied())
  assert int(result.state.version) == result.trace.updates()
  state, metrics, _ = exact.execute(job, result.trace, **how)
  assert cases.same_bits(state, result.state)
  assert cases.same_bits(metrics, result.metrics)


def server_pid() -> int:
  """Of the only server on the cluster, whoever started it."""
  (pid,) = (
    actor['Pid']
    for actor in ray._private.state.actors().values()
    if (actor['ActorClassName'], actor['State']) == ('RayServer', 'ALIVE')
  )
  return pid


def script(name: str, *flags) -> subprocess.CompletedProcess:
  """Runs a script of `experiments` to its end, with one device."""
  return subprocess.run(
    command(name, *flags),
    cwd=ROOT,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1'},
    check=False,
    capture_output=True,
    text=True,
    timeout=SECONDS,
  )


def command(name: str, *flags) -> list[str]:
  """The command line of a script of `experiments`."""
  return [sys.executable, '-m', f'experiments.{name}', *flags]


def kill(pid: int):
  """Kills a process and waits until it is gone."""
  os.kill(pid, signal.SIGKILL)
  until(lambda: not _lives(pid), f'end of {pid}')


def _lives(pid: int) -> bool:
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False
