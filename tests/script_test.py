"""The scripts' command lines: help, flag files, and what is refused."""

import glob
import os
import shlex
import signal
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from experiments.running import control
from experiments.script import launch
from experiments.settings import check, help_screens
from experiments.settings import table as settings_lib
from ga_jax import data, policies, rules
from ga_jax.live import server
from ga_jax.server import ledger
from tests import idx_files, scripts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BENCHES = [
  f'bench.{name}'
  for name in (
    *('accelerator', 'against_torch', 'all', 'cold_start', 'compiled_for'),
    *('decoding', 'device_checks', 'growth'),
    *('many_seeds', 'memory', 'memory_per_update', 'scheduling'),
    *('simulated_devices', 'simulation_overhead', 'straggler'),
    'update_kernel',
  )
]
SCRIPTS = [
  *('train', 'compare', 'survey', 'reproduce', 'replay', 'verify', 'report'),
  *('methods', 'prepare', 'documents.compatibility'),
  *('documents.digits_curves', 'documents.screens'),
  *BENCHES,
]


# Help.


@pytest.mark.parametrize('name', SCRIPTS)
@pytest.mark.parametrize('flag', ['--help', '--helpshort'])
def test_help_fits_a_screen(name, flag):
  code, out, err = scripts.call(name, flag)
  assert (code, err) == (0, '')
  lines = out.rstrip('\n').splitlines()
  assert 1 < len(lines) <= 40
  assert max(map(len, lines)) <= 80
  assert f'python -m experiments.{name}' in out


def test_help_is_grouped_and_shows_defaults():
  _, out, _ = scripts.call('train', '--helpshort')
  titles = [line for line in out.splitlines() if line and line[0].islower()]
  assert titles == ['model and data', 'method', 'cluster', 'training', 'output']
  for line in (
    '  --method=ga              python -m experiments.methods explains them',
    '  --workers=1 ',
    '  --resume   ',
    '  --batch_size=32 ',
    '--helpfull tells of all ',
  ):
    assert line in out


@pytest.mark.parametrize('name', SCRIPTS)
def test_helpfull_names_every_flag_once(name):
  code, out, _ = scripts.call(name, '--helpfull')
  assert code == 0
  titles = [
    'this script',
    'of absl',
    *(group.title for group in help_screens.groups()),
  ]
  begins = min(i for t in titles if (i := out.find(f'\n{t}:\n')) >= 0)
  out = out[begins:]  # the docstring may name flags too
  named = [
    line.split()[0].lstrip('-').split('=')[0]
    for line in out.splitlines()
    if line.startswith('  --')
  ]
  assert len(named) == len(set(named))
  assert {'flagfile', 'helpshort', 'verbosity'} < set(named)
  assert out.index('of absl:') > max(map(out.find, (' --quiet', ' --workdir')))


def test_every_shared_flag_has_a_group():
  own = {
    'train': set(),
    'compare': set(),
    'survey': set(),
    'replay': {'fast', 'until', 'anyway'},
    'reproduce': {
      *('table', 'scale', 'list', 'columns', 'processes', 'seconds'),
    },
    'prepare': {'archive', 'verify'},
  }
  for name, wanted in own.items():
    _, out, _ = scripts.call(name, '--helpfull')
    _, _, found = out.partition('\nthis script:\n')
    found, _, _ = found.partition('\n\n')
    named = {
      line.split()[0].lstrip('-').split('=')[0]
      for line in found.splitlines()
      if line.startswith('  --')
    }
    assert named == wanted


# Flag files, other names.


def settings_from(*arguments):
  """The settings that train reads, from a run that it refuses to begin."""
  seen = []

  def recorded(settings):
    seen.append(settings)
    raise settings_lib.SettingError('workdir', '', 'nothing is computed')

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(check, 'check', recorded)
    ended = scripts.call('train', *arguments)
  assert ended.err == 'error: --workdir=: nothing is computed\n', ended.err
  return seen[0]


def test_flag_files_nest_and_the_last_value_counts(tmp_path):
  inner, outer = tmp_path / 'inner.flags', tmp_path / 'outer.flags'
  inner.write_text('# a comment\n--workers=7\n\n--epochs=3\n')
  outer.write_text(f'--workers=5\n--flagfile={inner}\n// another\n--seed=2\n')
  found = settings_from('--epochs=9', f'--flagfile={outer}', '--seed=4')
  assert (found.workers, found.epochs, found.seed) == (7, 3.0, 4)


def presets():
  return sorted(glob.glob(os.path.join(ROOT, 'experiments/presets/*.flags')))


@pytest.mark.parametrize('path', presets(), ids=os.path.basename)
def test_every_preset_is_accepted_by_its_script(path):
  with open(path) as file:
    text = file.read()
  name = 'survey' if '--clocks=' in text else 'compare'
  name = name if '--methods=' in text else 'train'
  code, _, err = scripts.call(name, f'--flagfile={path}', '--holdout=x')
  assert (code, err) == (2, 'error: --holdout=x: must be an integer\n')


PRESET = os.path.join(ROOT, 'experiments/presets/fashion_mnist_mlp.flags')
THERE = '/usr/share/datasets/fashion-mnist'


@pytest.mark.parametrize(
  ('given', 'data_path'),
  [
    ('--flagfile={}', THERE),
    ('--flagfile={} --dataset=idx', THERE),
    ('--flagfile={} --dataset=digits', ''),
    ('--flagfile {} -dataset digits --seed=1', ''),
    ('--dataset=digits --flagfile={}', THERE),  # what comes later wins
    ('--flagfile={} --dataset=npz --data_path=/x', '/x'),
    ('--flagfile={} --data_path=/x --dataset=npz', '/x'),
    ('--data_path=/x --flagfile={} --dataset=npz', '/x'),
    ('--flagfile={} --data_path=/x', '/x'),
    ('--data_path=/x --dataset=npz', '/x'),
    ('--dataset=npz --data_path=/x --dataset=idx', '/x'),
  ],
)
def test_another_data_set_drops_the_path_of_a_flag_file(given, data_path):
  arguments = given.format(PRESET).split()
  assert settings_from(*arguments).data_path == data_path


def test_a_table_can_be_made_of_another_data_set():
  code, _, err = scripts.call(
    *('reproduce', '--table=fashion_mnist_mlp', '--dataset=digits')
  )
  assert code == 2  # digits were read
  assert err.startswith('error: --holdout=10000: cannot hold out 10000 of 1437')


def test_flag_names_of_other_libraries_are_accepted():
  found = settings_from('--lr=0.5', '--num_epochs=3', '--num_workers=2')
  assert (found.learning_rate, found.epochs, found.workers) == (0.5, 3.0, 2)
  assert help_screens.aliases() == {
    'num_workers': 'workers',
    'num_epochs': 'epochs',
    'lr': 'learning_rate',
  }


@pytest.mark.parametrize('other', rules.OTHER_NAMES)
def test_another_name_of_a_rule_is_recorded_as_the_one_it_has(other):
  found = settings_from(f'--method={other}', f'--rule={other}')
  assert {found.method, found.rule} == {rules.OTHER_NAMES[other]}


def test_another_name_of_a_policy_is_recorded_as_the_one_it_has():
  for other, name in policies.OTHER_NAMES.items():
    assert settings_from(f'--policy={other}').policy == name


# What is refused: (flag, arguments). Nothing is computed, since what comes last
# is refused even where the rest was not.
COMMON = [
  ('wrokers', ['--wrokers=3']),
  ('flagfile', ['--flagfile=/no/such/file']),
]
RUNS = [
  *COMMON,
  *(
    (flag, [f'--{flag}=x'])
    for flag in ('epochs', 'batch_size', 'holdout', 'latency', 'nesterov')
  ),
  ('epochs', ['--epochs']),
  ('epochs', ['--epochs=']),
  *(
    (text.split('=')[0], [f'--{text}'])
    for text in (
      *('dataset=x', 'data_path=/no/such', 'model=x', 'compute_dtype=int8'),
      *('rule=x', 'policy=x', 'program=x', 'compression=x', 'schedule=x'),
      *('holdout=-1', 'holdout=1437', 'segment_length=5', 'memory_length=3'),
      *('weight_decay=-1', 'weight_decay=nan', 'b1=0.5', 'granularity=layer'),
      *('stalls=1', 'stalls=a:b:c', 'deaths=1:2:3', 'deaths=99:1'),
      *('latency=-1', 'bandwidth=0', 'epochs=0', 'epochs=1e9', 'epochs=nan'),
      *('evaluate_every=0', 'batch_size=0', 'batch_size=99999'),
      *('boundaries=1', 'boundaries=x', 'decay_factor=0', 'warmup_epochs=-1'),
      *('executor=x', 'augment=x', 'remat=1.5', 'segment_length=-1'),
    )
  ),
]
TRAIN = [
  (text.split('=')[0], [f'--{text}'])
  for text in (
    *('method=sgd', 'workers=0', 'seed=-1', 'learning_rate=0', 'momentum=2'),
    *('clock=x', 'clock=recorded', 'clock_times=/no', 'runtime=mpi'),
    *('simulate_devices=x', 'simulate_devices=9999', 'devices=2'),
    *('pipeline_depth=1', 'address=x'),
    *('server_shards=2', 'straggler=0:2', 'keep_checkpoints=0'),
    *('workers_per_device=2', 'wait_for_workers=9'),
    *('server_accelerator=cpu', 'server_accelerator=x'),
    *('checkpoint_every=x', 'checkpoint_every=-5', 'checkpoint_every=0s'),
    *('checkpoint_every=nans', 'resume', 'accelerator=x', 'keep_checkpoints=x'),
  )
]
THREADS = [
  ('pipeline_depth', ['--method=dana_slim', '--pipeline_depth=1']),
  ('pipeline_depth', ['--method=topk', '--pipeline_depth=1']),
  ('pipeline_depth', ['--method=ssgd', '--pipeline_depth=1']),
  ('pipeline_depth', ['--pipeline_depth=-1']),
  ('devices', ['--devices=-1']),
  ('devices', ['--devices=64']),
  ('devices', ['--devices=9999']),
  ('devices_per_worker', ['--devices_per_worker=0']),
  ('devices_per_worker', ['--devices_per_worker=3']),
  ('devices_per_worker', ['--devices_per_worker=32']),
  ('lease_seconds', ['--lease_seconds=0']),
  ('lease_seconds', ['--lease_seconds=nan']),
  ('straggler', ['--straggler=0']),
  ('straggler', ['--straggler=9:2']),
  ('latency', ['--latency=1']),
  ('executor', ['--executor=exact']),
]
RAY = [
  ('workers_per_device', ['--workers_per_device=0']),
  ('workers_per_device', ['--workers_per_device=0.5']),
  (
    'workers_per_device',
    ['--workers_per_device=2', '--devices_per_worker=2'],
  ),
  ('wait_for_workers', ['--wait_for_workers=0']),
  ('wait_for_workers', ['--wait_for_workers=nan']),
]
GRIDS = [
  (text.split('=')[0], [f'--{text}'])
  for text in (
    *('methods=', 'methods=x', 'methods=ga,ga', 'seeds=-1', 'seeds=x'),
    'seeds=10000000000000',
  )
]
REFUSED = {
  'train': [
    *RUNS,
    *TRAIN,
    *((flag, ['--runtime=threads', *rest]) for flag, rest in THREADS),
    *((flag, ['--runtime=ray', *rest]) for flag, rest in RAY),
  ],
  'compare': [
    *RUNS,
    *GRIDS,
    *(
      (text.split('=')[0], [f'--{text}'])
      for text in (
        *('workers=', 'workers=0', 'workers=x', 'workers=2,2', 'seeds=0'),
        *('momenta=2', 'momenta=x', 'clock=x', 'learning_rates=x'),
        *('learning_rate=-1', 'baseline=sgd', 'momentum=nan'),
      )
    ),
    ('holdout', ['--learning_rates=0.1']),
    ('learning_rates', ['--holdout=9', '--learning_rates=0.1,0.01']),
    ('learning_rates', ['--holdout=9', '--learning_rates=nan']),
    ('momentum', ['--momenta=0.5', '--momentum=0.5']),
    ('learning_rate', ['--learning_rates=1', '--holdout=9', '--lr=1']),
  ],
  'survey': [
    *COMMON,
    *((flag, ['--holdout=9', *rest]) for flag, rest in GRIDS),
    ('holdout', []),
    *(
      (text.split('=')[0], ['--holdout=9', f'--{text}'])
      for text in (
        *('clocks=', 'clocks=x', 'workers=0', 'seeds=0', 'baseline=x'),
        *('learning_rates=2,1', 'learning_rates=', 'epochs=0'),
      )
    ),
  ],
  'reproduce': [
    *COMMON,
    ('table', []),
    ('table', ['--table=x']),
    ('scale', ['--table=digits_mlp', '--scale=x']),
    *(
      (text.split('=')[0], ['--table=digits_mlp', f'--{text}'])
      for text in (
        *('methods=x', 'clocks=x', 'columns=-1', 'seeds=-1', 'processes=-1'),
        *('learning_rate=1', 'epochs=0', 'model=x', 'batch_size=0'),
        'data_path=/no/such',
      )
    ),
    ('learning_rate', ['--table=digits_mlp', '--lr=1']),
    ('runtime', ['--table=fashion_mnist_abs', '--runtime=threads']),
  ],
  'replay': [
    *COMMON,
    ('workdir', []),
    ('workdir', ['--workdir=/no/such']),
    ('until', ['--until=x']),
  ],
  'verify': [
    *COMMON,
    ('workdir', []),
    ('workdir', ['--workdir=/no/such']),
  ],
  'report': [
    *COMMON,
    ('workdir', []),
    ('workdir', ['--workdir=/no/such']),
  ],
  'prepare': [
    *COMMON,
    ('dataset', ['--dataset=x']),
    ('archive', ['--dataset=imagenet2012']),
    ('archive', ['--archive=/no/such']),
  ],
  'documents.screens': [
    *COMMON,
    ('picture', ['--picture=x.png']),
    ('picture', ['--picture=/proc/none/x.svg']),
    ('epochs', ['--epochs=0']),
  ],
  'methods': COMMON,
  'documents.compatibility': COMMON,
  'bench.against_torch': [
    *COMMON,
    ('models', ['--models=x']),
    ('models', ['--models=']),
    ('workers', ['--workers=0']),
    ('rounds', ['--rounds=0']),
    ('scale', ['--scale=0']),
    ('scale', ['--scale=nan']),
  ],
  'bench.all': [*COMMON, ('only', ['--only=x'])],
  'bench.cold_start': [*COMMON, ('rounds', ['--rounds=0'])],
  'bench.decoding': [
    *COMMON,
    ('pool', ['--pool=x']),
    ('pool', ['--pool=0']),
    ('images', ['--images=0']),
    ('rounds', ['--rounds=0']),
    ('batch_size', ['--batch_size=0']),
    ('step_seconds', ['--step_seconds=-1']),
  ],
  'bench.growth': [
    *COMMON,
    ('rounds', ['--rounds=0']),
    ('largest', ['--largest=0']),
  ],
  'bench.many_seeds': [
    *COMMON,
    ('model', ['--model=x']),
    ('seeds', ['--seeds=1']),
    ('rounds', ['--rounds=0']),
  ],
  'bench.memory': [
    *COMMON,
    ('methods', ['--methods=x']),
    ('workers', ['--workers=0']),
    ('side', ['--side=1']),
  ],
  'bench.memory_per_update': [
    *COMMON,
    ('ways', ['--ways=x']),
    ('updates', ['--updates=1']),
  ],
  'bench.scheduling': [
    *COMMON,
    ('policies', ['--policies=x']),
    ('arrivals', ['--arrivals=0']),
  ],
  'bench.simulated_devices': [
    *COMMON,
    ('updates', ['--updates=0']),
    ('gradient_ms', ['--gradient_ms=0']),
  ],
  'bench.simulation_overhead': [*COMMON, ('problems', ['--problems=x'])],
  'bench.straggler': [
    *COMMON,
    ('workers', ['--workers=1']),
    ('batches', ['--batches=0']),
    ('rounds', ['--rounds=0']),
    ('factor', ['--factor=nan']),
    ('gradient_seconds', ['--gradient_seconds=0']),
  ],
  'bench.update_kernel': [
    *COMMON,
    ('rules', ['--rules=x']),
    ('shapes', ['--shapes=x']),
    ('dtypes', ['--dtypes=x']),
    ('scale', ['--scale=-1']),
    ('rounds', ['--rounds=0']),
  ],
}


@pytest.mark.parametrize('name', REFUSED)
def test_bad_flags_are_named_in_one_line(name, tmp_path):
  idx_files.write(tmp_path)  # the tables' own data are not on every machine
  last = {
    'train': ['--workdir=/proc/none'],
    'compare': ['--workdir=/proc/none'],
    'survey': ['--workdir=/proc/none'],
    'reproduce': ['--folder=/proc/none', f'--data_path={tmp_path}'],
  }.get(name, [])
  wrong = []
  for flag, arguments in REFUSED[name]:
    code, out, err = scripts.call(name, *last, *arguments)
    told = err.startswith(f'error: --{flag}') and err.count('\n') == 1
    if (code, out) != (2, '') or not told:
      wrong.append((arguments, code, out[-200:], err[-400:]))
  assert not wrong, '\n'.join(map(str, wrong))


def test_an_unknown_flag_is_refused_with_the_nearest_name():
  _, _, err = scripts.call('train', '--wrokers=3')
  assert err == (
    'error: --wrokers: no such flag; did you mean --workers or '
    '--workers_per_device?\n'
  )
  _, _, err = scripts.call('train', '--quite_another=3')
  assert err.endswith('no such flag; --helpfull lists all flags\n')
  code, _, err = scripts.call('train', 'ga')
  assert code == 2
  assert err == "error: unexpected argument 'ga': all settings are --flags\n"


# How scripts end.


def fail(monkeypatch, capsys, error, **how):
  """What is printed where a script's computation raises an error."""

  def main(_):
    raise error

  monkeypatch.setattr(sys, 'argv', ['script'])
  with scripts.own_flags('verify'), pytest.raises(BaseException) as ended:
    launch.launch(main, lambda: None, **how)
  return ended.value, capsys.readouterr().err


@pytest.mark.parametrize(
  ('error', 'said'),
  [
    (data.DataError('a.jpg cannot be read'), 'a.jpg cannot be read'),
    (
      server.WorkersLostError(
        'all workers have died; the last one: Traceback\n  File "x"\n'
        'ga_jax.data.base.DataError: a.jpg cannot be read\n'
      ),
      'a.jpg cannot be read (all workers met it)',
    ),
    (ledger.NotFiniteError('batch 3 is not finite'), 'batch 3 is not finite'),
  ],
)
def test_errors_of_a_run_are_told_in_one_line(monkeypatch, capsys, error, said):
  ended, err = fail(monkeypatch, capsys, error)
  assert ended.code == 1
  assert err == f'error: {said}\n'


def test_an_example_that_no_thread_can_read_is_told_in_one_line(
  monkeypatch, capsys
):
  def batch_of(batch_id):
    if batch_id > 3:
      raise data.DataError('n01440764/a.jpg is no image')
    return np.ones(4, np.float32)

  with pytest.raises(server.WorkersLostError) as lost:
    ga_jax.run_on_threads(
      ga_jax.Job(
        lambda params, state, x, key: (((x - params) ** 2).mean(), state),
        jnp.zeros(()),
        batch_of,
        ga_jax.gap_aware(0.02),
        ga_jax.policies.asynchronous(),
      ),
      num_workers=2,
      num_batches=20,
    )
  ended, err = fail(monkeypatch, capsys, lost.value)
  assert ended.code == 1
  assert err == 'error: n01440764/a.jpg is no image (all workers met it)\n'


def test_bugs_keep_their_traceback(monkeypatch, capsys):
  bug = server.WorkersLostError(
    'Traceback\nZeroDivisionError: division by zero'
  )
  ended, _ = fail(monkeypatch, capsys, bug)
  assert ended is bug


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
  command = ['compare', '--note=a b', '--seeds=2']
  monkeypatch.setattr(launch, 'command', lambda: shlex.join(command))
  ended, err = fail(monkeypatch, capsys, KeyboardInterrupt(), goes_on=True)
  assert ended.code == 130
  assert err == (
    'interrupted: what was finished is kept; go on with: compare '
    "'--note=a b' --seeds=2\n"
  )
  ended, err = fail(monkeypatch, capsys, KeyboardInterrupt())
  assert err == 'interrupted: what was finished is kept\n'


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
  ended = []
  monkeypatch.setattr(control, 'at_once', ended.append)
  before = signal.getsignal(signal.SIGINT)
  with control.interruptible():
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
    assert not ended
    signal.raise_signal(signal.SIGINT)
  assert ended == [signal.SIGINT]
  assert signal.getsignal(signal.SIGINT) is before


def test_a_first_signal_finishes_the_update_in_hand(monkeypatch):
  ended, told, hooks = [], [], []
  monkeypatch.setattr(control, 'at_once', ended.append)
  before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
  try:
    one = control.Control()
    one.on_stop(lambda: hooks.append(1))
    one.install(lambda: told.append(1))
    signal.raise_signal(signal.SIGTERM)
    assert one.stopping
    assert one.signal == signal.SIGTERM
    assert (told, hooks, ended) == ([1], [1], [])
    signal.raise_signal(signal.SIGINT)
    assert ended == [signal.SIGINT]
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
