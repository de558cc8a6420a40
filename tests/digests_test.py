"""A run's files are those that it saved: what was changed since is named."""

import json
import shutil

import pytest

from experiments.records import digests, record
from experiments.settings import table as settings_lib
from tests import scripts


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two runs that only their seeds tell apart."""
  root = tmp_path_factory.mktemp('runs')
  for seed in ('0', '1'):
    done = scripts.call(
      'train',
      '--quiet',
      '--model=mlp',
      '--workers=2',
      '--batch_size=256',
      '--epochs=2',
      f'--seed={seed}',
      f'--workdir={root / seed}',
    )
    assert done.code == 0, done.err
  return root


@pytest.fixture
def folder(runs, tmp_path):
  """A copy of the first run."""
  return shutil.copytree(runs / '0', tmp_path / 'run')


def verify(folder):
  return scripts.call('verify', f'--workdir={folder}')


def replay(folder, *arguments):
  return scripts.call('replay', f'--workdir={folder}', *arguments)


def swap(runs, folder):
  """Puts the other run's parameters into a folder."""
  shutil.rmtree(folder / 'params')
  shutil.copytree(runs / '1' / 'params', folder / 'params')


def test_everything_that_is_saved_has_a_digest(folder):
  with open(folder / digests.FILE) as file:
    saved = json.load(file)['sha256']
  there = {
    str(path.relative_to(folder)).replace('\\', '/')
    for path in folder.rglob('*')
    if path.is_file()
  }
  assert there == {*saved, digests.FILE}
  assert {name.split('/')[0] for name in saved} == {
    *digests.SAVED,
  } - {'tensorboard'}
  ended = verify(folder)
  assert (ended.code, ended.err) == (0, '')
  assert (
    ended.out.splitlines()[-1] == f'{len(saved)} files as the run saved them'
  )


def test_verify_lists_files_that_are_not_of_the_run(folder):
  (folder / 'replay-3').mkdir()
  (folder / 'report.html').write_text('a report')
  (folder / '.hidden').write_text('')
  (folder / 'checkpoints').mkdir()
  ended = verify(folder)
  assert ended.code == 0
  assert ended.out.splitlines()[-1] == 'not of the run: replay-3/, report.html'


def change(folder, name):
  with open(folder / name, 'ab') as file:
    file.write(b'\n')


def remove(folder, name):
  (folder / name).unlink()


def flip(folder, name):
  path = folder / name
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  ('do', 'name', 'said'),
  [
    (change, 'config.json', 'config.json was changed after the run'),
    (change, 'metrics.jsonl', 'metrics.jsonl was changed after the run'),
    (change, 'summary.json', 'summary.json was changed after the run'),
    (flip, 'arrivals.npz', 'arrivals.npz was changed after the run'),
    (remove, 'versions.json', 'versions.json is missing'),
    (remove, 'began.json', 'began.json is missing'),
    (
      change,
      'params/extra',
      'params/ is not what the run saved: params/extra was added',
    ),
    (
      remove,
      'params/manifest.json',
      'params/ is not what the run saved: params/manifest.json is missing',
    ),
    (remove, digests.FILE, 'digests.json is missing: was it removed, or'),
  ],
)
def test_verify_names_a_file_that_was_changed(folder, do, name, said):
  do(folder, name)
  ended = verify(folder)
  assert (ended.code, ended.err) == (1, '')
  [line] = ended.out.splitlines()
  assert line.startswith(f'WRONG: {said}')


def test_verify_and_replay_find_parameters_of_another_run(runs, folder):
  assert replay(folder).out.startswith('same bits')
  swap(runs, folder)
  ended = verify(folder)
  assert ended.code == 1
  assert ended.out.startswith('WRONG: params/ is not what the run saved: ')
  ended = replay(folder)
  assert (ended.code, ended.out) == (2, '')
  assert 'params/ is not what the run saved: ' in ended.err
  assert len(ended.err.splitlines()) == 1
  for executor, said in (('fast', 'OTHER bits'), ('exact', 'OTHER values')):
    ended = replay(folder, '--anyway', f'--executor={executor}')
    assert ended.code == 1
    assert ended.out.startswith('not as recorded: params/ is not what')
    assert said in ended.out


def test_replay_checks_only_the_files_that_it_reads(folder):
  change(folder, 'arrivals.npz')
  assert replay(folder).code == 0
  change(folder, 'environment.json')
  ended = replay(folder)
  assert ended.code == 2
  assert 'environment.json was changed after the run' in ended.err


def test_older_runs_without_digests_are_verified_and_replayed(folder):
  for name in (digests.FILE, 'began.json'):
    remove(folder, name)
  assert digests.compare(folder) is None
  ended = verify(folder)
  assert ended.code == 0
  assert ended.out.splitlines()[-1].startswith('no digests.json, as an older')
  assert replay(folder).out.startswith('same bits')


def test_verify_and_replay_refuse_a_run_that_has_not_ended(folder):
  for name in (digests.FILE, 'summary.json', 'trace.npz'):
    remove(folder, name)
  for ended in (verify(folder), replay(folder)):
    assert ended.code == 2
    assert 'holds no finished run: no ' in ended.err


@pytest.mark.parametrize('text', ['{', '[]', '{"sha256": 3}'])
def test_damaged_digests_are_refused(folder, text):
  (folder / digests.FILE).write_text(text)
  with pytest.raises(settings_lib.SettingError, match='json is damaged'):
    digests.compare(folder)


def test_a_run_that_overwrites_another_has_its_own_digests(runs, folder):
  """--overwrite leaves no digest of the run before."""
  ended = scripts.call(
    'train',
    '--quiet',
    '--model=mlp',
    '--workers=2',
    '--batch_size=256',
    '--epochs=1',
    '--overwrite',
    '--tensorboard',
    f'--workdir={folder}',
  )
  assert ended.code == 0, ended.err
  compared = digests.compare(folder)
  assert (compared.wrong, compared.others) == ([], [])
  saved = record.load_json(str(folder), digests.FILE)['sha256']
  assert any(name.startswith('tensorboard/') for name in saved)
