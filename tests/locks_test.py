"""One process at a time: locks, and what is written under them."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, policies, rules
from ga_jax.executors.saving import Checkpoints
from ga_jax.guards import locks
from ga_jax.live import threads
from ga_jax.record import checkpoints, trace

# Takes a folder, has children that outlive it, and waits to be killed. Without
# `ga_jax`, so that JAX is not imported.
OWNER = """
import os, runpy, subprocess, sys, time
locks = runpy.run_path(sys.argv[1])
lock = locks['FolderLock'](sys.argv[2])
started = subprocess.Popen(['sleep', '60'], close_fds=False)
forked = os.fork()
if not forked:
  time.sleep(60)
  os._exit(0)
print(os.getpid(), started.pid, forked, flush=True)
time.sleep(60)
"""


def snapshot(folder):
  """Everything under a folder: names, times, bytes."""
  found = {}
  for parent, names, files in os.walk(folder):
    for name in ['.', *names, *files]:
      path = os.path.join(parent, name)
      there, data = os.stat(path), b''
      if name in files:
        with open(path, 'rb') as file:
          data = file.read()
      found[path] = there.st_ino, there.st_mtime_ns, data
  return found


def test_a_second_owner_is_refused_and_told_who_is_first(tmp_path):
  first = locks.FolderLock(str(tmp_path))
  before = snapshot(tmp_path)
  who = f'process {os.getpid()} on {socket.gethostname()}'
  for shared in (False, True):
    with pytest.raises(locks.OccupiedError) as error:
      locks.FolderLock(str(tmp_path), shared=shared)
    assert str(error.value) == f'{who} is at work in {tmp_path}'
  assert locks.is_owned(str(tmp_path))
  assert snapshot(tmp_path) == before
  first.release()
  assert not os.listdir(tmp_path)
  assert not locks.is_owned(str(tmp_path))
  with locks.FolderLock(str(tmp_path)):
    assert os.listdir(tmp_path) == [locks.FILE]


def test_a_kill_releases_a_lock_and_children_do_not_inherit_it(tmp_path):
  owner = subprocess.Popen(
    [sys.executable, '-c', OWNER, locks.__file__, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  pid, *children = map(int, owner.stdout.readline().split())
  try:
    with pytest.raises(locks.OccupiedError, match=f'process {pid} on'):
      locks.FolderLock(str(tmp_path))
    owner.kill()
    owner.wait()
    for child in children:
      os.kill(child, 0)  # they live
    assert locks.owner(str(tmp_path)).startswith(f'process {pid} on ')
    assert not locks.is_owned(str(tmp_path))
    with locks.FolderLock(str(tmp_path)) as lock:
      lock.check()
  finally:
    owner.kill()
    for child in children:
      os.kill(child, signal.SIGKILL)
    owner.communicate()


def test_several_may_share_a_folder(tmp_path):
  first = locks.FolderLock(str(tmp_path), shared=True)
  second = locks.FolderLock(str(tmp_path), shared=True)
  assert not locks.is_owned(str(tmp_path))
  first.release()
  second.check()
  with pytest.raises(locks.OccupiedError):
    locks.FolderLock(str(tmp_path))
  second.release()
  assert not os.listdir(tmp_path)
  locks.FolderLock(str(tmp_path)).release()


@pytest.mark.parametrize('how', ['removed', 'replaced', 'a file', 'its name'])
def test_a_folder_or_file_that_is_taken_away_is_noticed(how, tmp_path):
  folder = tmp_path / 'run'
  folder.mkdir()
  (folder / 'config.json').write_text('{}')
  with locks.FolderLock(str(folder)) as lock:
    lock.keep(str(folder / 'config.json'))
    with open(folder / 'config.json', 'a') as file:
      file.write('\n')
    lock.check()  # it is the same file
    if how == 'removed':
      shutil.rmtree(folder)
    elif how == 'replaced':
      folder.rename(tmp_path / 'other')
      folder.mkdir()
      other = locks.FolderLock(str(folder))
    elif how == 'a file':
      (folder / 'config.json').unlink()
      (folder / 'config.json').write_text('{}')
    else:
      folder.rename(tmp_path / 'other')
      folder.write_text('no folder')
    with pytest.raises(locks.LostError, match='is gone, or something') as error:
      lock.check()
  named = folder / 'config.json' if how == 'a file' else folder
  assert str(error.value).startswith(f'{named} is gone')
  if how == 'replaced':
    other.check()  # the first one left it alone


def test_asking_for_the_owner_keeps_nobody_out(tmp_path):
  done = threading.Event()

  def look():
    while not done.is_set():
      locks.is_owned(str(tmp_path))

  lookers = [threading.Thread(target=look) for _ in range(2)]
  for looker in lookers:
    looker.start()
  try:
    for _ in range(50):
      locks.FolderLock(str(tmp_path)).release()
  finally:
    done.set()
    for looker in lookers:
      looker.join()


def test_only_one_of_many_threads_gets_a_lock(tmp_path):
  """Also while the one before removes its file."""
  owners, most, errors = [], [], []

  def work():
    for _ in range(30):
      try:
        lock = locks.FolderLock(str(tmp_path))
      except locks.OccupiedError:
        continue
      owners.append(lock)
      most.append(len(owners))
      lock.check()
      owners.remove(lock)
      lock.release()

  def told():
    try:
      work()
    except Exception as error:
      errors.append(error)

  workers = [threading.Thread(target=told) for _ in range(4)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  assert not errors
  assert len(most) >= 30
  assert set(most) == {1}


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch):
  def flock(file, kind):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(locks.fcntl, 'flock', flock)
  with pytest.warns(UserWarning, match=r'cannot be locked \(No locks') as seen:
    lock = locks.FolderLock(str(tmp_path))
  assert str(tmp_path) in str(seen[0].message)
  lock.check()
  with pytest.warns(UserWarning, match='cannot be locked'):
    lock.release()


# What is written under them.


def test_only_one_process_saves_checkpoints(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path)
  store.save(1, {'x': np.ones(3)})
  with locks.FolderLock(str(tmp_path)):  # as if of another process
    before = snapshot(tmp_path)
    with pytest.raises(locks.OccupiedError, match='at work'):
      store.save(2, {'x': np.zeros(3)})
    with pytest.raises(locks.OccupiedError), store.owned():
      pass
    assert snapshot(tmp_path) == before
  with store.owned(), store.owned():
    with pytest.raises(locks.OccupiedError):
      checkpoints.CheckpointStore(tmp_path).save(2, {'x': np.zeros(3)})
    store.save(2, {'x': np.zeros(3)})
  assert store.steps() == [1, 2]


def test_a_store_that_is_taken_away_is_not_made_again(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path / 'store')
  with store.owned():
    store.save(1, {'x': np.ones(3)})
    shutil.rmtree(tmp_path / 'store')
    with pytest.raises(locks.LostError, match='store is gone'):
      store.save(2, {'x': np.ones(3)})
  assert not os.listdir(tmp_path)


def rows(number):
  return [(float(i), 0, i, -1, 0, -1, 0, 0, 0, 1.0, 0) for i in range(number)]


def test_only_one_process_writes_a_record(tmp_path):
  path = str(tmp_path / 'rows')
  writer = trace.TraceWriter(path)
  writer.write(rows(3))
  before = snapshot(tmp_path)
  with pytest.raises(locks.OccupiedError, match=f'is at work in {path}'):
    trace.TraceWriter(path)
  assert snapshot(tmp_path) == before
  writer.close()
  trace.TraceWriter(path, 2).close()
  assert trace.read_rows(path) == rows(2)
  writer = trace.TraceWriter(path, None)
  assert trace.read_rows(path) == rows(2)  # it may be another run's
  writer.keep(1)
  writer.write(rows(3)[1:])
  writer.flush()
  assert trace.read_rows(path) == rows(3)
  os.rename(path, f'{path}.old')
  trace.TraceWriter(path).close()
  with pytest.raises(locks.LostError, match='rows is gone'):
    writer.flush()
  writer.close()


def test_a_run_is_refused_while_another_writes_its_files(tmp_path):
  job = ga_jax.Job(
    lambda params, state, x, key: (jnp.mean((x - params) ** 2), state),
    jnp.zeros(()),
    lambda batch_id: np.ones(4, np.float32),
    rules.asgd(0.1),
    policies.asynchronous(),
  )
  how = {'num_workers': 2, 'num_batches': 4}
  store = Checkpoints(checkpoints.CheckpointStore(tmp_path / 'store'))
  with store.owned():
    before = snapshot(tmp_path)
    other = Checkpoints(checkpoints.CheckpointStore(tmp_path / 'store'))
    with pytest.raises(locks.OccupiedError, match='store'):
      ga_jax.simulate(job, clocks.constant(), checkpoints=other, **how)
    path = str(tmp_path / 'rows')
    live = ga_jax.Live(trace_path=path, checkpoints=other)
    run = threads.Threads(job, live=live, **how)
    with pytest.raises(locks.OccupiedError, match='store'):
      run.run()
    assert snapshot(tmp_path) == before
  with locks.Lock(path):
    run = threads.Threads(job, live=live, **how)
    with pytest.raises(locks.OccupiedError, match='rows'):
      run.run()
  assert run.run().executed == 4
