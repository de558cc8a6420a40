"""What a run began with: others are named where it goes on, or is replayed."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from experiments import tasks
from experiments.records import began, record
from experiments.records import cells as cells_lib
from experiments.running import inputs, setup, train
from experiments.settings import table as settings_lib
from ga_jax import data
from tests import scripts

EDITED = 'note: config.json was changed after the run began'
SMALL = ('--quiet', '--model=mlp', '--batch_size=16', '--epochs=2')


def write(path, seed=0, **arrays):
  """Writes 64 + 16 examples of 3 classes."""
  rng = np.random.default_rng(seed)
  values = {
    'x_train': rng.random((64, 8), np.float32),
    'y_train': np.arange(64) % 3,
    'x_test': rng.random((16, 8), np.float32),
    'y_test': np.arange(16) % 3,
  }
  np.savez(path, **{**values, **arrays})


@pytest.fixture(autouse=True)
def forgotten():
  tasks.forget()
  yield
  tasks.forget()


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
  """A folder with data.npz and a run of it, with checkpoints."""
  root = tmp_path_factory.mktemp('begun')
  write(root / 'data.npz')
  done = scripts.call(
    'train',
    *SMALL,
    '--dataset=npz',
    f'--data_path={root / "data.npz"}',
    '--checkpoint_every=3',
    f'--workdir={root / "run"}',
  )
  assert done.code == 0, done.err
  return root


@pytest.fixture
def root(begun, tmp_path):
  """A copy of it, at another place."""
  shutil.copytree(begun, tmp_path / 'begun')
  configure(tmp_path / 'begun', data_path=str(tmp_path / 'begun' / 'data.npz'))
  return tmp_path / 'begun'


def configure(root, **values):
  """Edits config.json."""
  path = root / 'run' / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def resume(root):
  return scripts.call(
    'train', '--resume', '--quiet', f'--workdir={root / "run"}'
  )


def contents(root):
  """Every file of a run, and when it was written."""
  return {
    str(path): (path.stat().st_mtime_ns, path.read_bytes())
    for path in root.rglob('*')
    if path.is_file()
  }


def refused(root, *said):
  """Checks that a run does not go on, and why; nothing is touched."""
  before = contents(root)
  ended = resume(root)
  assert (ended.code, ended.out) == (2, '')
  said_lines = ended.err.splitlines()
  if said_lines[0] == EDITED:  # by `root`
    said_lines.pop(0)
  assert len(said_lines) == 1, ended.err
  for one in said:
    assert one in ended.err
  assert contents(root) == before


CHANGES = {'learning_rate': 0.05, 'seed': 1, 'parameters': [['momentum', 0.5]]}
NAMED = (
  '--learning_rate was 0.1, is 0.05',
  '--seed was 0, is 1',
  "--momentum was 'its default', is 0.5",
)


@pytest.mark.parametrize('kept', ['both', 'checkpoint', 'began.json'])
def test_resume_refuses_changed_settings_by_name(root, kept):
  configure(root, **CHANGES)
  if kept == 'checkpoint':
    (root / 'run' / began.FILE).unlink()
  if kept == 'began.json':  # a live run before its first checkpoint
    shutil.rmtree(root / 'run' / 'checkpoints')
    (root / 'run' / 'trace.rows').touch()
  where = 'run/checkpoints/' if kept == 'checkpoint' else 'run/began.json'
  refused(root, f'{where}', 'is not what', *NAMED)


def test_a_run_goes_on_once_a_changed_setting_is_put_back(root):
  configure(root, learning_rate=0.05)
  refused(root, '--learning_rate was 0.1, is 0.05')
  configure(root, learning_rate=0.1)
  (root / 'run' / 'summary.json').unlink()  # it has not ended
  ended = resume(root)
  assert ended.code == 0, ended.err
  assert ended.out.startswith('test error')


def test_resume_refuses_a_checkpoint_of_another_run(root, begun):
  """Checkpoints that were copied from a run with another learning rate."""
  configure(root, learning_rate=0.05)
  path = root / 'run' / began.FILE
  was = json.loads(path.read_text())
  was['settings']['learning_rate'] = 0.05
  path.write_text(json.dumps(was))
  refused(root, 'run/checkpoints/', '--learning_rate was 0.1, is 0.05')


def without_about(root):
  """The same run, with nothing written down of what it began with."""
  workdir = str(root / 'run')
  settings = record.load_settings(workdir)
  shutil.rmtree(workdir)
  os.makedirs(workdir)
  record.save_config(workdir, settings)
  with jax.numpy_rank_promotion('allow'):
    train.train(settings, keeping=setup.Keeping(workdir, every_updates=3))


def test_a_run_of_an_older_version_goes_on(root):
  without_about(root)
  assert began.saved(str(root / 'run')) == {}
  ended = resume(root)
  assert ended.code == 0, ended.err


def test_a_checkpoint_that_does_not_fit_is_told_in_one_line(root):
  """Where nothing else was kept: its own numbers are compared."""
  without_about(root)
  configure(root, learning_rate=0.05)
  ended = resume(root)
  assert (ended.code, ended.out) == (1, '')
  [line] = ended.err.splitlines()
  assert 'is of a run with another hparams' in line


def test_a_run_goes_on_when_its_data_were_moved(root):
  shutil.move(root / 'data.npz', root / 'moved.npz')
  configure(root, data_path=str(root / 'moved.npz'))
  ended = resume(root)
  assert ended.code == 0, ended.err
  assert ended.err.splitlines() == [EDITED]


def test_resume_refuses_other_data_behind_the_same_path(root):
  known = data.npz(str(root / 'data.npz')).fingerprint()
  write(root / 'data.npz', y_train=(np.arange(64) + 1) % 3)
  now = data.npz(str(root / 'data.npz')).fingerprint()
  named = f"train data was '{known['train']}', is '{now['train']}'"
  refused(root, f'--data_path={root / "data.npz"}: is not what', named)
  tasks.forget()
  ended = scripts.call('replay', f'--workdir={root / "run"}')
  assert ended.code == 2
  assert ended.err.startswith('error: --workdir=')
  assert 'config.json was changed after the run' in ended.err  # by `root`
  ended = scripts.call('replay', '--anyway', f'--workdir={root / "run"}')
  assert ended.code == 1
  assert f'not as recorded: {named}' in ended.out
  assert 'OTHER bits' in ended.out


def test_replay_refuses_other_data(begun):
  path = begun / 'data.npz'
  kept = path.read_bytes()
  try:
    write(path, seed=1)
    ended = scripts.call('replay', f'--workdir={begun / "run"}')
  finally:
    path.write_bytes(kept)
  assert (ended.code, ended.out) == (2, '')
  assert 'train data was ' in ended.err
  assert 'test data was ' in ended.err
  tasks.forget()
  ended = scripts.call('replay', f'--workdir={begun / "run"}')
  assert ended.out.startswith('same bits')


def compare(root, folder, *more):
  tasks.forget()
  return scripts.call(
    'compare',
    *SMALL,
    '--dataset=npz',
    f'--data_path={root / "data.npz"}',
    '--methods=asgd',
    '--workers=2',
    '--seeds=2',
    f'--workdir={folder}',
    *more,
  )


def rows_of(folder):
  with open(os.path.join(folder, 'metrics.jsonl')) as file:
    return [json.loads(line) for line in file]


def test_cells_of_other_data_are_computed_again(root, tmp_path):
  folder = tmp_path / 'compare'
  assert compare(root, folder).code == 0
  assert compare(root, folder).err == ''
  first = rows_of(folder)
  assert len(first) == 2
  write(root / 'data.npz', y_test=(np.arange(16) + 1) % 3)
  ended = compare(root, folder)
  assert ended.code == 0
  [note] = ended.err.splitlines()
  assert note.startswith(f'note: --data_path={root / "data.npz"} holds ')
  assert "computed again: test data was '16-" in note
  rows = rows_of(folder)
  assert rows[:2] == first
  assert [row['cell'] for row in rows[2:]] == [row['cell'] for row in first]
  assert all(
    row['test_error'] != old['test_error']
    for row, old in zip(rows[2:], first, strict=True)
  )
  assert list(cells_lib.read(folder / 'metrics.jsonl').values()) == [
    {k: v for k, v in row.items() if k != 'cell'} for row in rows[2:]
  ]
  assert compare(root, folder).err == ''
  assert len(rows_of(folder)) == 4


def test_cells_that_do_not_name_their_data_count_as_finished(root, tmp_path):
  folder = tmp_path / 'compare'
  settings = settings_lib.Settings(
    dataset='npz', data_path=str(root / 'data.npz'), model='mlp'
  )
  os.makedirs(folder)
  path = str(folder / 'metrics.jsonl')
  name = cells_lib.cell_name(settings)
  cells_lib.append(path, {'cell': name, 'test_error': 0.25})
  assert cells_lib.Cells(path).summary(settings) == {'test_error': 0.25}
  # Nor do those whose data are not here: nothing could be computed.
  known = inputs.of(settings)
  cells_lib.append(path, {'cell': name, 'test_error': 0.5, 'inputs': known})
  assert cells_lib.Cells(path).summary(settings)['test_error'] == 0.5
  (root / 'data.npz').unlink()
  tasks.forget()
  assert cells_lib.Cells(path).summary(settings)['test_error'] == 0.5


def test_recorded_times_are_known_by_their_content(root, tmp_path):
  times = tmp_path / 'times.npz'
  shutil.copy(root / 'run' / 'trace.npz', times)
  settings = settings_lib.Settings(clock='recorded', clock_times=str(times))
  known = inputs.of(settings)
  assert known['recorded times'].split('-')[0] == '17'  # rows
  with np.load(times) as arrays:
    arrays = dict(arrays)
  arrays['events']['time'] *= 2
  np.savez(times, **arrays)
  found = inputs.differences(known, inputs.of(settings))
  assert [one.name for one in found] == ['recorded times']
  assert inputs.flag_of(settings, found) == ('clock_times', str(times))
  times.write_bytes(b'')
  with pytest.raises(settings_lib.SettingError, match='--clock_times='):
    inputs.of(settings)


def test_a_ray_process_refuses_other_data_than_the_drivers(root):
  pytest.importorskip('ray')
  from experiments.running import ray

  settings = settings_lib.Settings(
    dataset='npz', data_path=str(root / 'data.npz'), model='mlp', batch_size=16
  )
  known = inputs.of(settings)
  job = ray._make(settings, known)
  assert job.seed == 0
  write(root / 'data.npz', seed=1)
  tasks.forget()
  with pytest.raises(data.DataError, match='other data than the driver: train'):
    ray._make(settings, known)


def test_only_settings_off_their_defaults_are_compared():
  """What is not said is the default: of before there are fewer settings."""
  settings = settings_lib.Settings(
    learning_rate=0.05, stalls=((0, 1.0, 2.0),), data_path='/a/b'
  )
  assert began.chosen(settings) == {
    'learning_rate': 0.05,
    'stalls': [[0, 1.0, 2.0]],
  }
  was = {'settings': {**began.chosen(settings), 'gone': 3}, 'inputs': {}}
  with pytest.raises(settings_lib.SettingError, match='--gone was 3, is'):
    began.check_settings({'a': was}, settings)
