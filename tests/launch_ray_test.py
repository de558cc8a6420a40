"""The scripts that bring up Ray clusters.

No cloud and no Slurm is reached from here: gcloud, srun and scontrol are
replaced by programs that write down what they are told.
"""

import concurrent.futures
import contextlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

import pytest
from packaging import requirements

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('ray') is None, reason='Ray is not installed'
)
ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / 'launch'
CLUSTERS = sorted(LAUNCH.glob('ray_cluster_*.yaml'))
TOKEN = re.compile(r'[0-9a-f]{64}')


@pytest.fixture
def box(tmp_path):
  """A home and a PATH of its own, and none of the caller's Ray settings."""
  return make_box(tmp_path)


def make_box(folder):
  (folder / 'home').mkdir()
  (folder / 'bin').mkdir()
  kept = {
    k: v
    for k, v in os.environ.items()
    if not k.startswith('RAY_') and k != 'PYTHON'
  }
  return {
    **kept,
    'HOME': str(folder / 'home'),
    'VENV': sys.prefix,
    'PATH': f'{folder / "bin"}:{os.environ["PATH"]}',
  }


@pytest.fixture
def temp_dir():
  """Short, for Ray's sockets."""
  folder = tempfile.mkdtemp(prefix='ga', dir='/tmp')
  yield folder
  shutil.rmtree(folder, ignore_errors=True)


def bash(script, *arguments, env, cwd=ROOT, **options):
  return subprocess.run(
    ['bash', str(LAUNCH / script), *arguments],
    env=env,
    cwd=cwd,
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


def program(box, name, text):
  """Puts a program in front of PATH."""
  path = pathlib.Path(box['PATH'].split(':')[0]) / name
  path.write_text(text)
  path.chmod(0o755)
  return path


def recorded(path):
  """What a program wrote down, one JSON list per call."""
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


RECORD = f"""#!{sys.executable} -IS
import json, os, sys
def record(path, words):
  with open(path, 'a') as file:
    file.write(json.dumps(words) + '\\n')
"""


# --- bad input


@pytest.mark.parametrize(
  ('script', 'arguments', 'message'),
  [
    ('ray_head.sh', ['--bogus'], '--bogus: no such flag; --help lists them'),
    ('ray_head.sh', ['--port=x'], '--port=x: must be a whole number, at least'),
    ('ray_head.sh', ['--temp_dir=/tmp/' + 40 * 'a'], 'at most 32 letters'),
    ('ray_head.sh', ['--interface=nowhere0'], 'name one interface of this'),
    ('ray_head.sh', ['--interface=0.0.0.0'], 'name one interface of this'),
    ('ray_worker.sh', [], "--address=: must be the head's HOST:PORT"),
    (
      'ray_worker.sh',
      ['--address=a:1'],
      'no token in .*: make one on the head',
    ),
    ('local_cluster.sh', ['--nodes=0'], '--nodes=0: must be a whole number'),
    ('local_cluster.sh', ['--add=1'], 'no nodes run in .*; start some first'),
    ('local_cluster.sh', ['--kill=7'], '--kill=7: no such node'),
    ('ray_token.sh', ['token'], 'token: no such flag'),
    ('ray_job.sh', ['--method=ga'], '--workdir=DIR is missing'),
    (
      'ray_job.sh',
      ['--workdir=nowhere', '--stop'],
      'no run goes on in nowhere',
    ),
    (
      'ray_install.sh',
      ['rocm'],
      'rocm: must be cpu, cuda12, cuda13, tpu or auto',
    ),
    ('slurm.sbatch', ['--workdir=w'], 'this is a Slurm job: sbatch'),
    ('tpu_vm.sh', [], '--zone=: must be a zone with TPUs'),
    (
      'tpu_vm.sh',
      ['--zone=us-central1-a', '--accelerator=v5litepod-16'],
      'must be a type with one host',
    ),
    (
      'tpu_vm.sh',
      ['--zone=us-central1-a', '--name=A'],
      '--name=A: must be small letters',
    ),
  ],
)
def test_bad_input_is_named_in_one_line(
  script, arguments, message, box, temp_dir
):
  box['RAY_TMPDIR'] = temp_dir
  done = bash(script, *arguments, env=box)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('error: ')
  assert done.stderr.count('\n') == 1
  assert re.search(message, done.stderr)


@pytest.mark.parametrize(
  'script',
  [
    *('ray_head.sh', 'ray_worker.sh', 'ray_token.sh', 'ray_job.sh'),
    *('ray_install.sh', 'local_cluster.sh', 'tpu_vm.sh', 'slurm.sbatch'),
  ],
)
def test_every_script_has_a_help_screen(script, box):
  done = bash(script, '--help', env=box)
  assert done.returncode == 0
  assert script in done.stdout
  assert 'set -euo' not in done.stdout


def test_the_slurm_script_parses():
  subprocess.run(['bash', '-n', LAUNCH / 'slurm.sbatch'], check=True)


# --- the token


def test_a_token_is_made_once_and_for_its_owner_only(box, tmp_path):
  box['RAY_AUTH_TOKEN_PATH'] = str(tmp_path / 'new' / 'token')
  with concurrent.futures.ThreadPoolExecutor() as pool:  # also side by side
    made = list(
      pool.map(lambda _: bash('ray_token.sh', env=box, umask=0), range(4))
    )
  path = tmp_path / 'new' / 'token'
  token = path.read_text()
  assert TOKEN.fullmatch(token)
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
  assert [p.name for p in path.parent.iterdir()] == ['token']
  for done in made:
    assert (done.returncode, done.stdout) == (0, f'{path}\n'), done.stderr
    assert token not in done.stderr


def test_a_token_that_others_can_read_is_refused(box, tmp_path):
  path = tmp_path / 'token'
  path.write_text('x' * 64)
  path.chmod(0o640)
  done = bash('ray_token.sh', f'--token_file={path}', env=box)
  assert done.returncode == 2
  assert f'can be read by others: chmod 600 {path}' in done.stderr


@pytest.mark.parametrize(
  ('variable', 'value', 'message'),
  [
    ('RAY_AUTH_MODE', 'disabled', 'no cluster is started without a token'),
    ('RAY_AUTH_TOKEN', 64 * 'a', 'would override .*; unset it'),
  ],
)
def test_settings_that_would_go_round_the_token_are_refused(
  variable, value, message, box, temp_dir
):
  box |= {variable: value, 'RAY_TMPDIR': temp_dir}
  done = bash('ray_head.sh', env=box)
  assert done.returncode == 2
  assert re.search(message, done.stderr)
  assert 64 * 'a' not in done.stderr


def test_no_cluster_is_open_to_the_network_without_a_token(box, temp_dir):
  interface = subprocess.run(
    [sys.executable, str(LAUNCH / 'ray_node.py'), 'address'],
    capture_output=True,
    text=True,
    check=False,
  ).stdout.strip()
  if not interface:
    pytest.skip('this machine has no network')
  box['RAY_TMPDIR'] = temp_dir
  done = bash('ray_head.sh', f'--interface={interface}', env=box)
  assert done.returncode == 2
  assert f'--interface={interface} is open to the network' in done.stderr
  assert 'make one (bash launch/ray_token.sh), copy' in done.stderr
  assert not os.listdir(temp_dir)
  assert not (pathlib.Path(box['HOME']) / '.ray').exists()


# --- a cluster on this machine


def processes():
  """Every process, as PID: command line."""
  found = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      found[int(path.parent.name)] = path.read_bytes().replace(b'\0', b' ')
    except OSError:
      continue  # it has ended
  # One that is over but not yet waited for has no command line.
  return {
    pid: line.decode('utf-8', 'replace') for pid, line in found.items() if line
  }


def sessions(temp_dir):
  """The processes of every node, by the number of its session."""
  recorded = {
    int(path.read_text().split()[0])
    for path in pathlib.Path(temp_dir).glob('*.session')
  }
  found = []
  for pid in processes():
    try:
      if os.getsid(pid) in recorded:
        found.append(pid)
    except OSError:
      continue
  return found


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
  """Two nodes, and every command line that was seen while they came up."""
  box = make_box(tmp_path_factory.mktemp('cluster'))
  temp_dir = tempfile.mkdtemp(prefix='ga', dir='/tmp')
  where = f'--temp_dir={temp_dir}'
  seen = set()
  try:
    starting = subprocess.Popen(
      ['bash', LAUNCH / 'local_cluster.sh', '--nodes=2', '--cpus=1', where],
      env=box,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    while starting.poll() is None:
      seen |= set(processes().values())
      time.sleep(0.1)
    said = starting.stdout.read()
    assert starting.returncode == 0, said
    environment = pathlib.Path(temp_dir, 'env').read_text()
    box |= dict(re.findall(r"(RAY_\w+)='?([^\s']+)", environment))
    yield {'box': box, 'temp_dir': temp_dir, 'seen': seen, 'said': said}
  finally:
    mine = sessions(temp_dir)
    stopped = bash('local_cluster.sh', '--stop', where, env=box)
    deadline = time.monotonic() + 30  # where the machine is busy
    while set(mine) & set(processes()) and time.monotonic() < deadline:
      time.sleep(0.2)
    left = [line for pid, line in processes().items() if pid in mine]
    for pid in mine:  # should it have failed
      if pid in processes():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(temp_dir, ignore_errors=True)
  assert stopped.returncode == 0, stopped.stderr
  assert mine
  assert not left


CLIENT = """
import os, ray
ray.init(log_to_driver=False, logging_level='ERROR')
inside = ray.remote(lambda: ray.get_runtime_context().get_node_id())
nodes = {node['NodeID'] for node in ray.nodes() if node['Alive']}
assert ray.get(inside.remote()) in nodes
print('admitted', len(nodes))
"""


def client(box, **settings):
  """A program that connects; it is refused at once, not after 20 tries."""
  env = {**box, 'RAY_NUM_REDIS_GET_RETRIES': '1', **settings}
  for name in [name for name, value in env.items() if value is None]:
    del env[name]
  return subprocess.run(
    [sys.executable, '-c', CLIENT],
    env=env,
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )


@pytest.mark.ray
def test_only_programs_with_the_token_come_in(cluster, tmp_path):
  box = cluster['box']
  wrong = tmp_path / 'wrong'
  wrong.write_text(64 * '0')
  cases = [
    {'RAY_AUTH_MODE': None, 'RAY_AUTH_TOKEN_PATH': None},
    {'RAY_AUTH_TOKEN_PATH': str(wrong)},
    {'RAY_NUM_REDIS_GET_RETRIES': None},
  ]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    without, other, right = pool.map(lambda case: client(box, **case), cases)
  for refused in (without, other):
    assert refused.returncode == 1
    assert 'InvalidAuthToken' in refused.stderr
    assert 'ConnectionError: Failed to connect to Ray' in refused.stderr
    assert 'admitted' not in refused.stdout
  assert right.returncode == 0, right.stderr
  assert right.stdout == 'admitted 2\n'


@pytest.mark.ray
def test_the_token_stays_in_its_file(cluster):
  path = pathlib.Path(cluster['temp_dir'], 'token')
  token = path.read_text()
  assert TOKEN.fullmatch(token)
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
  lines = cluster['seen'] | set(processes().values())
  assert any('ray start' in line or 'raylet' in line for line in lines)
  assert not any(token in line for line in lines)
  assert token not in cluster['said']
  for folder, _, names in os.walk(cluster['temp_dir']):
    for name in names:
      file = pathlib.Path(folder, name)
      if file != path and file.is_file():
        assert token.encode() not in file.read_bytes(), file


@pytest.mark.ray
def test_the_cluster_listens_on_loopback_only(cluster):
  sockets = set()
  for pid in sessions(cluster['temp_dir']):
    for link in pathlib.Path(f'/proc/{pid}/fd').glob('*'):
      try:
        sockets |= set(re.findall(r'socket:\[(\d+)\]', os.readlink(link)))
      except OSError:
        continue
  listening = []
  for table in ('tcp', 'tcp6'):
    for line in pathlib.Path('/proc/net', table).read_text().splitlines()[1:]:
      _, local, _, state, *rest = line.split()
      if state == '0A' and rest[5] in sockets:
        listening.append(local.split(':')[0])
  assert len(listening) > 4
  ours = {'0100007F', '0000000000000000FFFF00000100007F'}  # 127.0.0.1
  assert set(listening) <= ours


@pytest.mark.ray
def test_a_second_start_is_refused(cluster):
  done = bash(
    'local_cluster.sh', f'--temp_dir={cluster["temp_dir"]}', env=cluster['box']
  )
  assert done.returncode == 2
  assert 'nodes run in' in done.stderr


@pytest.mark.ray
def test_stopping_spares_processes_that_are_not_its_own(cluster):
  temp_dir = cluster['temp_dir']
  decoy = subprocess.Popen(
    ['bash', '-c', f'exec -a "ray::Worker {temp_dir}/node-2" sleep 60'],
    start_new_session=True,
  )
  try:
    before = sessions(temp_dir)
    done = bash(
      'local_cluster.sh',
      '--kill=2',
      f'--temp_dir={temp_dir}',
      env=cluster['box'],
    )
    assert done.returncode == 0, done.stderr
    listed = bash(
      'local_cluster.sh', '--list', f'--temp_dir={temp_dir}', env=cluster['box']
    )
    assert re.fullmatch(r'node-1: [1-9]\d* processes\n', listed.stdout)
    assert 0 < len(sessions(temp_dir)) < len(before)
    assert decoy.poll() is None
  finally:
    decoy.kill()
    decoy.wait()


# --- configurations for `ray up`


def configuration(path):
  import yaml  # comes with Ray

  return yaml.safe_load(path.read_text())


@pytest.mark.parametrize('path', CLUSTERS, ids=lambda path: path.stem)
def test_ray_accepts_the_configuration(path):
  from ray.autoscaler._private import util

  config = configuration(path)
  prepared = util.prepare_config(config)  # with the provider's defaults
  util.validate_config(prepared)
  head, worker = (
    prepared['available_node_types'][k] for k in node_types(config)
  )
  assert (head['min_workers'], head['max_workers']) == (0, 0)
  assert 0 <= worker['min_workers'] < worker['max_workers']
  assert prepared['idle_timeout_minutes'] <= 10
  bad = {**prepared, 'idle_timeout_minute': 5}
  with pytest.raises(Exception, match='idle_timeout_minute'):
    util.validate_config(bad)


def node_types(config):
  """The head's first."""
  return sorted(
    config['available_node_types'], key=lambda k: k != config['head_node_type']
  )


def test_there_is_a_cluster_file_for_each_kind_of_machine():
  assert [path.stem for path in CLUSTERS] == [
    'ray_cluster_aws_gpu',
    'ray_cluster_gcp_gpu',
    'ray_cluster_gcp_tpu',
  ]


@pytest.mark.parametrize('path', CLUSTERS, ids=lambda path: path.stem)
def test_workers_are_spot_machines_and_the_head_is_not(path):
  config = configuration(path)
  head, worker = (
    json.dumps(config['available_node_types'][k]).lower()
    for k in node_types(config)
  )
  assert 'spot' in worker
  assert 'spot' not in head
  assert 'preemptible' not in head


@pytest.mark.parametrize('path', CLUSTERS, ids=lambda path: path.stem)
def test_every_node_starts_with_the_token(path):
  config = configuration(path)
  assert not TOKEN.search(path.read_text())
  assert config['file_mounts']['~/.ray/auth_token'] == '~/.ray/auth_token'
  assert 'chmod 600 ~/.ray/auth_token' in config['setup_commands'][0]
  for node in ('head', 'worker'):
    stop, start = config[f'{node}_start_ray_commands']
    assert stop == '~/ga_jax/.venv/bin/ray stop'
    assert start.startswith('test -s ~/.ray/auth_token && ')
    assert ' RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 ~/ga_jax' in start
  head, worker = (
    config[f'{node}_start_ray_commands'][1] for node in ('head', 'worker')
  )
  assert '--dashboard-host=127.0.0.1' in head
  assert '--autoscaling-config=~/ray_bootstrap_config.yaml' in head
  assert '--address=$RAY_HEAD_IP:6379' in worker


@pytest.mark.parametrize('path', CLUSTERS, ids=lambda path: path.stem)
def test_the_files_that_are_copied_are_enough_to_install(path):
  config = configuration(path)
  mounts = {
    remote: local
    for remote, local in config['file_mounts'].items()
    if remote.startswith('~/ga_jax/')
  }
  for remote, local in mounts.items():
    assert remote == f'~/ga_jax/{local}'
    assert (ROOT / local).exists()
  project = (ROOT / 'pyproject.toml').read_text()
  for needed in ('README.md', 'LICENSE', 'requirements.txt'):
    assert f"'{needed}'" in project
    assert needed in mounts.values()
  assert {'ga_jax', 'experiments', 'launch'} <= set(mounts.values())
  extra = 'tpu' if 'tpu' in path.stem else 'cuda12'
  assert f'ray_install.sh {extra} ' in config['worker_setup_commands'][-1]
  assert 'ray_install.sh cpu ' in config['head_setup_commands'][-1]


# --- what is installed on a bare machine


def test_every_machine_gets_the_same_versions(box, tmp_path):
  checkout = tmp_path / 'ga_jax'
  shutil.copytree(LAUNCH, checkout / 'launch')
  log = tmp_path / 'calls'
  program(
    box,
    'curl',
    RECORD + f'record({str(log)!r}, ["curl", *sys.argv[1:]])\nprint("true")\n',
  )
  program(
    box,
    'uv',
    RECORD
    + f"""
if sys.argv[1] == '--version':
  print('uv 0.0.1')
  sys.exit()
record({str(log)!r}, ['uv', *sys.argv[1:]])
if sys.argv[1] == 'venv':
  os.makedirs('.venv/bin')
  os.symlink('/bin/true', '.venv/bin/python')
""",
  )
  done = subprocess.run(
    ['bash', checkout / 'launch' / 'ray_install.sh', 'tpu', 'more'],
    env=box,
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  curl, venv, pip = recorded(log)
  assert re.fullmatch(
    r'https://astral\.sh/uv/\d+\.\d+\.\d+/install\.sh', curl[-1]
  )
  assert '--managed-python' in venv
  assert pip[:3] == ['uv', 'pip', 'install']
  assert pip[3:6] == ['--quiet', '--editable', '.[ray]']
  assert pip[-1] == 'more'
  ray, jax = (requirements.Requirement(word) for word in pip[6:8])
  assert jax.extras == {'tpu'}
  project = (ROOT / 'pyproject.toml').read_text()
  allowed = {
    'ray': re.search(r"^ray = \['(.*)'\]$", project, re.M).group(1),
    'jax': (ROOT / 'requirements.txt').read_text().split('\njax')[1],
  }
  for pinned, line in (
    (ray, allowed['ray']),
    (jax, 'jax' + allowed['jax'].split('\n')[0]),
  ):
    (version,) = (specifier.version for specifier in pinned.specifier)
    assert requirements.Requirement(line).specifier.contains(version)
    assert str(pinned.specifier) == f'=={version}'


# --- a run on the head


@pytest.fixture
def checkout(box, tmp_path, temp_dir):
  """A copy of the scripts with a Python that writes down what it is told."""
  folder = tmp_path / 'checkout'
  shutil.copytree(LAUNCH, folder / 'launch')
  python = folder / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text(
    RECORD.replace('import json', 'import json, signal, time')
    + f"""
if sys.argv[1] != '-m':
  os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
settings = {{k: v for k, v in os.environ.items() if k.startswith('RAY_')}}
record({str(tmp_path / 'runs')!r}, [sys.argv[1:], settings])
print('trained', flush=True)
(workdir,) = (w.split('=')[1] for w in sys.argv if w.startswith('--workdir='))
def finish(number, frame):
  os.makedirs(workdir + '/checkpoints/000000-step-1')
  with open(workdir + '/summary.json', 'w') as file:
    file.write('{{\\n  "stopped": true\\n}}')
  sys.exit(0)
signal.signal(signal.SIGTERM, finish)
if os.path.exists({str(tmp_path / 'wait')!r}):
  time.sleep(60)
sys.exit(3)
"""
  )
  python.chmod(0o755)
  box |= {'RAY_TMPDIR': temp_dir}
  del box['VENV']
  bash('ray_token.sh', env=box)
  return folder


def job(checkout, box, *arguments):
  return subprocess.run(
    ['bash', f'{checkout}/launch/ray_job.sh', '--workdir=runs/a', *arguments],
    env=box,
    cwd='/',
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )


def test_a_job_goes_on_where_it_was_interrupted(checkout, box, tmp_path):
  runs = tmp_path / 'runs'
  done = job(checkout, box, '--method=ga', '--workers=2')
  assert (done.returncode, done.stdout) == (3, 'trained\n'), done.stderr
  ((words, settings),) = recorded(runs)
  assert words == [
    *('-m', 'experiments.train', '--runtime=ray', '--address=auto'),
    *('--checkpoint_every=60s', '--wait_for_workers=1800'),
    *('--method=ga', '--workers=2'),
    '--workdir=runs/a',
  ]
  assert settings['RAY_AUTH_MODE'] == 'token'
  assert settings['RAY_AUTH_TOKEN_PATH'].startswith(box['HOME'])
  folder = checkout / 'runs/a'
  folder.mkdir()
  (folder / 'trace.rows').touch()  # a run begins with it
  job(checkout, box, '--method=ga', '--workers=2')
  assert recorded(runs)[1][0][2:] == ['--resume', '--workdir=runs/a']
  (folder / 'trace.rows').unlink()
  (folder / 'checkpoints/000000-step-5').mkdir(parents=True)
  job(checkout, box, '--method=ga', '--workers=2')
  assert recorded(runs)[2][0][2:] == ['--resume', '--workdir=runs/a']
  (folder / 'summary.json').write_text('{\n  "stopped": false\n}')
  done = job(checkout, box, '--method=ga')
  assert done.stdout == 'runs/a holds a finished run\n'
  assert len(recorded(runs)) == 3


def follow(checkout, box):
  return subprocess.Popen(
    ['bash', 'launch/ray_job.sh', '--workdir=runs/a'],
    env=box,
    cwd=checkout,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    start_new_session=True,
    text=True,
  )


def test_a_job_outlives_its_connection(checkout, box, tmp_path):
  (tmp_path / 'wait').touch()
  with follow(checkout, box) as first:
    assert first.stdout.readline() == 'trained\n'
    os.killpg(first.pid, signal.SIGKILL)  # as a connection that is lost
  with follow(checkout, box) as second:
    assert second.stdout.readline() == 'trained\n'
    ended = job(checkout, box, '--stop')
    assert ended.returncode == 0, ended.stderr
    assert second.stdout.read() == ''
  assert second.returncode == 0
  assert len(recorded(tmp_path / 'runs')) == 1
  assert not (checkout / 'runs/a.pid').exists()


# --- TPU VMs

TPU = 'gcloud compute tpus tpu-vm'
WHERE = '--zone=us-central1-a --project=p --quiet'
UNPACK = (
  'mkdir -p ga_jax && cd ga_jax && rm -rf ga_jax experiments launch && tar -xz'
)
KEEP = (
  'umask 077 && mkdir -p .ray && cat >.ray/new && mv .ray/new .ray/auth_token'
)
INSTALL = 'bash ga_jax/launch/ray_install.sh tpu'
HEAD = (
  'cd ga_jax && bash launch/ray_head.sh --stop && '
  'bash launch/ray_head.sh --interface='
)
WORKER = (
  'cd ga_jax && bash launch/ray_worker.sh --stop && '
  'bash launch/ray_worker.sh --address='
)
JOB = (
  'cd ga_jax && bash launch/ray_job.sh --workdir=runs/tpu --accelerator=tpu '
  '--method=ga'
)


def tpu_vm(box, *arguments, cwd=ROOT):
  return bash(
    'tpu_vm.sh',
    '--zone=us-central1-a',
    '--project=p',
    *arguments,
    env=box,
    cwd=cwd,
  )


def test_a_dry_run_on_tpu_vms_prints_every_command(box, tmp_path):
  program(box, 'gcloud', '#!/bin/sh\necho called >&2; exit 1\n')
  token = tmp_path / 'token'
  done = tpu_vm(
    box,
    '--nodes=2',
    '--spot',
    '--dry_run',
    f'--token_file={token}',
    '--workdir=/results/tpu',
    '--',
    '--method=ga',
    "--note=it's",
  )
  assert done.returncode == 0, done.stderr
  assert 'called' not in done.stderr
  assert not token.exists()
  create = (
    '--accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite '
    '--labels=ga_jax=ga-jax'
  )
  pack = (
    f'tar -C {ROOT} --exclude=__pycache__ -cz ga_jax experiments launch '
    'pyproject.toml requirements.txt README.md LICENSE'
  )
  shown = [line for line in done.stdout.splitlines() if line[0] != '#']
  expected = [f'bash {LAUNCH}/ray_token.sh --token_file={token}']
  for node in ('ga-jax-0', 'ga-jax-1'):
    spot = '' if node == 'ga-jax-0' else '--spot '
    expected += [
      f"{TPU} describe {node} '--format=value(state)' {WHERE}",
      f'{TPU} create {node} {create} {spot}{WHERE}',
    ]
  for node in ('ga-jax-0', 'ga-jax-1'):
    expected.append(f'{TPU} ssh {node} --command=true {WHERE}')
  for node in ('ga-jax-0', 'ga-jax-1'):
    expected += [
      f"{pack} | {TPU} ssh {node} '--command={UNPACK}' {WHERE}",
      f"{TPU} ssh {node} '--command={KEEP}' {WHERE} <{token}",
      f"{TPU} ssh {node} '--command={INSTALL}' {WHERE}",
    ]
  expected += [
    f'{TPU} describe ga-jax-0 '
    f"'--format=value(networkEndpoints[0].ipAddress)' {WHERE}",
    f"{TPU} ssh ga-jax-0 '--command={HEAD}HEAD' {WHERE}",
    f"{TPU} ssh ga-jax-1 '--command={WORKER}HEAD:6379' {WHERE}",
  ]
  assert shown[: len(expected)] == expected
  job, folder, fetch = shown[len(expected) :]
  # Quoted twice, for the shell here and the one there.
  *ssh, zone, project, quiet = shlex.split(job)
  assert ' '.join(ssh[:6]) == f'{TPU} ssh ga-jax-0'
  assert f'{zone} {project} {quiet}' == WHERE
  there = shlex.split(ssh[6].removeprefix('--command='))
  assert there[:-2] == shlex.split(JOB)[:-1]
  assert there[-2:] == ['--method=ga', "--note=it's"]
  assert folder == 'mkdir -p /results'
  assert fetch == (
    f'{TPU} scp ga-jax-0:ga_jax/runs/tpu ga-jax-0:ga_jax/runs/tpu.log /results '
    f'--recurse {WHERE}'
  )


def test_a_dry_run_tells_how_tpu_vms_are_removed(box):
  for verb in ('stop', 'delete'):
    done = tpu_vm(box, f'--{verb}', '--dry_run')
    assert done.stdout.splitlines() == [
      f'{TPU} list --filter=labels.ga_jax=ga-jax '
      "'--format=csv[no-heading](name.basename(),schedulingConfig.spot)' "
      f'{WHERE}',
      '# for each of them:',
      f'{TPU} {verb} ga-jax-0 {WHERE}',
    ]


@pytest.fixture
def cloud(box, tmp_path):
  """A gcloud whose machines are folders; what Ray would do is left out."""
  program(
    box,
    'gcloud',
    RECORD
    + f"""
import pathlib, shutil, subprocess
machines = pathlib.Path({str(tmp_path)!r}) / 'machines'
assert sys.argv[1:4] == ['compute', 'tpus', 'tpu-vm'], sys.argv
assert sys.argv[-3:] == {WHERE.split()!r}, sys.argv
verb, *words = sys.argv[4:-3]
record({str(tmp_path / 'told')!r}, [verb, *words])
if verb == 'list':
  for machine in sorted(machines.iterdir()):
    print(f'{{machine.name}},{{(machine / "spot").exists()}}')
  sys.exit()
machine = machines / words[0].split(':')[0]
if verb == 'create':
  machine.mkdir(parents=True)
  (machine / 'state').write_text('READY')
  if '--spot' in words:
    (machine / 'spot').touch()
  sys.exit()
if not machine.exists():
  sys.exit('ERROR: NOT_FOUND: the resource was not found')
if verb == 'describe':
  address = words[1] != '--format=value(state)'
  print('10.0.0.2' if address else (machine / 'state').read_text())
elif verb == 'start':
  (machine / 'state').write_text('READY')
elif verb == 'stop':
  (machine / 'state').write_text('STOPPED')
elif verb == 'delete':
  shutil.rmtree(machine)
elif verb == 'scp':
  for source in words[:2]:
    path = machine / source.split(':')[1]
    copy = shutil.copytree if path.is_dir() else shutil.copy
    copy(path, pathlib.Path(words[2]) / path.name)
elif verb == 'ssh':
  command = words[1].removeprefix('--command=')
  if 'ray_job.sh' in command:
    run = machine / 'ga_jax/runs/tpu'
    run.mkdir(parents=True, exist_ok=True)
    (run / 'summary.json').write_text('{{}}')
    (machine / 'ga_jax/runs/tpu.log').write_text('said')
    code = pathlib.Path({str(tmp_path)!r}) / 'code'
    sys.exit(int(code.read_text()) if code.exists() else 0)
  if '/ray_' not in command:
    sys.exit(subprocess.run(['sh', '-c', command], cwd=machine).returncode)
""",
  )

  class Cloud:
    machines = tmp_path / 'machines'
    code = tmp_path / 'code'

    @staticmethod
    def told():
      calls = recorded(tmp_path / 'told')
      (tmp_path / 'told').unlink(missing_ok=True)
      return calls

    @staticmethod
    def train(*flags):
      return tpu_vm(
        box,
        '--nodes=2',
        '--spot',
        '--workdir=here/tpu',
        *flags,
        *([] if '--delete' in flags else ['--', '--method=ga']),
        cwd=tmp_path,
      )

  return Cloud()


def test_tpu_vms_are_made_and_bring_their_results_back(cloud, box, tmp_path):
  done = cloud.train()
  assert done.returncode == 0, done.stderr
  assert '--delete' in done.stdout.splitlines()[-1]
  path = pathlib.Path(box['HOME'], '.ray', 'auth_token')
  token = path.read_text()
  assert TOKEN.fullmatch(token)
  assert token not in done.stdout + done.stderr
  told = cloud.told()
  assert not any(token in word for call in told for word in call)
  verbs = [call[0] for call in told]
  assert sorted(verbs[:4]) == ['create', 'create', 'describe', 'describe']
  assert verbs[4:6] == ['ssh', 'ssh']
  assert verbs[-4:] == ['ssh', 'ssh', 'ssh', 'scp']
  head, worker, job = (
    call[2].removeprefix('--command=') for call in told[-4:-1]
  )
  assert head == HEAD + '10.0.0.2'
  assert worker == WORKER + '10.0.0.2:6379'
  assert job == JOB
  for number in range(2):
    machine = cloud.machines / f'ga-jax-{number}'
    assert (machine / 'spot').exists() == (number == 1)
    kept = machine / '.ray' / 'auth_token'
    assert kept.read_text() == token
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    for name in ('pyproject.toml', 'launch/ray_head.sh', 'ga_jax/__init__.py'):
      sent = machine / 'ga_jax' / name
      assert sent.read_bytes() == (ROOT / name).read_bytes()
  assert (tmp_path / 'here/tpu/summary.json').exists()
  assert (tmp_path / 'here/tpu.log').read_text() == 'said'


def test_tpu_vms_that_exist_are_used_again(cloud, tmp_path):
  for number, state in enumerate(['STOPPED', 'PREEMPTED']):
    machine = cloud.machines / f'ga-jax-{number}'
    machine.mkdir(parents=True)
    (machine / 'state').write_text(state)
  (cloud.machines / 'ga-jax-0' / 'kept').touch()
  cloud.code.write_text('7')  # what the run ends with
  done = cloud.train()
  assert done.returncode == 7, done.stderr
  changed = [
    c[:2] for c in cloud.told() if c[0] in ('create', 'start', 'delete')
  ]
  assert sorted(changed) == [
    ['create', 'ga-jax-1'],
    ['delete', 'ga-jax-1'],
    ['start', 'ga-jax-0'],
  ]
  assert (cloud.machines / 'ga-jax-0' / 'kept').exists()
  shutil.rmtree(tmp_path / 'here')
  cloud.code.unlink()
  done = cloud.train('--follow')
  assert done.returncode == 0, done.stderr
  assert [call[0] for call in cloud.told()] == ['ssh', 'scp']
  shutil.rmtree(tmp_path / 'here')
  done = cloud.train('--delete_after')
  assert done.returncode == 0, done.stderr
  assert 'create' not in {call[0] for call in cloud.told()}
  assert not list(cloud.machines.iterdir())
  assert (tmp_path / 'here/tpu/summary.json').exists()


def test_a_tpu_vm_that_cannot_be_had_is_named(cloud):
  machine = cloud.machines / 'ga-jax-1'
  machine.mkdir(parents=True)
  (machine / 'state').write_text('CREATING')
  done = cloud.train()
  assert done.returncode == 2
  assert 'ga-jax-1: error: ga-jax-1: CREATING' in done.stdout
  assert done.stderr == 'error: failed on ga-jax-1\n'


def test_tpu_vms_are_stopped_where_they_can_be(cloud, box):
  for number in range(2):
    machine = cloud.machines / f'ga-jax-{number}'
    machine.mkdir(parents=True)
  (machine / 'spot').touch()
  done = tpu_vm(box, '--stop')
  assert done.returncode == 0, done.stderr
  assert [call[:2] for call in cloud.told()[1:]] == [
    ['stop', 'ga-jax-0'],
    ['delete', 'ga-jax-1'],
  ]


# --- Slurm


@pytest.fixture
def slurm(box, tmp_path, temp_dir):
  """A Slurm that runs everything here; Ray and the run are left out."""
  folder = tmp_path / 'checkout'
  shutil.copytree(LAUNCH, folder / 'launch')
  log = tmp_path / 'told'
  for name in ('ray_head.sh', 'ray_worker.sh', 'ray_job.sh'):
    (folder / 'launch' / name).write_text(f"""
python=$VENV/bin/python
if [[ $0 == */ray_job.sh ]]; then
  "$python" - <<END
{RECORD}
path = os.environ['RAY_AUTH_TOKEN_PATH']
mode = oct(os.stat(path).st_mode)
record({str(tmp_path / 'token')!r}, [path, mode, open(path).read()])
END
  if [ -e {tmp_path}/long ]; then
    trap 'mkdir -p runs/a/checkpoints/1; exit 0' TERM
    touch {tmp_path}/began
    while :; do sleep 0.1; done
  fi
  exit 5
fi
trap 'exit 0' TERM
if [[ $0 == */ray_head.sh ]]; then
  for word in "$@"; do [[ $word != --port=* ]] || port=${{word#*=}}; done
  "$python" -m http.server --bind=127.0.0.1 "$port" >/dev/null 2>&1 &
  trap "kill $!; exit 0" TERM
fi
while :; do sleep 0.1; done
""")
  program(
    box,
    'srun',
    RECORD
    + f"""
record({str(log)!r}, sys.argv[1:])
at = next(i for i, w in enumerate(sys.argv[1:], 1) if not w.startswith('--'))
os.execvp(sys.argv[at], sys.argv[at:])
""",
  )
  program(
    box,
    'scontrol',
    RECORD
    + f"""
record({str(log)!r}, ['scontrol', *sys.argv[1:]])
if sys.argv[1] == 'show':
  print('n1\\nn2\\nn3')
""",
  )
  job_id = str(7000000 + os.getpid() % 10000)
  environment = {
    **box,
    'SLURM_SUBMIT_DIR': str(folder),
    'SLURM_JOB_ID': job_id,
    'SLURM_JOB_NODELIST': 'n[1-3]',
    'SLURM_CPUS_PER_TASK': '4',
  }

  started = []

  def submit():
    copy = tmp_path / 'slurm_script'  # Slurm runs a copy from elsewhere
    shutil.copy(LAUNCH / 'slurm.sbatch', copy)
    running = subprocess.Popen(
      ['bash', copy, '--workdir=runs/a', '--interface=lo', '--method=ga'],
      env=environment,
      cwd=tmp_path,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
      text=True,
    )
    started.append(running.pid)
    return running

  yield submit, log, job_id
  for group in started:  # should a test have failed
    with contextlib.suppress(ProcessLookupError):
      os.killpg(group, signal.SIGKILL)


def test_a_slurm_job_starts_ray_on_all_its_machines(slurm, box, tmp_path):
  submit, log, job_id = slurm
  with submit() as running:
    _, said = running.communicate(timeout=60)
  assert running.returncode == 5, said
  show, address, *steps, cleared = recorded(log)
  assert show == ['scontrol', 'show', 'hostnames', 'n[1-3]']
  assert address[-2:] == ['address', 'lo']
  assert cleared[-3:] == ['rm', '-rf', f'/tmp/ga_ray-{job_id}']
  for step in (address, *steps):
    assert step[:3] == ['--overlap', '--nodes=1', '--ntasks=1']
  by_node = sorted((step[3], step[5].split('/')[1], step[6:]) for step in steps)
  (_, head, head_flags), (_, run, run_flags), *workers = by_node
  assert [one[0] for one in by_node] == [
    f'--nodelist={node}' for node in ('n1', 'n1', 'n2', 'n3')
  ]
  assert (head, run) == ('ray_head.sh', 'ray_job.sh')
  port = 20000 + int(job_id) % 10000
  token = f'{box["HOME"]}/.ga_jax/slurm-{job_id}.token'
  common = [f'--temp_dir=/tmp/ga_ray-{job_id}', f'--token_file={token}']
  assert head_flags == [
    *('--block', '--interface=127.0.0.1', f'--port={port}', *common),
    *('--', '--num-cpus=4'),
  ]
  for _, name, flags in workers:
    assert name == 'ray_worker.sh'
    assert flags == [
      *('--block', f'--address=127.0.0.1:{port}', '--interface=lo'),
      *('--wait=300', *common, '--', '--num-cpus=4'),
    ]
  assert run_flags == [
    *('--block', '--workdir=runs/a', common[0], '--method=ga')
  ]
  ((path, mode, value),) = recorded(tmp_path / 'token')
  assert (path, mode) == (token, '0o100600')
  assert TOKEN.fullmatch(value)
  assert value not in log.read_text() + said
  assert not os.path.exists(token)


def test_a_slurm_job_near_its_limit_is_requeued(slurm, tmp_path):
  submit, log, job_id = slurm
  (tmp_path / 'long').touch()
  with submit() as running:
    while not (tmp_path / 'began').exists():
      assert running.poll() is None, running.stderr.read()
      time.sleep(0.05)
    running.send_signal(signal.SIGUSR1)
    _, said = running.communicate(timeout=60)
  assert running.returncode == 0, said
  assert ['scontrol', 'requeue', job_id] in recorded(log)


def test_a_slurm_job_is_submitted_from_the_checkout(box, tmp_path):
  box |= {'SLURM_SUBMIT_DIR': str(tmp_path), 'SLURM_JOB_ID': '1'}
  done = bash('slurm.sbatch', '--workdir=a', env=box)
  assert done.returncode == 2
  assert 'submit it from the folder of the checkout' in done.stderr


# --- docs/runtimes/clusters.md

PAGE = (ROOT / 'docs' / 'runtimes' / 'clusters.md').read_text()


def test_the_page_names_scripts_and_flags_that_there_are(box):
  shown = re.findall(r'bash (?:ga_jax/)?(launch/\w+\.sh)([^\n`#&]*)', PAGE)
  assert len(shown) >= 20
  texts = {}
  for script, words in shown:
    if script not in texts:
      texts[script] = bash(script[7:], '--help', env=box).stdout
    if script == 'launch/ray_job.sh':
      continue  # others go to experiments.train
    for flag in re.findall(r'(--\w+)', words.split(' -- ')[0]):
      assert f'{flag}' in texts[script], (script, flag)
  for path in re.findall(r'\]\((?:\.\./)+([^)#]+)\)', PAGE):
    assert (ROOT / path).exists()


@pytest.mark.slow
@pytest.mark.ray
def test_the_local_cluster_commands_of_the_page_run(box, tmp_path, temp_dir):
  section = PAGE.split('## Several nodes on this machine')[1].split('\n## ')[0]
  commands = ''.join(re.findall(r'```bash\n(.*?)```', section, re.DOTALL))
  workdir = tmp_path / 'run'
  for shown, here in (
    ('/tmp/ga_local-$UID', temp_dir),
    ('source .venv/bin/activate', f'source {sys.prefix}/bin/activate'),
    ('runs/local_cluster', str(workdir)),
  ):
    assert shown in commands
    commands = commands.replace(shown, here)
  box['RAY_TMPDIR'] = temp_dir
  try:
    done = subprocess.run(
      ['bash', '-e', '-c', commands],
      env=box,
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
      timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert not sessions(temp_dir)
  finally:
    bash('local_cluster.sh', '--stop', env=box)
  assert re.search(r'node-3: [1-9]', done.stdout)
  assert 'each in exactly one applied round' in done.stdout
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['stopped'] is False


@pytest.mark.slow
@pytest.mark.ray
def test_a_slurm_job_trains_on_this_machine(box, tmp_path):
  program(
    box,
    'srun',
    '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
  )
  program(box, 'scontrol', '#!/bin/sh\necho n1; echo n2\n')
  job_id = str(8000000 + os.getpid() % 10000)
  box |= {
    'SLURM_SUBMIT_DIR': str(ROOT),
    'SLURM_JOB_ID': job_id,
    'SLURM_JOB_NODELIST': 'n[1-2]',
    'SLURM_CPUS_PER_TASK': '1',
  }
  workdir = tmp_path / 'run'
  running = subprocess.Popen(
    [
      *('bash', LAUNCH / 'slurm.sbatch', f'--workdir={workdir}'),
      *('--method=ga', '--workers=2', '--epochs=1'),
    ],
    env=box,
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    start_new_session=True,
    text=True,
  )
  try:
    said, _ = running.communicate(timeout=300)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(running.pid, signal.SIGKILL)
  assert running.returncode == 0, said
  assert json.loads((workdir / 'summary.json').read_text())['workers'] == 2
  assert not os.path.exists(f'/tmp/ga_ray-{job_id}')
  assert not [
    line for line in processes().values() if f'ga_ray-{job_id}' in line
  ]
