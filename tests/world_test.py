"""What the world does to a command: full disks, closed pipes, other locales.

Each ends in one line, or goes on; there is no traceback.
"""

import errno
import os
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.running import compilation, setup, space
from experiments.script import failures
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax.guards import memory
from ga_jax.record import checkpoints, files, trace
from tests import scripts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ASCII = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONIOENCODING': 'ascii'}
QUICK = ('--quiet', '--epochs=0.1')


def started(name, *arguments, cwd, how='', **variables):
  """`python -m experiments.NAME` in a shell, its streams as `how` says."""
  command = f'exec "$0" -m experiments.{name} "$@" {how}'
  return subprocess.run(
    ['bash', '-c', command, sys.executable, *arguments],
    cwd=cwd,
    env={**os.environ, 'PYTHONPATH': ROOT, **variables},
    capture_output=True,
    text=True,
    encoding='utf-8',
    timeout=300,
    check=False,
  )


# Files and folders.


@pytest.mark.parametrize(
  ('name', 'flag'),
  [
    *(('train', 'workdir'), ('train', 'data_path'), ('compare', 'workdir')),
    *(('survey', 'workdir'), ('reproduce', 'folder'), ('replay', 'workdir')),
    *(('verify', 'workdir'), ('report', 'workdir'), ('report', 'output')),
    *(('report', 'figures'), ('prepare', 'data_path'), ('prepare', 'archive')),
    *(('documents.screens', 'picture'), ('bench.cold_start', 'json')),
    *(('bench.straggler', 'figure'), ('train', 'compilation_cache')),
  ],
)
def test_a_bucket_is_no_path(name, flag, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, out, err = scripts.call(name, f'--{flag}=gs://bucket/x')
  assert (code, out) == (2, '')
  assert err.startswith(
    f'error: --{flag}=gs://bucket/x: must be a path on this'
  )
  assert err.count('\n') == 1
  assert not os.listdir(tmp_path)


def test_home_is_expanded(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  code, _, err = scripts.call('report', '--workdir=~/x')
  assert (code, err) == (
    2,
    f'error: --workdir={tmp_path}/home/x: no such folder\n',
  )


def test_an_output_is_tried_before_anything_is_computed(tmp_path):
  for path, why in (
    (tmp_path, 'must be a file, not a folder'),
    ('/proc/none/x.json', 'must be a folder that can be written to'),
  ):
    code, out, err = scripts.call('bench.cold_start', f'--json={path}')
    assert (code, out) == (2, '')
    assert why in err


def test_a_cache_elsewhere_is_not_kept(capsys, monkeypatch):
  folder = os.environ[compilation.FOLDER]
  try:
    compilation.keep('gs://bucket/x')
    err = capsys.readouterr().err
    assert err.startswith('note: compiled programs are not kept: gs://bucket/x')
  finally:
    os.environ[compilation.FOLDER] = folder
    compilation.keep()


def test_values_are_shown_in_one_line():
  error = settings_lib.SettingError('workdir', 'a\nb\x1b[31m' + 999 * 'x', 'no')
  assert str(error).startswith(r'--workdir=a\nb\x1b[31mxxx')
  assert len(str(error)) < 300
  _, _, err = scripts.call('train', '--epochs=a\nb')
  assert err == 'error: --epochs=a\\nb: must be a number\n'


# Room on the disk.


class Limited:
  """Files that may not grow beyond some bytes, as on a full disk."""

  def __init__(self, size):
    self._size = size

  def __enter__(self):
    self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

  def __exit__(self, *error):
    resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def test_lines_are_written_whole_or_not_at_all(tmp_path):
  path = str(tmp_path / 'metrics.jsonl')
  with files.JsonLines(path) as log:
    log.write({'a': 1})
    with pytest.raises(OSError) as raised, Limited(20):
      log.write({'b': 30 * 'x'})
    assert raised.value.filename == path
    log.write({'c': 3})
  with open(path) as file:
    assert file.read() == '{"a": 1}\n{"c": 3}\n'


def test_rows_are_written_whole_or_not_at_all(tmp_path):
  path = str(tmp_path / 'trace.rows')
  writer = trace.TraceWriter(path)
  row = (0.0, 0, 0, -1, 0, -1, 0, 0, 0, 1.0, 0)
  writer.write([row])
  size = os.path.getsize(path)
  with pytest.raises(OSError) as raised, Limited(size + 10):
    writer.write([row])
  assert raised.value.filename == path
  assert os.path.getsize(path) == size
  writer.write([row])  # once there is room
  writer.close()
  assert len(trace.read_rows(path)) == writer.num_rows == 2


def test_a_whole_file_replaces_or_nothing_does(tmp_path):
  path = str(tmp_path / 'summary.json')
  files.write_json(path, 1)
  with pytest.raises(OSError) as raised, Limited(10):
    files.write_json(path, 99 * 'x')
  assert raised.value.filename == path
  assert os.listdir(tmp_path) == ['summary.json']


def test_a_checkpoint_without_room_is_said_in_a_line(tmp_path, monkeypatch):
  usage = files.shutil.disk_usage(tmp_path)._replace(free=100)
  monkeypatch.setattr(files.shutil, 'disk_usage', lambda folder: usage)
  store = checkpoints.CheckpointStore(str(tmp_path / 'checkpoints'))
  with pytest.raises(
    OSError, match='checkpoint of step 3 cannot be saved'
  ) as e:
    store.save(3, {'w': jnp.zeros(1000)})
  assert 'MB are to be written' in str(e.value)
  assert not os.listdir(tmp_path / 'checkpoints')


def test_a_run_that_does_not_fit_is_refused(tmp_path, monkeypatch):
  settings = check.check(settings_lib.Settings(epochs=1.0, runtime='threads'))
  job = setup.job_of(settings, setup.method_of(settings))
  keep = setup.Keeping(str(tmp_path), every_updates=10, keep=2)
  known = space.needed(settings, keep, job)
  assert list(known) == ['parameters', '2 checkpoints', 'events']
  tickets = setup.total_batches(settings)
  assert known['events'] == 2 * tickets * trace.ROW_DTYPE.itemsize
  assert known['2 checkpoints'] >= 4 * known['parameters']  # θ, v, s
  space.check(settings, keep, job)
  usage = files.shutil.disk_usage(tmp_path)
  for free, fits in ((sum(known.values()), True), (known['events'], False)):
    there = usage._replace(free=free)
    monkeypatch.setattr(space.shutil, 'disk_usage', lambda _, is_=there: is_)
    if fits:
      space.check(settings, keep, job)
    else:
      with pytest.raises(settings_lib.SettingError, match='will be written'):
        space.check(settings, keep, job)
  (tmp_path / 'earlier').write_bytes(bytes(sum(known.values())))
  space.check(settings, keep, job)  # what is there is replaced


@pytest.mark.parametrize(
  ('error', 'code', 'said'),
  [
    (OSError(errno.ENOSPC, 'No space left on device', '/x'), 1, '/x: No space'),
    (OSError('params cannot be saved in x: full'), 1, 'params cannot be saved'),
    (
      PermissionError(13, 'Permission denied', '/y'),
      1,
      '/y: Permission denied',
    ),
    (MemoryError(), 1, 'out of memory: this machine has no more'),
    (memory.TooLargeError('num_workers=9 is too large'), 1, 'num_workers=9'),
  ],
)
def test_what_the_system_refuses_is_said_in_one_line(error, code, said, capsys):
  with pytest.raises(SystemExit) as ended, failures.told():
    raise error
  err = capsys.readouterr().err
  assert ended.value.code == code
  assert err.startswith(f'error: {said}')
  assert err.count('\n') == 1


# Streams, locales, backends, devices.


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A folder with a finished run and a grid."""
  folder = tmp_path_factory.mktemp('world')
  ended = started('train', *QUICK, '--workdir=run', cwd=folder, **ASCII)
  assert (ended.returncode, ended.stderr) == (0, '')
  return folder


@pytest.mark.parametrize(
  ('how', 'code', 'said'),
  [
    ('>/dev/full', 1, 'standard output cannot be written to (No space left'),
    ('>&-', 0, ''),
    pytest.param('2>&-', 0, '', marks=pytest.mark.slow),
    pytest.param('2>/dev/full', 0, '', marks=pytest.mark.slow),
    pytest.param('>&- 2>&-', 0, '', marks=pytest.mark.slow),
    pytest.param(
      '| head -1; exit ${PIPESTATUS[0]}', 0, '', marks=pytest.mark.slow
    ),
  ],
)
def test_streams_that_nobody_reads_stop_nothing(how, code, said, finished):
  ended = subprocess.run(
    ['bash', '-c', f'"$0" -m experiments.methods {how}', sys.executable],
    env={**os.environ, 'PYTHONPATH': ROOT},
    cwd=finished,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert ended.returncode == code
  assert ended.stderr.startswith(f'error: {said}' if said else '')
  assert ended.stderr.count('\n') == bool(said)


def test_a_wrong_flag_has_its_code_where_nobody_is_told(finished):
  ended = started('train', '--nosuch', how='2>/dev/full', cwd=finished)
  assert ended.returncode == 2


@pytest.mark.slow
def test_a_run_ends_where_its_output_cannot_be_written(finished):
  for number, how in enumerate(('>&-', '>/dev/full')):
    folder = f'out-{number}'
    given = (*QUICK, f'--workdir={folder}')
    ended = started('train', *given, how=how, cwd=finished)
    assert ended.returncode == number
    assert (finished / folder / 'digests.json').exists()


def test_files_are_utf_8_whatever_the_locale(finished):
  grid = ('--methods=ga', '--workers=1', '--seeds=1', '--workdir=grid')
  ended = started('compare', *QUICK, *grid, '--note=é ±', cwd=finished, **ASCII)
  assert (ended.returncode, ended.stderr) == (0, '')
  page = (finished / 'grid' / 'table.md').read_bytes().decode('utf-8')
  assert 'é ±' in page
  assert '?' in ended.stdout
  ended = started('report', '--workdir=grid', cwd=finished, **ASCII)
  assert (ended.returncode, ended.stderr) == (0, '')
  html = (finished / 'grid' / 'report.html').read_bytes().decode('utf-8')
  assert 'é ±' in html


@pytest.mark.slow
def test_figures_are_drawn_whatever_the_backend(finished):
  ended = started(
    *('report', '--workdir=run', '--figures=figures'),
    cwd=finished,
    MPLBACKEND='nonsense',
  )
  assert (ended.returncode, ended.stderr) == (0, '')
  assert os.listdir(finished / 'figures')


@pytest.mark.parametrize(
  'platform', ['cuda', pytest.param('nonsense', marks=pytest.mark.slow)]
)
def test_a_device_that_is_not_here_is_said(platform, finished):
  for name in ('train', 'methods'):
    ended = started(name, cwd=finished, JAX_PLATFORMS=platform)
    assert (ended.returncode, ended.stdout) == (2, '')
    assert ended.stderr.startswith(
      f'error: JAX_PLATFORMS={platform}: JAX finds'
    )
    assert ended.stderr.count('\n') == 1


def test_memory_has_a_limit():
  assert memory.total() > 1e8
  memory.check('num_workers', 2, 1000, 'it')
  with pytest.raises(memory.TooLargeError, match='num_workers=9 is too large'):
    memory.check('num_workers', 9, 10**18, 'it')


def test_text_of_another_encoding_is_kept(tmp_path):
  path = str(tmp_path / 'text')
  files.write_text(
    path, 'é' + os.fsencode('ü').decode('ascii', 'surrogateescape')
  )
  assert np.fromfile(path, np.uint8).tobytes().decode() == 'éü'
