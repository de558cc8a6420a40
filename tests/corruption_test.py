"""Damaged, odd and hostile folders of runs: told in a line, and harmless.

The table of the whole campaign, a few hours on two cores:

  python -m pytest -m slow -s tests/corruption_test.py
"""

import gc
import io
import json
import os
import pathlib
import random
import shutil
import socket
import zipfile

import numpy as np
import pytest

from experiments.records import rows as rows_lib
from experiments.running import environment, restored
from ga_jax.guards import forms
from ga_jax.record import arrays, checkpoints, files, params, trace
from tests import corruption, scripts

CASES = [
  (kind, runtime)
  for kind in ('finished', 'interrupted')
  for runtime in ('simulate', 'threads')
]


@pytest.fixture(scope='module')
def run_of(tmp_path_factory):
  """Folders of runs by kind and runtime, made once."""
  root, made = tmp_path_factory.mktemp('runs'), {}

  def get(kind, runtime='simulate'):
    if (kind, runtime) not in made:
      made[kind, runtime] = getattr(corruption, kind)(root, runtime)
    return made[kind, runtime]

  return get


@pytest.fixture
def copied(run_of, tmp_path):
  """A copy of a finished run."""
  return shutil.copytree(run_of('finished'), tmp_path / 'run')


# The campaign.


@pytest.mark.parametrize(
  ('kind', 'runtime', 'forged', 'number'),
  [
    ('finished', 'simulate', False, 1),
    pytest.param('finished', 'simulate', True, 6, marks=pytest.mark.slow),
    pytest.param('finished', 'threads', True, 3, marks=pytest.mark.slow),
    ('interrupted', 'simulate', False, 1),
    pytest.param('interrupted', 'threads', True, 1, marks=pytest.mark.slow),
  ],
)
def test_damage_is_told_or_harmless(
  run_of, tmp_path, kind, runtime, forged, number
):
  told(run_of(kind, runtime), tmp_path, number, forged, False)


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'runtime'), CASES)
@pytest.mark.parametrize('forged', [False, True])
def test_any_damage_is_told_or_harmless(
  run_of, tmp_path, kind, runtime, forged
):
  told(run_of(kind, runtime), tmp_path, 200, forged, True)


def told(folder, tmp_path, number, forged, shown):
  with corruption.quick():
    trial = corruption.Trial(folder, tmp_path)
    table, wrong = corruption.campaign(trial, number, seed=0, forged=forged)
  if shown:
    print(f'\n{folder.name}, {"digests agree" if forged else "as it is"}')
    print('| file | tried | told | harmless |\n|---|---|---|---|')
    for name, row in table.items():
      print(f'| {name} | {" | ".join(map(str, row))} |')
  assert not wrong, '\n'.join(wrong)


# Readers.


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    (b'', 'Expecting value'),
    (b'{"a": 1', 'delimiter'),
    (b'\xff', 'decode'),
    (b'[NaN]', 'not JSON compliant'),
    (b'[1e999]', 'not JSON compliant'),
    (b'["\\ud800"]', 'surrogates'),
    (b'[1' + b'0' * 19 + b']', 'more than 64 bits'),
    (b'[' + b'9' * 10_000 + b']', 'more than 64 bits'),
    (b'[' * 100_000, 'too deep'),
    (b'[3]', 'must be an object of JSON'),
    (b'{"a": true}', 'a must be an integer from 0 to 9, got True'),
    (b'{"a": 10}', 'a must be an integer from 0 to 9, got 10'),
    (b'{}', 'a is missing'),
    (b'{"a": 1, "b": 2}', 'b is nothing that is known here'),
  ],
)
def test_json_of_another_form_is_damaged(tmp_path, content, said):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  form = forms.fields({'a': forms.integer(0, 9)})
  with pytest.raises(files.DamagedError, match=said) as error:
    files.read_json(str(path), form)
  assert str(error.value).startswith(f'{path} is damaged: ')
  assert len(str(error.value).splitlines()) == 1


def npz(header: bytes, rest: bytes = b'', name: str = 'x.npy') -> bytes:
  """An .npz file with one array, whose header says anything."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
    size = len(header).to_bytes(2, 'little')
    archive.writestr(name, b'\x93NUMPY\x01\x00' + size + header + rest)
  return stream.getvalue()


def header(shape: str, descr: str = "'<f8'") -> bytes:
  text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"
  return text.encode()


@pytest.mark.parametrize(
  'content',
  [
    npz(header('(1000000000000,)')),
    npz(header('(3,)'), b'\0' * 16),
    npz(header('(-1,)'), b'\0' * 8),
    npz(header('(0,)', "'|O'")),
    npz(header("(__import__('os').getpid(),)")),
    npz(header('(1,)', "'<U1'"), b'\xff\xff\xff\x7f'),
    npz(b'x' * 60_000),
    b'PK\x03\x04',
    b'',
  ],
  ids=[
    *('a_million_millions', 'fewer_than_said', 'negative', 'objects', 'code'),
    *('no_text', 'no_header', 'no_archive', 'nothing'),
  ],
)
def test_arrays_that_cannot_be_are_damaged(tmp_path, content):
  path = tmp_path / 'a.npz'
  path.write_bytes(content)
  with pytest.raises(files.DamagedError, match='is damaged: '):
    files.read_arrays(str(path))


def test_arrays_of_more_than_a_file_can_hold_are_refused_unread(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez_compressed(path, x=np.zeros(1000))
  content = bytearray(path.read_bytes())
  at = content.rindex(b'PK\x01\x02')  # what the directory says of x
  content[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, 'little')
  path.write_bytes(content)
  with pytest.raises(files.DamagedError, match='are said to be of 42949672'):
    files.read_arrays(str(path))


def test_arrays_are_read_back_as_they_were(tmp_path):
  path = str(tmp_path / 'a.npz')
  wanted = {
    'x': np.arange(6.0).reshape(2, 3),
    'f': np.asfortranarray(np.arange(6).reshape(2, 3)),
    'none': np.zeros((0, 3), np.float32),
    'names': np.array(['ä', 'bc']),
    'scalar': np.array(3),
    'events': np.zeros(2, trace.EVENT_DTYPE),
  }
  files.write_arrays(path, wanted)
  found = files.read_arrays(path)
  assert found.keys() == wanted.keys()
  for name, array in found.items():
    assert (array.dtype, array.shape) == (
      wanted[name].dtype,
      wanted[name].shape,
    )
    assert array.tobytes() == wanted[name].tobytes()
    assert array.flags.writeable


# What is no regular file.


def make_link(path, elsewhere):
  path.symlink_to(elsewhere)


def make_pipe(path, elsewhere):
  del elsewhere
  os.mkfifo(path)


def make_socket(path, elsewhere):
  del elsewhere
  here = os.getcwd()
  os.chdir(path.parent)  # its path may be too long
  try:
    socket.socket(socket.AF_UNIX).bind(path.name)
  finally:
    os.chdir(here)


@pytest.mark.parametrize('make', [make_link, make_pipe, make_socket])
@pytest.mark.parametrize(
  'name', ['config.json', 'trace.npz', 'params/leaves.json', '.lock']
)
def test_only_regular_files_are_read(copied, tmp_path, make, name):
  path = copied / name
  elsewhere = tmp_path / 'elsewhere'
  if path.exists():
    shutil.move(path, elsewhere)
  else:
    elsewhere.touch()
  make(path, elsewhere)
  before = elsewhere.read_bytes() if elsewhere.exists() else b''
  for command in ('verify', 'replay', 'report'):
    done = scripts.call(command, f'--workdir={copied}')
    assert (done.code, done.out) == (2, '')
    assert f'{name} in it is a' in done.err
    assert len(done.err.splitlines()) == 1
  if elsewhere.exists():
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize(
  'name', ['metrics.jsonl', 'checkpoints', 'trace.rows', 'tensorboard']
)
def test_a_run_never_goes_on_through_a_link(run_of, tmp_path, name):
  folder = shutil.copytree(run_of('interrupted', 'threads'), tmp_path / 'run')
  elsewhere = tmp_path / 'elsewhere'
  if (folder / name).exists():
    shutil.move(folder / name, elsewhere)
  else:
    elsewhere.mkdir()
  (folder / name).symlink_to(elsewhere)
  before = {
    p: p.read_bytes() for p in tmp_path.rglob('elsewhere*') if p.is_file()
  }
  done = scripts.call('train', '--resume', '--quiet', f'--workdir={folder}')
  assert done.code == 2
  assert f'{name} in it is a symbolic link: only regular files' in done.err
  for path, content in before.items():
    assert path.read_bytes() == content


@pytest.mark.parametrize('name', ['.probe', '.PID.partial.report.html'])
def test_a_report_writes_through_no_link(copied, tmp_path, name):
  name = name.replace('PID', str(os.getpid()))
  (tmp_path / 'mine').write_text('mine')
  (copied / name).symlink_to(tmp_path / 'mine')
  assert scripts.call('report', f'--workdir={copied}').code == 0
  assert (tmp_path / 'mine').read_text() == 'mine'


def test_a_manifest_lists_all_and_only_what_is_in_its_folder(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path / 'store')
  store.save(1, {'x': np.arange(3)})
  folder = pathlib.Path(store.newest().path)
  (folder / 'arrays' / 'more').touch()
  assert arrays.damage(str(folder), 'step', 1) == 'arrays/more was added'
  (folder / 'arrays' / 'more').unlink()
  (tmp_path / 'secret').write_text('x')
  manifest = json.loads((folder / 'manifest.json').read_text())
  manifest['files']['../../secret'] = [
    1,
    files.sha256(str(tmp_path / 'secret')),
  ]
  (folder / 'manifest.json').write_text(json.dumps(manifest))
  damage = arrays.damage(str(folder), 'step', 1)
  assert damage == '../../secret is missing'  # it was not looked at


# Settings.


@pytest.mark.parametrize(
  ('name', 'value', 'said'),
  [
    ('epochs', 'x', "epochs must be a finite number, got 'x'"),
    ('workers', 1.5, 'workers must be an integer'),
    ('workers', 0, '--workers=0: must be at least 1'),
    ('workers', 10**400, 'more than 64 bits'),
    ('augment', 1, 'augment must be true or false, got 1'),
    ('method', 'x', '--method=x: must be one of'),
    ('model', ['mlp'], 'model must be a string'),
    ('stalls', [[0, 1.0]], 'stalls[0] has 2 values, not 3'),
    ('boundaries', 'x', 'boundaries must be a list'),
    ('parameters', [['momentum']], 'parameters[0] has 1 values, not 2'),
    ('parameters', [['momentum', 'x']], '--momentum=x'),
    ('parameters', {}, 'parameters must be a list'),
    ('\x1b[2J', 1, 'is nothing that is known here'),
  ],
)
def test_settings_of_another_kind_are_refused_by_name(
  copied, name, value, said
):
  path = copied / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
  for command in ('verify', 'replay', 'report'):
    done = scripts.call(command, f'--workdir={copied}')
    assert (done.code, done.out) == (2, '')
    assert said in done.err
    assert done.err.strip().isprintable()


def test_a_report_plays_no_schedule_of_a_thousand_million_workers(copied):
  for name in ('trace.npz', 'digests.json', 'began.json'):
    (copied / name).unlink()
  path = copied / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'workers': 10**9}))
  assert scripts.call('report', f'--workdir={copied}').code == 0
  page = (copied / 'report.html').read_text()
  assert 'No timeline: too long to be played again' in page


# What a record may set.


HOSTILE = (
  '--xla_dump_to={folder} --xla_cpu_enable_fast_math=true '
  '--xla_disable_hlo_passes=fusion'
)


def test_flags_of_xla_that_a_record_may_not_set_are_refused(copied, tmp_path):
  path, folder = copied / 'environment.json', tmp_path / 'dumped'
  found = json.loads(path.read_text())
  found['xla_flags'] = HOSTILE.format(folder=folder)
  path.write_text(json.dumps(found))
  corruption.forge(copied, 'environment.json')
  done = scripts.call('replay', f'--workdir={copied}')
  assert (done.code, done.out) == (2, '')
  for flag in (f'--xla_dump_to={folder}', '--xla_disable_hlo_passes=fusion'):
    assert (
      f"xla_flags was '{flag}', which no record may set for this process"
      in done.err
    )
  assert '--anyway' in done.err
  assert not folder.exists()


def differing(**recorded):
  return [
    environment.Difference(name, value, 'now')
    for name, value in recorded.items()
  ]


def test_a_record_sets_known_variables_to_known_values():
  variables, remaining = environment.restorable(
    differing(
      xla_flags='--xla_cpu_enable_fast_math=true --xla_backend_optimization_'
      'level=0',
      thread_pool=3,
      jax_default_prng_impl='rbg',
      jax_enable_x64=True,
    )
  )
  assert remaining == []
  assert variables == {
    'XLA_FLAGS': '--xla_cpu_enable_fast_math=true '
    '--xla_backend_optimization_level=0',
    'PJRT_NPROC': None,
    'NPROC': '3',
    'JAX_DEFAULT_PRNG_IMPL': 'rbg',
    'JAX_ENABLE_X64': 'True',
  }


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('thread_pool', 10**9),
    ('thread_pool', 0),
    ('thread_pool', '4; touch x'),
    ('jax_num_cpu_devices', 10**9),
    ('jax_default_prng_impl', 'mine'),
    ('jax_default_matmul_precision', ['high']),
    ('jax_enable_x64', 'yes'),
    ('xla_flags', '/home/me/flags'),
    ('xla_flags', '--xla_backend_optimization_level=9'),
    ('xla_flags', '--xla_cpu_enable_fast_math=maybe'),
    ('xla_flags', ['--xla_cpu_enable_fast_math=true']),
  ],
)
def test_other_values_are_not_taken_from_a_record(name, value):
  variables, remaining = environment.restorable(differing(**{name: value}))
  assert variables in ({}, {'XLA_FLAGS': None})
  [one] = remaining
  assert isinstance(one, restored.Refused)
  assert str(one).startswith(f'{name} was {value!r}, which no record may set')


def test_every_variable_and_flag_that_a_record_may_set_has_a_reason():
  for *_, why in (*restored.VARIABLES.values(), *restored.XLA_FLAGS.values()):
    assert why


# A run that goes on.


def resumed(folder):
  return scripts.call('train', '--resume', '--quiet', f'--workdir={folder}')


def test_a_damaged_row_of_metrics_is_left_out_and_told(run_of, tmp_path):
  folder = shutil.copytree(run_of('interrupted'), tmp_path / 'run')
  path = folder / 'metrics.jsonl'
  lines = path.read_text().splitlines()
  damaged = [
    '{"epoch": ',
    lines[1].replace('"train_loss": ', '"train_loss": 1'),
  ]
  for i, line in enumerate(damaged):
    path.write_text('\n'.join([*lines[:i], line, *lines[i + 1 :]]))
    kept, numbers = rows_lib.read(str(path))
    assert (len(kept), numbers) == (len(lines) - 1, [i + 1])
  done = resumed(folder)
  assert done.code == 0, done.err
  assert (
    f'note: {path} has rows that are damaged or lost (2): left out' in done.err
  )


def test_a_row_that_was_lost_is_told(tmp_path):
  path = str(tmp_path / 'metrics.jsonl')
  log = rows_lib.Rows(path, [])
  for i in range(4):
    log.write({'epoch': float(i), 'batches': i, 'test_error': np.float32(i)})
  log.close()
  assert rows_lib.read(path)[1] == []
  lines = pathlib.Path(path).read_text().splitlines()
  pathlib.Path(path).write_text('\n'.join([lines[0], *lines[2:]]))
  assert rows_lib.read(path)[1] == [2]


def test_a_pickled_checkpoint_is_refused_with_its_version(run_of, tmp_path):
  folder = shutil.copytree(run_of('interrupted'), tmp_path / 'run')
  newest = sorted((folder / 'checkpoints').iterdir())[-1]
  (newest / 'host.pickle').write_bytes(b'cos\nsystem\n(S"touch x"\ntR.')
  corruption.forge(folder, str((newest / 'host.pickle').relative_to(folder)))
  (folder / 'versions.json').write_text('{"ga_jax": "0.1.0"}')
  done = resumed(folder)
  assert (done.code, done.out) == (2, '')
  assert 'has checkpoints of ga_jax 0.1.0, which are pickled' in done.err


def test_a_cluster_is_joined_only_by_its_address_on_the_command_line(
  run_of, tmp_path
):
  folder = shutil.copytree(run_of('interrupted', 'threads'), tmp_path / 'run')
  path = folder / 'config.json'
  found = json.loads(path.read_text())
  found |= {'runtime': 'ray', 'address': 'evil.example:6379'}
  path.write_text(json.dumps(found))
  done = resumed(folder)
  assert (done.code, done.out) == (2, '')
  assert 'add --address=evil.example:6379' in done.err


def report_on(folder):
  done = scripts.call('report', f'--workdir={folder}')
  assert (done.code, done.err) == (0, '')
  page = (folder / 'report.html').read_text()
  return page.partition('<section id="missing">')[2]


@pytest.mark.parametrize(
  ('name', 'value'),
  [('address', 'lokal'), ('data_path', '/elsewhere'), ('clock_times', 'x.npz')],
)
def test_another_place_in_the_settings_is_told(run_of, tmp_path, name, value):
  folder = shutil.copytree(run_of('interrupted', 'threads'), tmp_path / 'run')
  path = folder / 'config.json'
  told = 'config.json was changed after the run began'
  assert told not in report_on(folder)
  path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
  assert told in report_on(folder)
  done = resumed(folder)
  assert (done.code, done.out) == (2, '')
  assert f'error: --{name}={value}: ' in done.err


def cut(path, rows, size=None):
  """Leaves the first rows of a file: lines, or pieces of so many bytes."""
  content = path.read_bytes()
  pieces = content.splitlines(keepends=True)
  if size:
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
  assert rows < len(pieces)
  path.write_bytes(b''.join(pieces[:rows]))


@pytest.mark.parametrize('runtime', ['simulate', 'threads'])
@pytest.mark.parametrize('rows', [0, 1])
def test_rows_that_a_checkpoint_knows_are_missed(
  run_of, tmp_path, runtime, rows
):
  folder = shutil.copytree(run_of('interrupted', runtime), tmp_path / 'run')
  told = 'was saved after its row of'
  assert told not in report_on(folder)
  cut(folder / 'metrics.jsonl', rows)
  assert told in report_on(folder)
  done = resumed(folder)
  assert done.code == 0, done.err
  assert 'note: metrics.jsonl ends after ' in done.err
  assert told in done.err


def test_a_record_that_is_shorter_than_the_metrics_is_told(run_of, tmp_path):
  """Also where there is no checkpoint; what came after them nobody knows."""
  folder = shutil.copytree(run_of('interrupted', 'threads'), tmp_path / 'run')
  shutil.rmtree(folder / 'checkpoints')
  whole = len(trace.read_rows(str(folder / 'trace.rows')))
  cut(folder / 'trace.rows', whole - 1, trace.ROW_DTYPE.itemsize)
  assert 'trace.rows ends' in report_on(folder)
  cut(folder / 'trace.rows', 12, trace.ROW_DTYPE.itemsize)
  assert 'trace.rows ends' in report_on(folder)
  cut(folder / 'metrics.jsonl', 0)
  assert 'trace.rows ends' not in report_on(folder)


def test_verify_misses_rows_of_a_record_that_was_kept(run_of, tmp_path):
  folder = tmp_path / 'run'
  done = scripts.call(
    'train',
    *corruption.SMALL,
    *('--runtime=threads', '--checkpoint_every=4', f'--workdir={folder}'),
  )
  assert done.code == 0, done.err
  assert scripts.call('verify', f'--workdir={folder}').code == 0
  cut(folder / 'trace.rows', 9, trace.ROW_DTYPE.itemsize)
  done = scripts.call('verify', f'--workdir={folder}')
  assert done.code == 1
  assert 'WRONG: trace.rows ends after ' in done.out


@pytest.mark.parametrize('command', ['verify', 'replay'])
def test_no_states_are_made_of_workers_that_never_came(copied, command):
  """All files agree, and a rule has a momentum of each of them."""
  number = 10**9
  path = str(copied / 'trace.npz')
  trace.Trace.load(path)._replace(num_workers=number).save(path)
  for name, where in (('config.json', ()), ('began.json', ('settings',))):
    found = json.loads((copied / name).read_text())
    settings = found
    for key in where:
      settings = settings[key]
    settings |= {'workers': number, 'method': 'multi_asgd'}
    (copied / name).write_text(json.dumps(found))
  corruption.forge(copied, 'trace.npz')
  done = scripts.call(command, f'--workdir={copied}')
  assert done.code == {'verify': 1, 'replay': 2}[command]
  said = 'workers: trace.npz is of 1000000000, of which 2 came; summary.json'
  assert said in done.out + done.err
  assert len((done.out + done.err).splitlines()) == 1


def test_what_orbax_raises_it_does_not_print_too(run_of, tmp_path, capfd):
  """Its threads would print tracebacks, some of them later."""
  folder = run_of('finished') / 'params'
  for i in range(8):
    copy = shutil.copytree(folder, tmp_path / str(i))
    for path in (copy / 'arrays').glob('**/d/*'):  # the values
      content = path.read_bytes()
      path.write_bytes(content[: len(content) * i // 8])
    corruption.forge(copy, 'leaves.json')
    with pytest.raises(ValueError, match='cannot be read: ') as error:
      params.load_params(str(copy))
    assert len(str(error.value).splitlines()) == 1
  del error
  gc.collect()  # what was raised and nobody has asked for is printed by now
  assert capfd.readouterr().err == ''


def test_changed_rows_of_a_record_are_told(run_of, tmp_path):
  folder = shutil.copytree(run_of('interrupted', 'threads'), tmp_path / 'run')
  path = folder / 'trace.rows'
  content = path.read_bytes()
  size, rng = trace.ROW_DTYPE.itemsize, random.Random(0)
  for _ in range(100):
    at = rng.randrange(len(content))
    flipped = bytes([content[at] ^ 1 << rng.randrange(8)])
    path.write_bytes(content[:at] + flipped + content[at + 1 :])
    said = []
    if at < size:
      with pytest.raises(trace.TraceError, match='row 0 of'):
        trace.read_rows(str(path))
      continue
    rows = trace.read_rows(str(path), warn=said.append)
    assert len(rows) == at // size
    assert said == [
      f'row {at // size} of {path} is damaged or cut off: it is left out, with '
      'what follows it'
    ]
