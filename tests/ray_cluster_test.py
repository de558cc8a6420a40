"""Who comes into a cluster, who is waited for, and what a worker asks for."""

import functools
import os
import signal
import socket
import stat
import threading
import time
import types

import jax
import pytest
import ray

import ga_jax
from experiments.records import record
from experiments.running import devices, environment, train
from experiments.running import ray as ray_running
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax import policies
from ga_jax.live import server
from ga_jax.live.ray import cluster, seats, signals, waiting
from ga_jax.live.ray import setup as setup_lib
from ga_jax.live.ray import share as share_lib
from tests import cases, ray_runs, scripts

# --- what a worker asks for


@pytest.mark.parametrize(
  ('share', 'resources', 'environment'),
  [
    (('cpu', 1, 1), {'CPU': 1}, {'JAX_PLATFORMS': 'cpu'}),
    (('cpu', 4, 1), {'CPU': 4}, {'JAX_PLATFORMS': 'cpu'}),
    (('cpu', 1, 2), {'CPU': 0.5}, {'JAX_PLATFORMS': 'cpu'}),
    (('gpu', 2, 1), {'CPU': 1, 'GPU': 2}, {}),
    (
      ('gpu', 1, 6),
      {'CPU': 0.1666, 'GPU': 0.1666},
      {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.1250'},
    ),
    (('tpu', 4, 1), {'CPU': 1, 'TPU': 4}, {}),
  ],
)
def test_what_a_worker_asks_for(share, resources, environment, monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  made = share_lib.Share(*share).checked()
  assert made.resources() == resources
  assert made.environment() == environment


def test_workers_share_the_memory_that_the_user_gives_jax(monkeypatch):
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.9')
  (part,) = share_lib.Share('gpu', 1, 3).environment().values()
  assert part == '0.3000'


@pytest.mark.parametrize(
  ('share', 'message'),
  [
    (('tpu', 1, 2), 'workers_per_device must be 1 on TPUs'),
    (('gpu', 2, 2), 'must be 1 where devices_per_worker is 2'),
    (('gpu', 1, 0), 'workers_per_device must be an integer of at least 1'),
    (('gpu', 1, 0.5), 'workers_per_device must be an integer'),
  ],
)
def test_what_cannot_be_shared_is_refused(share, message):
  with pytest.raises((ValueError, TypeError), match=message):
    share_lib.Share(*share).checked()


# --- what the server asks for


CPUS = share_lib.Share('cpu')
GPUS, PAIRS = share_lib.Share('gpu'), share_lib.Share('gpu', 2)
THIRDS = share_lib.Share('gpu', 1, 3)


@pytest.mark.parametrize(
  ('asked', 'share', 'workers', 'shards', 'here', 'elsewhere', 'found'),
  [
    ('auto', CPUS, 4, 1, {}, {}, CPUS),
    ('auto', CPUS, 4, 1, {'GPU': 1}, {}, GPUS),
    ('auto', CPUS, 4, 1, {}, {'GPU': 8}, CPUS),  # it cannot go there
    ('auto', CPUS, 4, 3, {}, {'GPU': 3}, GPUS),  # its shards can
    ('auto', CPUS, 4, 4, {}, {'GPU': 3}, CPUS),
    ('auto', GPUS, 2, 1, {'GPU': 1}, {'GPU': 2}, GPUS),
    ('auto', GPUS, 3, 1, {'GPU': 1}, {'GPU': 2}, CPUS),
    ('auto', GPUS, 3, 2, {'GPU': 3}, {'GPU': 2}, GPUS),
    ('auto', GPUS, 4, 2, {'GPU': 3}, {'GPU': 2}, CPUS),
    ('auto', PAIRS, 1, 1, {'GPU': 1}, {'GPU': 2}, GPUS),
    ('auto', PAIRS, 1, 1, {'GPU': 2}, {'GPU': 1}, CPUS),  # it needs both
    ('auto', THIRDS, 2, 1, {'GPU': 1}, {}, THIRDS),
    ('auto', THIRDS, 3, 1, {'GPU': 1}, {}, CPUS),
    ('auto', GPUS, 4, 1, {'TPU': 4, 'GPU': 4}, {}, share_lib.Share('tpu')),
    ('cpu', GPUS, 1, 1, {'GPU': 8}, {}, CPUS),
    ('gpu', GPUS, 8, 1, {}, {}, GPUS),
    ('gpu', share_lib.Share('cpu', 1, 3), 8, 1, {}, {}, GPUS),
    ('gpu', PAIRS, 8, 1, {}, {}, GPUS),
  ],
)
def test_what_the_server_asks_for(
  asked, share, workers, shards, here, elsewhere, found, monkeypatch
):
  resources = {'here': here, 'other': elsewhere, 'lost': {'GPU': 9}}
  nodes = [
    {'NodeID': name, 'Alive': name != 'lost', 'Resources': has}
    for name, has in resources.items()
  ]
  context = types.SimpleNamespace(get_node_id=lambda: 'here')
  monkeypatch.setattr(ray, 'nodes', lambda: nodes)
  monkeypatch.setattr(ray, 'get_runtime_context', lambda: context)
  assert seats.share_of(asked, share, workers, shards) == found


def test_a_server_on_the_cpu_has_ray_keep_nothing(monkeypatch):
  monkeypatch.delattr(seats, 'placement_group')
  with seats.kept(CPUS, 1, 1.0, print) as kept:
    assert kept.options('SPREAD', {'A': 'b'}) == {
      'num_cpus': 0,
      'num_gpus': 0,
      'resources': {},
      'scheduling_strategy': 'SPREAD',
      'runtime_env': {'env_vars': {'A': 'b', 'JAX_PLATFORMS': 'cpu'}},
    }


# --- who is waited for


class Actor:
  """An actor's handle, as far as waiting looks at it."""

  def __init__(self, worker_id):
    self._actor_id = bytes([worker_id])


class Awaited:
  """A wait on a cluster that is made up, by a clock of its own."""

  def __init__(self, monkeypatch, num_workers, gpus, seconds=60.0):
    self.now, self.told, self.states = 0.0, [], {}
    self.gpus = gpus
    for worker_id in range(num_workers):
      self.state(worker_id, 'PENDING_CREATION')
    monkeypatch.setattr(ray._private.state, 'actors', lambda: self.states)
    monkeypatch.setattr(ray, 'cluster_resources', self.has)
    monkeypatch.setattr(
      ray, 'nodes', lambda: [{'Alive': True, 'Resources': self.has()}]
    )
    self.wait = waiting.Waiting(
      {w: Actor(w) for w in range(num_workers)},
      {'CPU': 1.0, 'GPU': 1.0},
      seconds,
      self.told.append,
      lambda: self.now,
    )

  def has(self):
    return {'CPU': 8.0} | ({'GPU': float(self.gpus)} if self.gpus else {})

  def state(self, worker_id, state, pid=0):
    name = bytes([worker_id]).hex()
    self.states[name] = {'State': state, 'Pid': pid}

  def until(self, seconds):
    while self.now < seconds:
      self.now += 0.5
      self.wait.look()


def test_a_cluster_without_what_is_asked_for_is_told_and_given_up(monkeypatch):
  awaited = Awaited(monkeypatch, 2, gpus=0, seconds=60.0)
  awaited.until(4.0)
  assert not awaited.told
  awaited.until(7.0)
  asked = (
    'each asks for 1 CPU and 1 GPU, and the cluster has 8 CPU and 0 GPU on 1 '
    'node'
  )
  assert awaited.told == [
    f'note: workers 0, 1 of 2 find no room: {asked}; they come in when a node '
    'joins; where nobody does, the run ends after 60 s'
  ]
  with pytest.raises(server.WorkersMissingError) as caught:
    awaited.until(70.0)
  assert 60.0 < awaited.now < 62.0
  assert str(caught.value) == f'no worker came in 60 s: {asked}'
  assert len(awaited.told) == 1


def test_who_has_no_room_is_told_and_waited_for(monkeypatch):
  awaited = Awaited(monkeypatch, 2, gpus=1)
  awaited.until(20.0)
  assert not awaited.told  # the first one's process starts
  awaited.state(0, 'PENDING_CREATION', pid=1)  # it is here, and compiles
  awaited.until(27.0)
  (line,) = awaited.told
  assert line.startswith('note: worker 1 of 2 finds no room: each asks for')
  assert line.endswith('; it comes in when a node joins')
  awaited.state(0, 'ALIVE', pid=1)
  awaited.until(300.0)
  awaited.gpus = 2
  awaited.state(1, 'ALIVE', pid=2)
  awaited.until(310.0)
  assert len(awaited.told) == 1
  awaited.gpus = 0
  awaited.state(0, 'RESTARTING', pid=1)  # its node is lost
  awaited.state(1, 'DEAD')  # it failed: the run says so
  awaited.until(900.0)
  assert len(awaited.told) == 2
  assert awaited.told[1].startswith('note: worker 0 of 2 finds no room')


def test_a_worker_that_is_started_again_is_somewhere(monkeypatch):
  awaited = Awaited(monkeypatch, 1, gpus=1)
  awaited.state(0, 'ALIVE', pid=1)
  awaited.until(3.0)
  awaited.state(0, 'RESTARTING', pid=2)
  awaited.until(300.0)
  assert not awaited.told


def test_processes_that_start_slowly_are_not_told_at_once(monkeypatch):
  awaited = Awaited(monkeypatch, 2, gpus=2)
  awaited.until(29.0)
  assert not awaited.told
  awaited.until(33.0)  # others may have the room
  assert len(awaited.told) == 1


@pytest.fixture(scope='module')
def one_gpu():
  """Ray hands out a GPU that is not there: JAX computes on the CPU."""
  with ray_runs.cluster(num_cpus=2, num_gpus=1) as one:
    yield one


def job():
  return cases.tiny_job(cases.rule('ga', 0.02), policies.asynchronous())


def run(**options):
  made = job()
  result = ga_jax.run_on_ray(
    made,
    **{
      'num_workers': 2,
      'num_batches': 60,
      'accelerator': 'gpu',
      **options,
    },
  )
  ray_runs.check(made, result)
  return result


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_goes_on_with_the_workers_that_found_room(one_gpu, capsys):
  """The other one is told, and missing in the result."""
  result = run(num_batches=8_000)
  assert len(result.workers) == 1
  said = capsys.readouterr().err
  assert 'of 2 finds no room: each asks for 1 CPU and 1 GPU, and the clust' in (
    said
  )


@pytest.mark.ray
@pytest.mark.slow
def test_workers_share_a_device(one_gpu):
  assert len(run(workers_per_device=2, num_batches=500).workers) == 2
  half = functools.partial(run, accelerator='cpu', num_workers=4)
  assert len(half(workers_per_device=2, num_batches=2000).workers) == 4


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_without_a_folder_writes_nothing(one_gpu, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  settings = check.check(
    settings_lib.Settings(
      runtime='ray', address=one_gpu.address, model='mlp', epochs=0.5
    )
  )
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    done = train.train(settings)
  assert done.summary['batches'] == 22
  assert done.summary['missing_workers'] == []
  assert not list(tmp_path.iterdir())


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_finds_no_room_is_given_up(one_gpu, tmp_path):
  workdir = f'--workdir={tmp_path}'
  done = ray_runs.script(
    'train',
    *('--runtime=ray', f'--address={one_gpu.address}', '--workers=2'),
    *('--accelerator=gpu', '--devices_per_worker=2', '--wait_for_workers=8'),
    *('--method=ga', '--model=mlp', '--epochs=1', workdir),
  )
  assert done.returncode == 1, done.stdout + done.stderr
  assert 'Traceback' not in done.stderr
  asked = 'each asks for 1 CPU and 2 GPU, and the cluster has 2 CPU and 1 GPU'
  assert f'note: workers 0, 1 of 2 find no room: {asked}' in done.stderr
  last = done.stderr.splitlines()[-1]
  assert last.startswith(f'error: no worker came in 8 s: {asked} on 1 node; ')
  assert last.endswith(f'go on: python -m experiments.train --resume {workdir}')


def seen(self):
  """What an actor has: the devices that Ray gave it, its environment."""
  return ray.get_runtime_context().get_accelerator_ids()['GPU'], dict(
    os.environ
  )


def seen_by_shards(self):
  """What the shards of a server have."""
  shards = self._live_run._execution._core._shards
  return ray.get([one._actor.__ray_call__.remote(seen) for one in shards])


def has(actor):
  return ray.get(actor.__ray_call__.remote(seen), timeout=ray_runs.SECONDS)


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_keeps_its_device_when_it_is_started_again(one_gpu, tmp_path):
  """Another program waits for it all the time, and gets it after the run."""
  live = ga_jax.Live(trace_path=str(tmp_path / 'rows'))
  setup = setup_lib.Setup(job, 1, 400, live)
  share = seats.share_of('auto', CPUS, 1, 1)
  assert share == GPUS
  with seats.kept(share, 1, 60.0, pytest.fail) as kept:
    other = ray.remote(num_gpus=1, num_cpus=0)(lambda: 'here').remote()
    with ray_runs.Run(setup, seats=kept) as going:
      devices, env = has(going.actors.server)
      assert devices == ['0']
      assert env['CUDA_VISIBLE_DEVICES'] == '0'
      assert has(going.actors.workers[0])[0] == []
      going.reach(20)
      going.kill_server()
      going.reach(21)
      assert has(going.actors.server)[0] == ['0']
      going.finish()
    assert not ray.wait([other], timeout=0)[0]
  assert ray.get(other, timeout=ray_runs.SECONDS) == 'here'


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_is_one_of_those_who_share_a_device(one_gpu):
  workers = share_lib.Share('gpu', 1, 3)
  setup = setup_lib.Setup(job, 2, 60)
  share = seats.share_of('gpu', workers, 2, 1)
  with (
    seats.kept(share, 1, 60.0, pytest.fail) as kept,
    ray_runs.Run(setup, share=workers, seats=kept) as going,
  ):
    for actor in (going.actors.server, *going.actors.workers.values()):
      devices, env = has(actor)
      assert devices == ['0']
      assert env['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.2500'
    going.finish()


@pytest.mark.ray
@pytest.mark.slow
def test_shards_have_devices_of_their_own_and_the_server_none(one_gpu):
  half = share_lib.Share('gpu', 1, 2)
  setup = setup_lib.Setup(job, 1, 100, shards=2)
  with (
    seats.kept(half, 2, 60.0, pytest.fail) as kept,
    ray_runs.Run(setup, seats=kept) as going,
  ):
    going.reach(1)
    devices, env = has(going.actors.server)
    assert (devices, env['JAX_PLATFORMS']) == ([], 'cpu')
    asked = going.actors.server.__ray_call__.remote(seen_by_shards)
    for devices, env in ray.get(asked, timeout=ray_runs.SECONDS):
      assert devices == ['0']
      assert env['JAX_PLATFORMS'] == ''
      assert env['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.3750'
    result = ray.get(going.result, timeout=ray_runs.SECONDS)
    ray_runs.check(job(), result, shards=2)


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_without_room_is_told_and_given_up(one_gpu, capsys):
  begun = time.monotonic()
  with pytest.raises(server.ServerMissingError) as caught:
    run(num_workers=1, server_accelerator='tpu')
  assert time.monotonic() < begun + 5.0
  assert str(caught.value) == (
    "no room for the server: it asks for 1 TPU of the driver's machine, which "
    'has 0 TPU; the cluster has 0 TPU on 1 node'
  )
  with pytest.raises(server.ServerMissingError) as caught:
    run(num_workers=1, server_accelerator='gpu', shards=2, wait_for_workers=7)
  asked = 'each of its 2 shards asks for 1 GPU, and the cluster has 1 GPU on'
  assert str(caught.value).startswith(f'no room for the server in 7 s: {asked}')
  said = capsys.readouterr().err
  assert said.count(f'note: the server finds no room: {asked} 1 node; ') == 1
  assert run(num_workers=1, accelerator='cpu', server_accelerator='gpu')


@pytest.mark.ray
@pytest.mark.slow
def test_the_scripts_say_what_the_server_computes_with(one_gpu, tmp_path):
  def train(folder, *flags):
    return ray_runs.script(
      'train',
      *('--runtime=ray', f'--address={one_gpu.address}', '--accelerator=cpu'),
      *('--model=mlp', '--epochs=0.5', f'--workdir={tmp_path / folder}'),
      *flags,
    )

  done = train('refused', '--server_accelerator=tpu')
  assert done.returncode == 1, done.stdout + done.stderr
  assert 'error: no room for the server: it asks for 1 TPU' in done.stderr
  assert 'Traceback' not in done.stderr
  done = train('run')
  assert done.returncode == 0, done.stdout + done.stderr
  line = 'device: cpu, of the Ray cluster, for every worker; gpu for the server'
  assert line in done.stderr.splitlines()
  assert 'Ray gave the server a GPU, and JAX computes on the CPU' in (
    done.stdout + done.stderr
  )
  assert 'server on gpu' in done.stdout.splitlines()
  summary = record.load_json(str(tmp_path / 'run'), 'summary.json')
  assert summary['server_accelerator'] == 'gpu'
  config = record.load_json(str(tmp_path / 'run'), 'config.json')
  assert config['server_accelerator'] == 'auto'
  for name in ('verify', 'replay'):
    done = ray_runs.script(name, f'--workdir={tmp_path / "run"}')
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_server_on_another_platform_than_the_driver_is_told(capsys):
  recorded = environment.environment()
  live_run = types.SimpleNamespace(telemetry=dict, missing=tuple)
  settings = settings_lib.Settings(model='mlp')

  def begin(recorded):
    follow = ray_running._following(
      settings, False, recorded, 'cpu', print, live_run
    )
    assert follow.server == 'cpu'
    return capsys.readouterr().err

  assert begin(recorded) == ''
  assert begin({**recorded, 'platform': 'gpu'}) == (
    'note: the server computes with something else than the driver, so the run '
    "will not replay to the same bits: platform was 'gpu', is 'cpu'\n"
  )


def test_the_driver_leaves_the_memory_of_gpus_to_the_others(monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_PREALLOCATE', raising=False)
  said, real = [], jax.local_devices

  def starts():
    said.append(os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE'))
    return real()

  monkeypatch.setattr(jax, 'local_devices', starts)
  devices.use(settings_lib.Settings(runtime='ray'))
  assert said[0] == 'false'
  assert said[-1] is None
  monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'true')
  said.clear()
  devices.use(settings_lib.Settings(runtime='ray'))
  assert set(said) == {'true'}


# --- who comes in


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A home, and no settings of Ray's; a cluster is never started."""
  for name in [name for name in os.environ if name.startswith('RAY_')]:
    monkeypatch.delenv(name)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr(ray, 'is_initialized', lambda: False)
  monkeypatch.setattr(ray, 'init', lambda **_: None)
  return tmp_path


@pytest.mark.parametrize('address', ['local', 'auto'])
def test_a_cluster_without_a_token_is_refused(address, home, monkeypatch):
  monkeypatch.setenv('RAY_AUTH_MODE', 'disabled')
  with pytest.raises(cluster.AccessError, match='RAY_AUTH_MODE=disabled: '):
    ga_jax.run_on_ray(job(), num_workers=1, num_batches=1, address=address)
  ended = scripts.call(
    'train',
    *('--runtime=ray', f'--address={address}', f'--workdir={home}/run'),
  )
  assert ended.code == 2
  assert ended.err == (
    f'error: --address={address}: RAY_AUTH_MODE=disabled: without a token '
    'whoever reaches this machine runs programs on it; unset it\n'
  )


@pytest.mark.parametrize('variable', [None, 'RAY_AUTH_TOKEN_PATH'])
def test_a_token_that_others_can_read_is_refused(variable, home, monkeypatch):
  path = home / '.ray' / 'auth_token'
  if variable:
    path = home / 'a token'
    monkeypatch.setenv(variable, str(path))
  path.parent.mkdir(exist_ok=True)
  path.write_text('x' * 64)
  path.chmod(0o644)
  with pytest.raises(cluster.AccessError, match='is open to others') as caught:
    cluster.connect('local', 1)
  command = str(caught.value).partition('machine: ')[2]
  assert os.system(command) == 0
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  cluster.connect('local', 1)


def test_what_a_cluster_leaves_on_disk_is_private(home, monkeypatch):
  monkeypatch.setenv('RAY_TMPDIR', str(home))
  given = {}
  monkeypatch.setattr(ray, 'init', given.update)
  cluster.connect('local', 1)
  folder = home / f'ga_ray-{os.getuid()}'
  assert given['_temp_dir'] == str(folder / 'local')
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  folder.chmod(0o777)
  cluster.connect('local', 1)
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  assert stat.S_IMODE((home / '.ray/auth_token').stat().st_mode) == 0o600


def test_a_folder_that_leads_elsewhere_is_refused(home, monkeypatch):
  monkeypatch.setenv('RAY_TMPDIR', str(home))
  (home / 'theirs').mkdir()
  (home / f'ga_ray-{os.getuid()}').symlink_to(home / 'theirs')
  with pytest.raises(cluster.AccessError, match='belongs to somebody else'):
    cluster.connect('local', 1)


@pytest.mark.parametrize('exists', [False, True])
def test_a_cluster_that_is_not_there_leaves_no_folder(exists, home):
  listening = socket.socket()
  listening.bind(('127.0.0.1', 0))  # and nobody listens
  address = f'127.0.0.1:{listening.getsockname()[1]}'
  if exists:
    (home / 'run').mkdir()
  ended = scripts.call(
    'train',
    *('--runtime=ray', f'--address={address}', f'--workdir={home}/run'),
  )
  listening.close()
  assert (ended.code, ended.out) == (2, '')
  assert len(ended.err.splitlines()) == 1
  assert f'error: --address={address}: nothing answers at ' in ended.err
  assert (home / 'run').exists() == exists


@pytest.mark.ray
@pytest.mark.slow
def test_another_token_is_told_at_once(one_gpu, tmp_path, monkeypatch):
  wrong = tmp_path / 'wrong'
  wrong.write_text(64 * '0')
  wrong.chmod(0o600)
  monkeypatch.setenv('RAY_AUTH_TOKEN_PATH', str(wrong))
  done = ray_runs.script(
    'train',
    *('--runtime=ray', f'--address={one_gpu.address}'),
    f'--workdir={tmp_path / "run"}',
  )
  assert done.returncode == 2
  [ray_says, line] = done.stderr.splitlines()
  assert 'InvalidAuthToken' in ray_says
  assert 'does not take the token of this process' in line
  assert not (tmp_path / 'run').exists()


# --- signals


@pytest.fixture
def handled(monkeypatch):
  """Numbers of the signals that came to the caller's own handler."""
  numbers = []
  before = {n: signal.getsignal(n) for n in signals.SIGNALS}
  for number in signals.SIGNALS:
    signal.signal(number, lambda number, frame: numbers.append(number))
  yield numbers
  for number, handler in before.items():
    signal.signal(number, handler)


def test_a_cluster_leaves_the_handlers_alone(home, handled, monkeypatch):
  def init(**options):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

  monkeypatch.setattr(ray, 'init', init)
  monkeypatch.setattr(cluster, '_check_answer', lambda address: None)
  cluster.connect('auto', 1)
  signal.raise_signal(signal.SIGTERM)
  assert handled == [signal.SIGTERM]


@pytest.mark.parametrize('number', signals.SIGNALS)
def test_a_signal_comes_to_the_caller_after_the_run(number, handled, capsys):
  with signals.deferred() as told:
    assert told.number is None
    signal.raise_signal(number)
    assert told.number == number
    assert not handled
    signal.raise_signal(number)
    assert handled == [number]  # the second one, at once
  assert handled == [number, number]
  assert capsys.readouterr().err.count('once more stops at once') == 1
  signal.raise_signal(number)
  assert len(handled) == 3


def test_a_signal_that_is_ignored_stays_so(handled):
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with signals.deferred() as told:
    signal.raise_signal(signal.SIGINT)
    assert told.number is None


def test_other_threads_install_no_handlers(handled):
  def inside():
    with signals.deferred(), signals.kept():
      found.append(signal.getsignal(signal.SIGTERM))

  found, mine = [], signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=inside)
  thread.start()
  thread.join()
  assert found == [mine]
