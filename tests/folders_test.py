"""A run folder is one process's, and a run notices when it loses it."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments.records import folders, record
from experiments.running import setup, train
from experiments.settings import table as settings_lib
from ga_jax.guards import locks
from ga_jax.record import checkpoints, files, params, trace
from tests import cases, scripts
from tests.locks_test import snapshot

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = ('--model=mlp', '--workers=2', '--epochs=1', '--quiet')


def trained(workdir, *arguments):
  return scripts.call('train', *SMALL, f'--workdir={workdir}', *arguments)


# The second one.

SECONDS = {  # what another process may start in a folder
  'train': ('train', '--workdir', *SMALL, '--seed=1'),
  'overwrite': ('train', '--workdir', *SMALL, '--seed=1', '--overwrite'),
  'resume': ('train', '--workdir', '--resume'),
  'verify': ('verify', '--workdir'),
  'replay': ('replay', '--workdir'),
  'until': ('replay', '--workdir', '--until=3'),
  'compare': ('compare', '--workdir', '--methods=asgd', '--workers=1'),
  'survey': ('survey', '--workdir', '--methods=asgd', '--holdout=9'),
  'reproduce': (
    *('reproduce', '--folder', '--table=fashion_mnist_mlp'),
    *('--scale=smoke', '--dataset=digits', '--data_path=', '--holdout=99'),
  ),
}


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
  """The folder of a run that has not ended."""
  folder = tmp_path_factory.mktemp('runs') / 'run'
  (folder / setup.CHECKPOINTS).mkdir(parents=True)
  record.save_config(str(folder), settings_lib.Settings(model='mlp'))
  (folder / 'metrics.jsonl').write_text('{"batches": 44}\n')
  return folder


@pytest.mark.parametrize('name', SECONDS)
def test_a_second_process_is_refused_and_touches_nothing(name, begun):
  script, flag, *arguments = SECONDS[name]
  with locks.FolderLock(str(begun)):
    before = snapshot(begun)
    code, out, err = scripts.call(script, f'{flag}={begun}', *arguments)
    assert snapshot(begun) == before
  assert (code, out) == (2, '')
  assert err == (
    f'error: {flag}={begun}: {locks_owner()} is at work there: wait until it '
    'has ended, or name another folder\n'
  )


def locks_owner():
  """This process, as it is named."""
  return f'process {os.getpid()} on {os.uname().nodename}'


def test_readers_and_sharers_of_a_folder_leave_each_other_alone(
  begun, tmp_path, monkeypatch
):
  with locks.FolderLock(str(begun), shared=True):
    err = scripts.call('verify', f'--workdir={begun}').err
    assert 'no summary.json there' in err  # it was read
    assert trained(begun, '--overwrite').code == 2
  grid = tmp_path / 'grid'
  grid.mkdir()
  monkeypatch.setattr(train, 'train', nothing)
  with locks.FolderLock(str(grid), shared=True):
    with pytest.raises(setup.NothingDoneError):  # it has begun
      scripts.call('compare', '--methods=asgd', '--quiet', f'--workdir={grid}')
    assert os.listdir(grid) == [locks.FILE]
  assert not os.listdir(grid)


def nothing(*_, **__):
  """Instead of training."""
  raise setup.NothingDoneError('stopped')


def test_a_run_that_has_not_ended_is_not_replaced_unasked(begun):
  before = snapshot(begun)
  code, out, err = trained(begun)
  assert (code, out) == (2, '')
  assert err == (
    f'error: --workdir={begun}: holds a run that has not ended: --resume goes '
    'on with it, --overwrite replaces it\n'
  )
  kept = {path: found for path, found in before.items() if found[2]}
  after = snapshot(begun)
  assert {path: after[path] for path in kept} == kept


@pytest.mark.parametrize('more', [[], ['--overwrite']])
def test_runs_and_grids_refuse_each_others_folders(more, begun, tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"cell": "asgd-N1"}\n')
  before = snapshot(tmp_path), snapshot(begun)
  code, out, err = trained(tmp_path, *more)
  assert (code, out) == (2, '')
  assert f'--workdir={tmp_path}: holds what experiments.compare, survey' in err
  code, out, err = scripts.call('compare', f'--workdir={begun}')
  assert (code, out) == (2, '')
  assert f'--workdir={begun}: holds a run of experiments.train' in err
  assert (snapshot(tmp_path), snapshot(begun)) == before


def test_no_two_runs_get_the_same_default_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(train, 'train', nothing)
  monkeypatch.setattr(time, 'strftime', lambda *_: '20260101-000000')
  for _ in range(2):
    code, out, _ = scripts.call('train', *SMALL)
    assert (code, out.split(';')[0]) == (0, 'stopped')
  names = ['ga-20260101-000000', 'ga-20260101-000000-2']
  assert sorted(os.listdir('runs')) == names
  found, errors = [], []

  def make():
    try:
      found.append(folders.new('runs/many'))
    except Exception as error:
      errors.append(error)

  with folders.held():
    makers = [threading.Thread(target=make) for _ in range(8)]
    for maker in makers:
      maker.start()
    for maker in makers:
      maker.join()
  assert not errors
  assert sorted(found) == [
    'runs/many',
    *(f'runs/many-{i}' for i in range(2, 9)),
  ]


# A folder that is lost.


def removed(folder):
  shutil.rmtree(folder)


def replaced(folder):
  """Another process has begun in a folder of the same name."""
  os.rename(folder, f'{folder}.old')
  os.mkdir(folder)
  record.save_config(str(folder), record.load_settings(f'{folder}.old'))


def emptied(folder):
  for name in os.listdir(folder):
    if not name.startswith('.'):  # rm -r folder/*
      path = os.path.join(folder, name)
      shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


@pytest.mark.parametrize(
  ('runtime', 'take', 'more'),
  [
    ('simulate', removed, '--checkpoint_every=10'),
    ('threads', replaced, '--checkpoint_every=10'),
    ('simulate', emptied, ''),
    *(
      pytest.param(*one, marks=pytest.mark.slow)
      for one in [
        ('simulate', removed, ''),
        ('simulate', replaced, '--checkpoint_every=10'),
        ('simulate', replaced, ''),
        ('threads', removed, ''),
        ('threads', removed, '--checkpoint_every=10'),
        ('threads', emptied, ''),
        ('threads', emptied, '--checkpoint_every=10'),
      ]
    ),
  ],
)
def test_a_run_whose_folder_is_lost_says_so(
  runtime, take, more, tmp_path, monkeypatch
):
  folder = tmp_path / 'run'
  write = files.JsonLines.write

  def then_lost(self, row):
    write(self, row)
    take(folder)

  monkeypatch.setattr(files.JsonLines, 'write', then_lost)
  more = [more] if more else []
  code, out, err = trained(folder, '--epochs=3', f'--runtime={runtime}', *more)
  assert (code, out) == (1, '')
  line = err.splitlines()[-1]
  assert re.fullmatch(
    rf'error: {folder}\S* is gone, or something else has its name now: it was '
    'removed or replaced while this process was at work there',
    line,
  )
  assert 'Traceback' not in err
  assert os.path.exists(folder) == (take is not removed)
  if take is not removed:
    assert 'summary.json' not in os.listdir(folder)


@pytest.mark.parametrize('name', ['save_arrivals', 'save_params'])
def test_a_folder_that_is_lost_while_saving_is_an_error(
  name, tmp_path, monkeypatch
):
  folder = tmp_path / 'run'
  where = record if name == 'save_arrivals' else params
  save = getattr(where, name)

  def lost(*arguments):
    shutil.rmtree(folder)
    save(*arguments)

  monkeypatch.setattr(where, name, lost)
  code, out, err = trained(folder)
  assert (code, out) == (1, '')
  assert err.startswith(f'error: {folder} is gone')
  assert len(err.splitlines()) == 1


# Two processes.


class Rivals:
  """Processes that all want one folder; `start` is for any thread."""

  def __init__(self, workdir):
    self.workdir = workdir
    self.processes = []

  def start(self, script, *arguments):
    """Starts a script in the folder."""
    process = subprocess.Popen(
      [sys.executable, '-m', f'experiments.{script}', *arguments],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.processes.append(process)
    return process

  def owner(self):
    """The process that has the folder; None where nobody has."""
    if not locks.is_owned(self.workdir):
      return None
    named = locks.owner(self.workdir).split()[1]
    for process in self.processes:
      if str(process.pid) == named and process.poll() is None:
        return process
    return None  # it has not said so yet

  def kill(self, after):
    """Kills the one that has the folder, some time after it took it."""
    deadline = time.monotonic() + 120
    while self.owner() is None:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    time.sleep(after)
    while (owner := self.owner()) is None:
      assert time.monotonic() < deadline
    owner.kill()
    owner.wait()

  def try_again_and_again(self, stop):
    """Starts others in turn, each when the one before has ended."""
    where = f'--workdir={self.workdir}'
    for more in itertools.cycle(
      [
        ('train', '--resume', '--checkpoint_every=25'),
        ('train', '--method=asgd', '--workers=2', '--epochs=1'),
        ('verify',),
      ]
    ):
      if stop.is_set():
        return
      self.start(*more, where).communicate()


@pytest.mark.slow
def test_two_processes_may_compute_one_table(tmp_path):
  """Every line is whole, what both computed is the same, and so is the end."""
  rivals = Rivals(str(tmp_path))
  arguments = [
    *('--methods=asgd,ga,sa', '--workers=1,2', '--seeds=2', '--epochs=1'),
    *('--model=mlp', '--quiet', f'--workdir={tmp_path}'),
  ]
  for _ in range(2):
    rivals.start('compare', *arguments)
  for process in rivals.processes:
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert 'workers' in out
  timed = {'wall_seconds', 'compilation', 'updates_per_second'}
  seen = {}
  for line in (tmp_path / 'metrics.jsonl').read_text().splitlines():
    row = {k: v for k, v in json.loads(line).items() if k not in timed}
    assert seen.setdefault(row['cell'], row) == row
  assert len(seen) == 3 * 2 * 2
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  last = rivals.start('compare', *arguments)
  _, err = last.communicate()
  assert last.returncode == 0, err
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before
  assert sorted(os.listdir(tmp_path)) == [
    *('error-fixed.png', 'metrics.jsonl', 'results.json', 'table.md'),
    'versions.json',
  ]


# Killed.

KILLS = 20


@pytest.mark.slow
@pytest.mark.parametrize('runtime', ['simulate', 'threads'])
def test_rival_processes_that_are_killed_leave_the_same_bits(runtime, tmp_path):
  """A second one tries all the time: no mixed record, the same bits."""
  rng = random.Random(1)
  workdir, whole = str(tmp_path / 'run'), str(tmp_path / 'whole')
  arguments = [
    *(f'--runtime={runtime}', '--workers=3', '--model=mlp', '--epochs=300'),
    *('--method=ga', '--checkpoint_every=25'),
  ]
  rivals, stop = Rivals(workdir), threading.Event()
  rivals.start('train', *arguments, f'--workdir={workdir}')
  store = checkpoints.CheckpointStore(os.path.join(workdir, setup.CHECKPOINTS))
  while not store.steps():
    time.sleep(0.01)
  with open(os.path.join(workdir, 'config.json'), 'rb') as file:
    config = file.read()
  second = threading.Thread(target=rivals.try_again_and_again, args=[stop])
  second.start()
  written = []
  try:
    for _ in range(KILLS):
      rivals.kill(rng.uniform(0.0, 4.0))
      rows = trace.read_rows(os.path.join(workdir, setup.ROWS))
      assert rows[: len(written)] == written
      written = rows
      rivals.start('train', '--resume', f'--workdir={workdir}')
  finally:
    stop.set()
    second.join()
    ended = [(p.communicate(), p.returncode) for p in rivals.processes]
  refused = sum(code == 2 for _, code in ended)
  assert sum(code == -signal.SIGKILL for _, code in ended) == KILLS
  assert any(code == 0 for _, code in ended)
  for (out, err), code in ended:
    assert code in (0, 2, -signal.SIGKILL), err
    if code == 2:
      assert not out
      assert re.fullmatch(
        rf'(note: .*\n)?error: --workdir={workdir}: '
        r'((process \d+ on \S+|another process) is at work there: .*|'
        r'holds a run that has not ended: .*|holds no finished run: .*|'
        r'holds a run already; .*)\n',  # it has ended meanwhile
        err,
      )
  assert refused
  print(f'{KILLS} kills, {refused} processes refused')
  with open(os.path.join(workdir, 'config.json'), 'rb') as file:
    assert file.read() == config
  assert locks.FILE not in os.listdir(workdir)
  made = record.load_trace(workdir)
  made.verify()
  assert made.num_batches == 300 * 44
  with open(os.path.join(workdir, 'metrics.jsonl')) as file:
    batches = [json.loads(line)['batches'] for line in file]
  assert batches == [44 * epoch for epoch in range(1, 301)]
  if runtime == 'threads':
    assert made.events[: len(written)].tolist() == written
    last = rivals.start('replay', f'--workdir={workdir}')
    out, err = last.communicate()
    assert (last.returncode, out[:9]) == (0, 'same bits'), err
  else:
    last = rivals.start('train', *arguments, f'--workdir={whole}')
    _, err = last.communicate()
    assert last.returncode == 0, err
    settings = record.load_settings(workdir)
    both = [record.load_params(path, settings) for path in (workdir, whole)]
    assert cases.same_bits(*both)
