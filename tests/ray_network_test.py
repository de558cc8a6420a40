"""Machines with addresses of their own: one is cut off, one dies, one joins.

They are network namespaces of this machine, which need root and iproute2, each
with process numbers of its own, so that a machine that dies takes everything
along. Where they are not permitted the machines are nodes on 127.0.0.1, and the
one that is cut off is stopped (SIGSTOP); GA_JAX_NETWORK=loopback asks for that.

About 4 minutes per test on 2 cores:

  python -m pytest tests/ray_network_test.py -m slow -s
"""

import contextlib
import functools
import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from ga_jax.policies.parts.base import Action, Kind
from ga_jax.record import trace

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = pathlib.Path(__file__).parent.parent
SECONDS = 180.0  # that anything may take where the machine is busy
CUT_SECONDS = 20.0
LEASE_SECONDS = 3.0
NODE = ('--num-cpus=1', '--object-store-memory=100000000')
# A node that is cut off for 20 s is dead to Ray.
IMPATIENT = {
  'RAY_health_check_initial_delay_ms': '1000',
  'RAY_health_check_period_ms': '1000',
  'RAY_health_check_timeout_ms': '1000',
  'RAY_health_check_failure_threshold': '4',
}


def environment(folder, settings):
  """Of every process: one token, no other cluster's settings."""
  token = pathlib.Path(folder, 'token')
  token.touch(0o600)
  token.write_text(secrets.token_hex(32))
  kept = {k: v for k, v in os.environ.items() if not k.startswith('RAY_')}
  return {
    **kept,
    'VENV': sys.prefix,
    'RAY_AUTH_MODE': 'token',
    'RAY_AUTH_TOKEN_PATH': str(token),
    'RAY_USAGE_STATS_ENABLED': '0',
    **settings,
  }


def ip(*words):
  """`ip`; iproute2's own command."""
  subprocess.run(['ip', *words], check=True, capture_output=True, text=True)


class Namespaces:
  """Machines that are network namespaces on a bridge of their own."""

  def __init__(self, folder, settings):
    self._folder = folder
    self._env = environment(folder, settings)
    self._tag = f'ga{os.getpid()}'
    self._switch = f'{self._tag}-switch'
    self._there, self._alive = [], {}
    self._add(self._switch)
    ip('-n', self._switch, 'link', 'add', 'bridge', 'type', 'bridge')
    ip('-n', self._switch, 'link', 'set', 'bridge', 'up')

  def _add(self, name):
    ip('netns', 'add', name)
    self._there.append(name)

  def _name(self, number):
    """A machine's namespace, with 10.77.0.NUMBER."""
    name = f'{self._tag}-{number}'
    if name not in self._there:
      self._add(name)
      cable = ('link', 'add', f'to-{number}', 'netns', self._switch)
      ip(*cable, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name)
      ip('-n', self._switch, 'link', 'set', f'to-{number}', 'master', 'bridge')
      ip('-n', self._switch, 'link', 'set', f'to-{number}', 'up')
      ip('-n', name, 'address', 'add', f'10.77.0.{number}/24', 'dev', 'eth0')
      for device in ('lo', 'eth0'):
        ip('-n', name, 'link', 'set', device, 'up')
    return name

  @property
  def address(self) -> str:
    return '10.77.0.1:6379'

  def start(self, number: int):
    """Starts a machine's node; that of 1 is the head."""
    script = ['ray_worker.sh', f'--address={self.address}']
    log = open(f'{self._folder}/{number}.log', 'a')  # noqa: SIM115
    inside = ['ip', 'netns', 'exec', self._name(number)]
    inside += ['unshare', '--pid', '--fork', '--kill-child', '--mount-proc']
    name, *flags = ['ray_head.sh'] if number == 1 else script
    self._alive[number] = subprocess.Popen(
      [
        *inside,
        *('bash', ROOT / 'launch' / name, *flags, '--interface=eth0'),
        *(f'--temp_dir={self._folder}/{number}', '--block', '--', *NODE),
      ],
      env=self._env,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
    )

  def ended(self, number: int) -> bool:
    """Whether a machine's node has ended on its own."""
    return self._alive[number].poll() is not None

  def cut(self, number: int):
    """Pulls a machine's cable out."""
    ip('-n', self._switch, 'link', 'set', f'to-{number}', 'down')

  def mend(self, number: int):
    """Plugs it in again."""
    ip('-n', self._switch, 'link', 'set', f'to-{number}', 'up')

  def kill(self, number: int):
    """Switches a machine off."""
    self._alive[number].kill()
    self._alive.pop(number).wait()

  def workers(self, number: int) -> int:
    """How many `worker.RayWorker`s are on a machine."""
    listed = subprocess.run(
      ['ip', 'netns', 'pids', self._name(number)],
      check=True,
      capture_output=True,
      text=True,
    )
    return stations(listed.stdout.split())

  def driver(self, *command, **options):
    """Starts a program on the head."""
    inside = f'/proc/{self._alive[1].pid}/task/{self._alive[1].pid}/children'
    pid = pathlib.Path(inside).read_text().split()[0]
    return subprocess.Popen(
      ['nsenter', f'--target={pid}', '--net', '--pid', '--mount', *command],
      env=self._env,
      cwd=ROOT,
      **options,
    )

  def end(self):
    for number in list(self._alive):
      self.kill(number)
    for name in self._there:
      subprocess.run(['ip', 'netns', 'delete', name], check=False)


class Loopback:
  """Machines that are nodes on 127.0.0.1."""

  def __init__(self, folder, settings):
    self._folder = folder
    self._env = environment(folder, settings)
    self._started = {}  # number -> the file that names its session

  def _cluster(self, *flags):
    subprocess.run(
      [
        *('bash', ROOT / 'launch' / 'local_cluster.sh', *flags),
        f'--temp_dir={self._folder}',
      ],
      env=self._env,
      check=True,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )

  @property
  def address(self) -> str:
    return 'auto'

  def start(self, number: int):
    before = self._sessions()
    self._cluster('--nodes=1' if number == 1 else '--add=1')
    (self._started[number],) = self._sessions() - before

  def _sessions(self):
    return set(pathlib.Path(self._folder).glob('node-*.session'))

  def ended(self, number: int) -> bool:
    return not self._pids(number)

  def _pids(self, number):
    leader = self._started[number].read_text().split()[0]
    listed = subprocess.run(
      ['ps', '-o', 'pid=', '--sid', leader],
      check=False,
      capture_output=True,
      text=True,
    )
    return listed.stdout.split()

  def _signal(self, number, what):
    for pid in self._pids(number):
      with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), what)

  def cut(self, number: int):
    self._signal(number, signal.SIGSTOP)

  def mend(self, number: int):
    self._signal(number, signal.SIGCONT)

  def kill(self, number: int):
    name = self._started.pop(number).stem
    self._cluster(f'--kill={name.removeprefix("node-")}')

  def workers(self, number: int) -> int:
    return stations(self._pids(number))

  def driver(self, *command, **options):
    inside = ['bash', '-c', 'source "$0" && exec "$@"', f'{self._folder}/env']
    return subprocess.Popen(
      [*inside, *command], env=self._env, cwd=ROOT, **options
    )

  def end(self):
    self._cluster('--stop')


def stations(pids) -> int:
  """How many of these processes are workers."""
  found = 0
  for pid in pids:
    with contextlib.suppress(OSError):
      title = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
      found += title.startswith(b'ray::RayWorker')
  return found


@functools.cache
def forbidden() -> str:
  """Why there can be no namespaces; '' where there can."""
  if os.environ.get('GA_JAX_NETWORK') == 'loopback':
    return 'GA_JAX_NETWORK=loopback'
  name = f'ga{os.getpid()}-probe'
  try:
    ip('netns', 'add', name)
    try:
      ip('-n', name, 'link', 'add', 'bridge', 'type', 'bridge')
      ip(
        '-n', name, 'link', 'add', 'one', 'type', 'veth', 'peer', 'name', 'two'
      )
      subprocess.run(
        ['unshare', '--pid', '--fork', '--kill-child', '--mount-proc', 'true'],
        check=True,
        capture_output=True,
      )
    finally:
      ip('netns', 'delete', name)
  except (OSError, subprocess.CalledProcessError) as error:
    return f'{error} {getattr(error, "stderr", "")}'.strip()
  return ''


@contextlib.contextmanager
def machines(settings):
  """Machines 1, 2 and 3; the first is the head."""
  if forbidden():
    print(f'no network namespaces ({forbidden()}): nodes on 127.0.0.1')
  folder = tempfile.mkdtemp(prefix='ga', dir='/tmp')  # short, for sockets
  with contextlib.ExitStack() as stack:
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    made = (Loopback if forbidden() else Namespaces)(folder, settings)
    stack.callback(made.end)
    for number in (1, 2, 3):
      made.start(number)
    yield made


class Watched:
  """A run in another process, by its record."""

  def __init__(self, process, workdir, log):
    self.process = process
    self._log = log
    self._rows = str(workdir / 'trace.rows')
    self._began = time.monotonic()

  def rows(self, *kinds, start=0):
    rows = trace.read_rows(self._rows)[start:]
    return [row for row in rows if not kinds or row[1] in kinds]

  def contributors(self, start: int) -> set[int]:
    """The workers of which a gradient was applied since a row."""
    return {
      row[2]
      for row in self.rows(Kind.ARRIVE, start=start)
      if row[8] in (Action.APPLY, Action.ACCUMULATE)
    }

  def until(self, holds, what):
    deadline = time.monotonic() + SECONDS
    while not holds():
      ended = self.process.poll() is not None
      if ended or time.monotonic() > deadline:
        print(self._log.read_text()[-5000:])
        raise AssertionError(f'{what}: not, and the run has ended: {ended}')
      time.sleep(0.1)
    self.say(what)

  def say(self, what):
    print(f'{time.monotonic() - self._began:6.1f} s  {what}', flush=True)


@pytest.mark.parametrize('patience', ['patient', 'impatient'])
def test_a_run_survives_machines_cut_off_dead_and_joining(patience, tmp_path):
  if patience == 'impatient' and forbidden():
    pytest.skip(f'no network namespaces: {forbidden()}')
  everybody, workdir = {0, 1, 2}, tmp_path / 'run'
  python = (sys.executable, '-m')
  with (
    machines(IMPATIENT if patience == 'impatient' else {}) as there,
    open(tmp_path / 'log', 'w') as log,
  ):
    training = there.driver(
      *(*python, 'experiments.train', '--runtime=ray', '--method=ga'),
      *(f'--address={there.address}', '--workers=3', '--model=cnn'),
      *('--batch_size=64', '--straggler=0:40,1:40,2:40', '--epochs=150'),
      *(f'--lease_seconds={LEASE_SECONDS}', '--checkpoint_every=100'),
      *('--compression=topk', '--topk_ratio=0.1'),  # workers keep a state
      f'--workdir={workdir}',
      stdout=log,
      stderr=subprocess.STDOUT,
    )
    run = Watched(training, workdir, tmp_path / 'log')
    try:
      rehearse(there, run, everybody)
      training.wait(10 * SECONDS)
    finally:
      training.kill()
      training.wait()
    said = (tmp_path / 'log').read_text()
    assert training.returncode == 0, said[-5000:]
    run.say('the run is complete')
    for script, wanted in (
      ('verify', 'each in exactly one applied round'),
      ('replay', 'same bits'),
    ):
      done = subprocess.run(
        [*python, f'experiments.{script}', f'--workdir={workdir}'],
        check=False,
        capture_output=True,
        text=True,
      )
      assert done.returncode == 0, done.stdout + done.stderr
      assert wanted in done.stdout
      print(done.stdout)
  refused = json.loads((workdir / 'summary.json').read_text())['refused']
  print(refused)
  assert refused['lease'] >= 1


def rehearse(there, run, everybody):
  """What happens while the run goes on."""
  run.until(lambda: run.contributors(0) == everybody, 'all three contribute')
  assert [there.workers(number) for number in (1, 2, 3)] == [1, 1, 1]

  there.cut(2)
  run.say('machine 2 is cut off')
  time.sleep(LEASE_SECONDS + 2)
  start = len(run.rows())
  time.sleep(CUT_SECONDS - LEASE_SECONDS - 2)
  others = run.contributors(start)
  assert len(others) == 2  # they went on
  (cut,) = everybody - others
  start = len(run.rows())
  there.mend(2)
  run.say(f'it is back; worker {cut} was on it')
  # A node that Ray gave up ends when it hears of it, and is started again.
  run.until(
    lambda: cut in run.contributors(start) or there.ended(2),
    'it contributes, or has ended',
  )
  if there.ended(2):
    there.start(2)
    run.say('it is started again')
  run.until(lambda: run.contributors(start) == everybody, 'all contribute')

  start = len(run.rows())
  there.kill(3)
  run.say('machine 3 is dead')
  run.until(lambda: run.rows(Kind.LEAVE, start=start), 'its worker is lost')
  lost = run.rows(Kind.LEAVE, start=start)[0][2]
  there.start(4)
  run.say('machine 4 joins')
  run.until(
    lambda: any(row[2] == lost for row in run.rows(Kind.JOIN, start=start)),
    f'worker {lost} is on it',
  )
  assert there.workers(4) == 1
  start = len(run.rows())
  run.until(lambda: run.contributors(start) == everybody, 'all contribute')
