"""The scripts: what they write, what they refuse, and what is repeatable."""

import dataclasses
import functools
import json
import math
import os

import jax
import numpy as np
import pytest

import ga_jax
from experiments import tasks
from experiments.catalogue import methods, schedules
from experiments.records import cells as cells_lib
from experiments.records import record
from experiments.reporting import tables
from experiments.running import inputs, setup, train
from experiments.settings import table as settings_lib
from experiments.studies import rate_search
from ga_jax.policies.parts.base import Kind
from tests import scripts

pytestmark = pytest.mark.usefixtures('quick_compiler', 'relaxed')

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SUMMARY_KEYS = {
  'test_error',
  'validation_error',
  'train_loss',
  'updates',
  'batches',
  'epochs',
  'mean_staleness',
  'max_staleness',
  'mean_gap',
  'mean_penalty',
  'wall_seconds',
  'compilation',
  'updates_per_second',
  'simulated_time',
  'simulated_speedup',
  'wasted_work',
  'bytes_pulled',
  'bytes_pushed',
  'diverged',
}
NAN, INF = math.nan, math.inf


@pytest.fixture
def train_script():
  """Runs experiments.train in this process: `(*flags) -> (code, out, err)`."""
  return functools.partial(scripts.call, 'train')


def refuses(result, flag):
  """Whether a script failed with one line about a flag."""
  code, out, err = result
  assert code == 2
  assert out == ''
  assert err.startswith('error: ')
  assert len(err.splitlines()) == 1, err
  assert flag in err
  return True


# One run.


# The others differ in a rule, or in a policy that policies_test.py runs.
QUICK = ('ga', 'dana_slim', 'ssgd', 'abs', 'local_sgd', 'topk')


@pytest.mark.parametrize(
  'method',
  [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in methods.METHODS
  ],
)
def test_every_method_trains(method):
  done = train.train(
    scripts.settings_of(method=method, workers=3, executor='exact', epochs=0.3)
  )
  trace = done.result.trace
  trace.verify()
  summary = done.summary
  assert set(summary) >= SUMMARY_KEYS
  assert summary['diverged'] is False
  assert summary['batches'] == 13  # no multiple of the local steps
  assert done.result.executed == len(trace.applied())
  assert summary['updates'] == trace.updates() <= 13
  assert 0 < summary['test_error'] < 1
  assert 0 < summary['train_loss'] < 10
  assert 0 <= summary['wasted_work'] < 1
  size = 4 * sum(x.size for x in jax.tree.leaves(done.result.params))
  issued = trace.events['event'] == Kind.ISSUE
  assert summary['bytes_pulled'] == size * issued.sum()
  smaller = methods.METHODS[method].compression != 'none'
  arrived = trace.events['event'] == Kind.ARRIVE
  assert (summary['bytes_pushed'] < size * arrived.sum()) == smaller


@pytest.mark.slow
def test_more_epochs_learn_more():
  few, many = (
    train.train(scripts.settings_of(epochs=epochs, workers=3)).summary
    for epochs in (0.25, 4)
  )
  assert many['test_error'] < 0.15 < few['test_error']


@pytest.mark.parametrize(
  'epochs', [3.0, pytest.param(0.25, marks=pytest.mark.slow)]
)
def test_a_huge_learning_rate_diverges(epochs):
  settings = scripts.settings_of(
    epochs=epochs, learning_rate=1e8, method='asgd'
  )
  summary = train.train(settings).summary
  assert summary['diverged'] is True
  for name in ('test_error', 'validation_error', 'train_loss'):
    assert summary[name] is None
  if epochs == 3.0:  # it ended early
    assert summary['batches'] < 3 * 44
    assert summary['epochs'] < 3


def test_train_says_that_it_diverged(train_script, tmp_path):
  code, out, _ = train_script(
    '--learning_rate=1e8',
    '--model=mlp',
    '--method=asgd',
    '--epochs=0.25',
    f'--workdir={tmp_path}',
  )
  assert code == 0
  assert 'DIVERGED' in out
  assert read_json(tmp_path, 'summary.json')['diverged'] is True
  ga_jax.Trace.load(str(tmp_path / 'trace.npz')).verify(complete=False)


def test_the_seed_reaches_keys_parameters_and_clock(monkeypatch):
  seeds, simulate = [], ga_jax.simulate

  def watched(job, *arguments, **others):
    seeds.append(job.seed)
    return simulate(job, *arguments, **others)

  monkeypatch.setattr(ga_jax, 'simulate', watched)
  one, other = (
    train.train(scripts.settings_of(method='ga', workers=3, seed=seed))
    for seed in (2, 3)
  )
  a, b = one.result, other.result
  assert seeds == [2, 3]  # of the keys, which this model and data do not use
  assert a.metrics['loss'][0] != b.metrics['loss'][0]
  assert not np.array_equal(a.trace.events['time'], b.trace.events['time'])


@pytest.mark.parametrize(
  ('method', 'model'),
  [
    ('ga', 'mlp'),
    pytest.param('ssgd', 'mlp', marks=pytest.mark.slow),
    pytest.param('ga', 'mlp_bn', marks=pytest.mark.slow),
  ],
)
def test_executors_agree(method, model):
  fast, exact = (
    train.train(
      scripts.settings_of(
        method=method, workers=3, executor=executor, model=model
      )
    )
    for executor in settings_lib.EXECUTORS
  )
  np.testing.assert_allclose(
    fast.result.metrics['loss'], exact.result.metrics['loss'], rtol=1e-3
  )
  assert fast.summary['train_loss'] == pytest.approx(
    exact.summary['train_loss'], rel=1e-4
  )
  for name in ('updates', 'mean_staleness', 'simulated_time'):
    assert fast.summary[name] == exact.summary[name]


def test_observers_see_every_batch():
  seen = []
  train.train(scripts.settings_of(epochs=2.0), observe=seen.append)
  assert [now.batches for now in seen] == [44, 88]
  assert {now.total_batches for now in seen} == {88}
  assert [now.row['batches'] for now in seen] == [44, 88]


# What the script leaves behind.


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of two epochs by the script: (working folder, what it printed)."""
  workdir = str(tmp_path_factory.mktemp('train'))
  code, out, err = scripts.call(
    'train',
    '--model=mlp_bn',
    '--method=ga',
    '--workers=4',
    '--epochs=2',
    '--holdout=200',
    '--momentum=0.8',
    '--seed=5',
    f'--workdir={workdir}',
  )
  assert code == 0, err
  return workdir, out


def read_json(*path):
  with open(os.path.join(*path)) as file:
    return json.load(file)


def test_train_writes_every_file_of_a_run(finished):
  workdir, _ = finished
  assert set(os.listdir(workdir)) == {
    'config.json',
    'versions.json',
    'environment.json',
    'began.json',
    'metrics.jsonl',
    'trace.npz',
    'arrivals.npz',
    'params',
    'summary.json',
    'digests.json',
  }
  versions = read_json(workdir, 'versions.json')
  assert versions['jax'] == jax.__version__
  assert versions['ga_jax'] == ga_jax.__version__


def test_train_writes_its_settings(finished):
  workdir, _ = finished
  wanted = settings_lib.Settings(
    model='mlp_bn',
    method='ga',
    workers=4,
    epochs=2.0,
    holdout=200,
    seed=5,
    parameters=(('momentum', 0.8),),
  )
  assert record.load_settings(workdir) == wanted
  assert read_json(workdir, 'config.json')['workers'] == 4


def test_train_writes_its_trace(finished):
  workdir, _ = finished
  trace = ga_jax.Trace.load(os.path.join(workdir, 'trace.npz'))
  trace.verify()
  summary = read_json(workdir, 'summary.json')
  applied = trace.applied()
  assert trace.num_workers == 4
  assert summary['batches'] == trace.num_batches == len(applied)
  assert summary['updates'] == trace.updates()
  assert summary['mean_staleness'] == applied['staleness'].mean()
  assert summary['max_staleness'] == applied['staleness'].max()
  assert summary['simulated_time'] == applied['time'][-1]


def test_the_summary_holds_counts_errors_and_losses(finished):
  workdir, out = finished
  summary = read_json(workdir, 'summary.json')
  assert set(summary) >= SUMMARY_KEYS
  per_epoch = (1437 - 200) // 32
  assert summary['batches'] == 2 * per_epoch
  assert summary['epochs'] == 2.0
  assert summary['diverged'] is False
  assert 0 < summary['test_error'] < 0.5  # guessing is wrong in 0.9
  assert 0 < summary['validation_error'] < 0.5
  assert summary['validation_error'] * 200 % 1 == pytest.approx(0, abs=1e-9)
  assert 0 < summary['train_loss'] < 1.5
  assert 2 < summary['mean_staleness'] <= 3  # N − 1, less at the start
  assert summary['mean_gap'] > 0
  assert 1 < summary['mean_penalty'] < summary['max_penalty']
  assert 3 < summary['simulated_speedup'] < 5
  assert summary['updates_per_second'] > 0
  assert f'{100 * summary["test_error"]:.2f} %' in out
  assert workdir in out


def test_train_logs_every_epoch(finished):
  workdir, _ = finished
  with open(os.path.join(workdir, 'metrics.jsonl')) as file:
    rows = [json.loads(line) for line in file]
  assert [row['epoch'] for row in rows] == [1.0, 2.0]
  assert [row['batches'] for row in rows] == [38, 76]
  assert rows[1]['train_loss'] < rows[0]['train_loss']
  assert all(0 < row['test_error'] < 1 for row in rows)


def test_inference_has_the_error_of_the_summary(finished):
  workdir, _ = finished
  predict = record.load(workdir)
  dataset = tasks.task_of(record.load_settings(workdir)).dataset
  summary = read_json(workdir, 'summary.json')
  for split, name in (
    (dataset.test, 'test_error'),
    (dataset.validation, 'validation_error'),
  ):
    classes = predict(split.inputs)
    assert classes.shape == split.labels.shape
    assert np.mean(classes != split.labels) == summary[name]


def test_a_run_is_not_replaced_by_accident(finished, train_script, tmp_path):
  workdir, _ = finished
  before = read_json(workdir, 'summary.json')
  assert refuses(train_script(f'--workdir={workdir}'), f'--workdir={workdir}')
  assert read_json(workdir, 'summary.json') == before


def test_a_run_is_replaced_when_asked(train_script, tmp_path):
  for more in (['--seed=1'], ['--overwrite', '--seed=2']):
    code, out, _ = train_script(
      '--model=mlp',
      '--method=asgd',
      '--epochs=1',
      f'--workdir={tmp_path}',
      *more,
    )
    assert code == 0
    assert 'test error' in out
  assert read_json(tmp_path, 'summary.json')['seed'] == 2
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 1
  predict = record.load(str(tmp_path))
  assert predict(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2,)


# What is refused.


BAD_SETTINGS = [
  ('dataset', {'dataset': 'imagenet'}),
  ('data_path', {'data_path': '/no/such/folder'}),
  ('model', {'model': 'resnet'}),
  ('method', {'method': 'sgd'}),
  ('rule', {'rule': 'adagrad'}),
  ('policy', {'policy': 'gossip'}),
  ('program', {'program': 'local'}),
  ('clock', {'clock': 'sundial'}),
  ('schedule', {'schedule': 'linear'}),
  ('executor', {'executor': 'slow'}),
  ('workers', {'workers': 0}),
  ('batch_size', {'batch_size': 0}),
  ('holdout', {'holdout': -1}),
  ('seed', {'seed': -1}),
  ('seed', {'seed': 2**31}),
  ('learning_rate', {'learning_rate': 0.0}),
  ('learning_rate', {'learning_rate': NAN}),
  ('learning_rate', {'learning_rate': INF}),
  ('epochs', {'epochs': -1.0}),
  ('epochs', {'epochs': INF}),
  ('decay_factor', {'decay_factor': 0.0}),
  ('warmup_epochs', {'warmup_epochs': -0.5}),
  ('latency', {'latency': -1.0}),
  ('latency', {'latency': NAN}),
  ('bandwidth', {'bandwidth': 0.0}),
  ('bandwidth', {'bandwidth': NAN}),
  ('schedule', {'schedule': 'step'}),
  ('boundaries', {'boundaries': (1.0,)}),
  ('boundaries', {'schedule': 'step', 'boundaries': (2.0, 1.0)}),
  ('boundaries', {'schedule': 'step', 'boundaries': (0.0,)}),
  ('boundaries', {'schedule': 'step', 'boundaries': (1.0, INF)}),
  ('boundaries', {'schedule': 'step', 'boundaries': (NAN,)}),
  ('policy', {'method': 'dana_ga', 'policy': 'synchronous'}),
  ('policy', {'method': 'ssgd', 'rule': 'multi_asgd'}),
  ('momentum', {'parameters': (('momentum', 1.0),)}),
  ('momentum', {'parameters': (('momentum', NAN),)}),
  ('momentum', {'method': 'ga_adam', 'parameters': (('momentum', 0.9),)}),
  ('weight_decay', {'parameters': (('weight_decay', -1.0),)}),
  ('granularity', {'parameters': (('granularity', 'layer'),)}),
  ('b1', {'method': 'ga', 'parameters': (('b1', 0.9),)}),
  ('dc_lambda', {'method': 'ga', 'parameters': (('dc_lambda', 0.1),)}),
  ('dc_lambda', {'method': 'dc_asgd', 'parameters': (('dc_lambda', -1.0),)}),
  ('b1', {'method': 'ga_adam', 'parameters': (('b1', 1.0),)}),
  ('b2', {'method': 'ga_adam', 'parameters': (('b2', -1.0),)}),
  ('weight_decay', {'parameters': (('weight_decay', INF),)}),
  ('softsync_n', {'method': 'ga', 'parameters': (('softsync_n', 2),)}),
  (
    'softsync_n',
    {'method': 'softsync', 'workers': 4, 'parameters': (('softsync_n', 9),)},
  ),
  ('max_staleness', {'method': 'abs', 'parameters': (('max_staleness', 1),)}),
  ('local_steps', {'method': 'easgd', 'parameters': (('local_steps', 0),)}),
  ('topk_ratio', {'method': 'topk', 'parameters': (('topk_ratio', 2.0),)}),
  ('topk_ratio', {'method': 'bf16', 'parameters': (('topk_ratio', 0.1),)}),
  (
    'outer_learning_rate',
    {'method': 'ga', 'parameters': (('outer_learning_rate', 0.1),)},
  ),
  (
    'outer_learning_rate',
    {'method': 'fedbuff', 'parameters': (('outer_learning_rate', 0.0),)},
  ),
  ('compression', {'method': 'easgd', 'compression': 'topk'}),
  ('compression', {'compression': 'zip'}),
  ('program', {'program': 'sgd'}),
  ('stalls', {'stalls': ((1, 1.0, 1.0),)}),
  ('stalls', {'workers': 2, 'stalls': ((1, 1.0, 0.0),)}),
  ('deaths', {'workers': 2, 'deaths': ((2, 1.0),)}),
  ('deaths', {'workers': 2, 'deaths': ((0, 1.0), (1, 2.0))}),
  ('clock_times', {'clock': 'recorded'}),
  ('clock_times', {'clock_times': __file__}),
  ('runtime', {'runtime': 'mpi'}),
  ('executor', {'runtime': 'threads', 'executor': 'exact'}),
  ('latency', {'runtime': 'threads', 'latency': 0.1}),
  ('straggler', {'straggler': ((0, 2.0),)}),
  ('straggler', {'runtime': 'threads', 'straggler': ((1, 2.0),)}),
  ('straggler', {'runtime': 'threads', 'straggler': ((0, 0.5),)}),
  ('devices', {'runtime': 'threads', 'devices': -1}),
  (
    'devices',
    {'runtime': 'threads', 'devices': 3, 'devices_per_worker': 2},
  ),
  ('devices_per_worker', {'devices_per_worker': 2}),
  ('devices_per_worker', {'runtime': 'threads', 'devices_per_worker': 0}),
  ('devices_per_worker', {'runtime': 'threads', 'devices_per_worker': 3}),
  ('lease_seconds', {'runtime': 'threads', 'lease_seconds': 0.0}),
  ('pipeline_depth', {'pipeline_depth': 1}),
]


@pytest.mark.parametrize(
  ('flag', 'fields'),
  BAD_SETTINGS,
)
def test_bad_settings_are_named(flag, fields):
  scripts.settings_of()  # the rest is fine
  with pytest.raises(settings_lib.SettingError, match=f'^--{flag}='):
    scripts.settings_of(**fields)


@pytest.mark.parametrize(
  ('flag', 'arguments'),
  [
    ('--workers', ['--workers=0']),
    ('--workers', ['--workers=1.5']),
    ('--epochs', ['--epochs=']),
    ('--epochs', ['--epochs=nan']),
    ('wrokers', ['--wrokers=3']),
    ('--dataset', ['--dataset=imagenet']),
    ('--data_path', ['--data_path=/no/such/folder']),
    ('--data_path', ['--dataset=idx']),
    ('--data_path', ['--dataset=npz', f'--data_path={__file__}']),
    ('--data_path', ['--dataset=digits', '--data_path=/tmp']),
    ('--boundaries', ['--schedule=step', '--boundaries=1,b']),
    ('--holdout', ['--holdout=1437']),
    ('--batch_size', ['--batch_size=1438']),
    ('--batch_size', ['--batch_size=1000', '--holdout=1000']),
    ('--b1', ['--b1=0.5']),
    ('--momentum', ['--method=ga_adam', '--momentum=0.5']),
    ('--policy', ['--method=dana_ga', '--policy=synchronous']),
    ('--workdir', [f'--workdir={__file__}']),
    ('--workdir', ['--workdir=/proc/none']),
    ("'ga'", ['ga']),
  ],
)
def test_train_refuses_in_one_line(train_script, flag, arguments):
  assert refuses(train_script(*arguments), flag)


def test_train_refuses_to_augment_vectors(train_script, tmp_path):
  path = str(tmp_path / 'vectors.npz')
  x, y = np.eye(9), np.arange(9) % 3
  np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
  arguments = ('--dataset=npz', f'--data_path={path}', '--batch_size=3')
  arguments += ('--model=mlp', f'--workdir={tmp_path}/run')
  assert refuses(train_script(*arguments, '--augment'), '--augment')


def test_train_says_which_model_needs_images(train_script, tmp_path):
  path = str(tmp_path / 'vectors.npz')
  x, y = np.eye(9), np.arange(9) % 3
  np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
  result = train_script(
    '--dataset=npz', f'--data_path={path}', '--batch_size=3', '--model=cnn'
  )
  assert refuses(result, '--model=cnn')


# Grids.


@pytest.fixture(scope='module')
def comparison(tmp_path_factory):
  """A small grid by the script: (working folder, what it printed)."""
  workdir = str(tmp_path_factory.mktemp('compare'))
  code, out, err = scripts.call(
    'compare',
    f'--workdir={workdir}',
    '--methods=asgd,ga',
    '--workers=1,3',
    '--seeds=2',
    '--model=mlp',
    '--epochs=0.25',
    '--learning_rate=0.05',
    '--note=a note',
  )
  assert code == 0, err
  return workdir, out


def grid_settings():
  return [
    scripts.settings_of(method=method, workers=n, seed=seed, learning_rate=0.05)
    for method in ('asgd', 'ga')
    for n in (1, 3)
    for seed in (0, 1)
  ]


def cells_in(workdir):
  seen = []
  path = os.path.join(workdir, 'metrics.jsonl')
  return cells_lib.Cells(path, seen.append), seen


def test_compare_writes_table_and_picture(comparison):
  workdir, out = comparison
  with open(os.path.join(workdir, 'table.md')) as file:
    table = file.read()
  assert table.strip() in out
  assert '| method | 1 worker ' in table
  assert '| 3 workers ' in table
  assert '\na note\n' in table
  with open(os.path.join(workdir, 'error-fixed.png'), 'rb') as file:
    assert file.read().startswith(b'\x89PNG')
  results = read_json(workdir, 'results.json')['fixed']
  assert set(results) == {'asgd', 'ga'}
  for method, line in results.items():
    assert set(line) == {'1', '3'}
    for summaries in line.values():
      assert [s['seed'] for s in summaries] == [0, 1]
      assert f'| {tables.cell_text(summaries)}' in table
      assert {s['method'] for s in summaries} == {method}


def test_compare_skips_finished_cells(comparison):
  workdir, _ = comparison
  cells, seen = cells_in(workdir)
  for settings in grid_settings():
    cells.summary(settings)
  assert cells.computed == 0
  assert len(set(seen)) == 8
  assert len(cells_lib.read(os.path.join(workdir, 'metrics.jsonl'))) == 8


@pytest.mark.parametrize(
  'damage', ['{"test_err', '', 'null\n', '\x80', '{"cell": "x", "up']
)
def test_a_damaged_line_is_computed_again(tmp_path, damage):
  settings = scripts.settings_of()
  path = tmp_path / 'metrics.jsonl'
  path.write_text(damage, encoding='latin-1')
  cells, _ = cells_in(tmp_path)
  first = cells.summary(settings)
  assert cells.computed == 1
  assert cells_lib.read(path) == {cells_lib.cell_name(settings): first}
  again, _ = cells_in(tmp_path)
  assert again.summary(settings) == first
  assert again.computed == 0


def test_a_cell_has_the_metrics_of_its_epochs(tmp_path):
  cells, _ = cells_in(tmp_path)
  settings = scripts.settings_of(epochs=2.0, workers=3)
  plain = cells.summary(settings)
  curve = cells.summary(settings, curve=True)['curve']
  assert cells.computed == 2
  assert 'curve' not in plain
  assert [row['epoch'] for row in curve] == [1.0, 2.0]
  assert curve[-1]['test_error'] == plain['test_error']
  assert 0 < curve[0]['time'] < curve[1]['time'] == plain['simulated_time']
  assert cells.summary(settings) == cells.summary(settings, curve=True)


def test_a_cell_of_compare_equals_training_it_alone(comparison):
  workdir, _ = comparison
  cells, _ = cells_in(workdir)
  settings = grid_settings()[-1]
  stored = cells.summary(settings)
  assert cells.computed == 0
  trained = scripts.untimed(train.train(settings).summary)
  assert {**trained, **scripts.untimed(stored)} == trained | {
    'clock': settings.clock,
    'jax': jax.__version__,
    'inputs': inputs.of(settings),
    'settings': {
      'epochs': 0.25,
      'learning_rate': 0.05,
      'model': 'mlp',
      'seed': 1,
      'workers': 3,
    },
  }
  assert len(stored) > 20


def test_cells_of_other_settings_have_other_names():
  base = scripts.settings_of()
  others = {
    'dataset': 'npz',
    'data_path': '/tmp',
    'bandwidth': 5.0,
    'boundaries': (1.0,),
    'parameters': (('momentum', 0.5),),
    'stalls': ((0, 1.0, 1.0),),
    'deaths': ((0, 1.0),),
    'straggler': ((0, 2.0),),
  }
  names = {cells_lib.cell_name(base)}
  fields = dataclasses.fields(settings_lib.Settings)
  for field in fields:
    value = getattr(base, field.name)
    if isinstance(value, bool):
      value = not value
    elif isinstance(value, (int, float)) and math.isfinite(value):
      value = value + 1
    elif isinstance(value, str):
      value = value + 'x'
    other = {field.name: others.get(field.name, value)}
    names.add(cells_lib.cell_name(dataclasses.replace(base, **other)))
  assert len(names) == 1 + len(fields)
  assert all('/' not in name for name in names)


@pytest.mark.parametrize(
  ('method', 'why'),
  [('abs', 'rounds change in size'), ('local_sgd', 'steps of its own')],
)
def test_a_rate_that_cannot_be_scaled_is_refused(method, why):
  with pytest.raises(
    settings_lib.SettingError, match=f'--scale_lr=True.*{why}'
  ):
    scripts.settings_of(method=method, workers=4, scale_lr=True)


@pytest.mark.slow
def test_compare_sweeps_learning_rates(tmp_path):
  workdir = str(tmp_path)
  code, _, err = scripts.call(
    'compare',
    f'--workdir={workdir}',
    '--methods=ga',
    '--workers=2',
    '--seeds=1',
    '--model=mlp',
    '--epochs=0.1',
    '--holdout=200',
    '--learning_rates=0.01,0.03',
  )
  assert code == 0, err
  results = read_json(workdir, 'results.json')
  assert set(results) == {'unchanged', 'best'}
  scores = {'asgd': {}, 'ga': {}}
  rows = cells_lib.read(os.path.join(workdir, 'metrics.jsonl'))
  for cell in rows.values():
    scores[cell['method']][cell['learning_rate']] = cell['validation_error']
  unchanged = results['unchanged']['ga']['2'][0]
  best = results['best']['ga']['2'][0]
  swept = {rate for rate in scores['ga'] if rate in scores['asgd']}
  assert {0.01, 0.03} < swept  # the grid was extended
  baseline = scores['asgd']
  assert baseline[unchanged['learning_rate']] == min(baseline.values())
  assert best['validation_error'] == min(scores['ga'].values())
  with open(os.path.join(workdir, 'table.md')) as file:
    assert f'{best["learning_rate"]:g}' in file.read()
  for protocol in results:
    assert os.path.exists(os.path.join(workdir, f'error-{protocol}.png'))


@pytest.fixture
def fake_training(monkeypatch):
  """Replaces training by a function: `(error_of) -> trained settings`."""

  def install(error_of):
    trained = []

    def fake(settings, **_):
      trained.append(settings)
      error = error_of(settings)
      return setup.Run(
        {
          'validation_error': error,
          'diverged': error is None,
          'learning_rate': settings.learning_rate,
        },
        None,
      )

    monkeypatch.setattr(train, 'train', fake)
    return trained

  return install


def parabola(settings):
  return (math.log10(settings.learning_rate) + 2) ** 2


@pytest.mark.parametrize(
  ('rates', 'tried'),
  [
    ((0.001, 0.01, 0.1), {0.001, 0.01, 0.1}),  # bracketed
    ((0.1, 1.0), {0.001, 0.01, 0.1, 1.0}),
    ((1e-5, 1e-4), {1e-5, 1e-4, 1e-3, 0.01, 0.1}),
    ((0.01, 0.1), {0.001, 0.01, 0.1}),
    ((0.002, 0.01), {0.002, 0.01, 0.05}),
    ((0.01,), {0.00316, 0.01, 0.0316}),
  ],
)
def test_best_rate_is_bracketed(tmp_path, fake_training, rates, tried):
  trained = fake_training(parabola)
  cells, _ = cells_in(tmp_path)
  base = scripts.settings_of(method='ga', parameters=(('momentum', 0.5),))
  best, scores, found = rate_search.best_rate(cells, base, rates, (0, 1))
  assert found
  assert best == dataclasses.replace(base, learning_rate=0.01)
  assert set(scores) == tried
  assert scores[0.01] == 0
  assert {(s.learning_rate, s.seed) for s in trained} == {
    (rate, seed) for rate in tried for seed in (0, 1)
  }
  assert len(trained) == cells.computed == 2 * len(tried)
  assert {s.parameters for s in trained} == {base.parameters}


def test_best_rate_counts_a_diverged_run_as_all_wrong(tmp_path, fake_training):
  def error_of(settings):
    diverges = settings.learning_rate == 1.0 and settings.seed == 1
    return None if diverges else 0.2 / settings.learning_rate**0.1

  fake_training(error_of)
  cells, _ = cells_in(tmp_path)
  rates = (0.01, 0.1, 1.0)
  best, scores, found = rate_search.best_rate(
    cells, scripts.settings_of(), rates, (0, 1)
  )
  assert found
  assert best.learning_rate == 0.1
  assert scores[1.0] == pytest.approx((0.2 + 1.0) / 2)


@pytest.mark.parametrize(
  ('errors', 'best_rate'),
  [
    ({0.1: 0.5, 0.2: 0.3, 0.4: 0.3, 0.8: 0.5}, 0.2),
    ({0.1: 0.5, 0.2: 0.4, 0.4: 0.3, 0.8: 0.5}, 0.4),
    ({0.1: 0.5, 0.2: 0.4, 0.4: 0.3, 0.8: 0.3}, 0.4),  # so not at the edge
  ],
)
def test_best_rate_takes_the_smaller_of_equals(
  tmp_path, fake_training, errors, best_rate
):
  trained = fake_training(lambda settings: errors[settings.learning_rate])
  cells, _ = cells_in(tmp_path)
  rates = tuple(errors)
  best, scores, found = rate_search.best_rate(
    cells, scripts.settings_of(), rates, (0,)
  )
  assert found
  assert best.learning_rate == best_rate
  assert scores == errors
  assert len(trained) == 4


@pytest.mark.parametrize('error', [0.5, None])
def test_best_rate_gives_up_after_its_last_extension(
  tmp_path, fake_training, error
):
  trained = fake_training(lambda settings: error)
  cells, _ = cells_in(tmp_path)
  best, scores, found = rate_search.best_rate(
    cells, scripts.settings_of(), (0.1, 1.0), (0,)
  )
  assert not found
  assert len(trained) == 2 + rate_search.MAX_EXTENSIONS
  assert best.learning_rate == min(scores)


# Tables.


def summaries(*errors):
  return [{'test_error': e, 'diverged': e is None} for e in errors]


@pytest.mark.parametrize(
  ('errors', 'text'),
  [
    ((0.1, 0.2, 0.3), '20.00 ± 10.00'),
    ((0.0125, 0.0125), '1.25 ± 0.00'),
    ((0.05,), '5.00'),
    ((0.1, None, 0.2), '15.00 ± 7.07 (1 of 3 diverged)'),
    ((None, 0.1), '10.00 (1 of 2 diverged)'),
    ((None, None), 'diverged'),
    ((None,), 'diverged'),
  ],
)
def test_the_text_of_a_cell_shows_mean_spread_and_diverged(errors, text):
  assert tables.cell_text(summaries(*errors)) == text


def test_error_table_has_a_row_per_method():
  results = {
    'asgd': {1: summaries(0.1), 16: summaries(None)},
    'ga': {1: summaries(0.1), 16: summaries(0.125)},
  }
  assert tables.error_table(results, [1, 16]).splitlines() == [
    '| method | 1 worker | 16 workers |',
    '|--------|----------|------------|',
    '| asgd   | 10.00    | diverged   |',
    '| ga     | 10.00    | 12.50      |',
  ]


# Schedules.


def schedule(kind='constant', **fields):
  shape = {
    'warmup': 0,
    'warmup_start': 1.0,
    'boundaries': (),
    'factor': 0.1,
    'total': 0,
  }
  return schedules.Schedule(kind, **{**shape, **fields})


COSINE_3_OF_4 = 0.14644660940672627  # (1 + cos(3π/4)) / 2


@pytest.mark.parametrize(
  ('shape', 'rates'),
  [
    (schedule(), {0: 0.8, 10**6: 0.8}),
    (
      schedule('step', boundaries=(10, 20), factor=0.5),
      {0: 0.8, 9: 0.8, 10: 0.4, 19: 0.4, 20: 0.2, 1000: 0.2},
    ),
    (
      schedule('cosine', total=100),
      {0: 0.8, 50: 0.4, 75: 0.8 * COSINE_3_OF_4, 100: 0.0, 200: 0.0},
    ),
    (
      schedule(warmup=10, warmup_start=0.25),
      {0: 0.2, 5: 0.5, 10: 0.8, 11: 0.8},
    ),
    (
      schedule('cosine', total=110, warmup=10, warmup_start=0.25),
      {0: 0.2, 5: 0.5, 10: 0.8, 60: 0.4, 85: 0.8 * COSINE_3_OF_4, 110: 0.0},
    ),
    (
      schedule('step', boundaries=(5,), warmup=10, warmup_start=0.0),
      {0: 0.0, 4: 0.32, 5: 0.04, 10: 0.08},
    ),
  ],
)
def test_a_schedule_gives_its_rates(shape, rates):
  rate = jax.jit(shape.at(0.8))
  for count, wanted in rates.items():
    assert float(rate(count)) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_schedule_settings_are_in_epochs():
  settings = scripts.settings_of(
    schedule='step',
    boundaries=(1.0, 2.5),
    decay_factor=0.5,
    warmup_epochs=0.5,
    workers=4,
    epochs=3.0,
  )
  spec = setup.assembled(settings, total=30, per_epoch=10).rule_fn
  assert spec.schedule == schedules.Schedule(
    kind='step',
    warmup=5,
    warmup_start=0.25,
    boundaries=(10, 25),
    factor=0.5,
    total=0,
  )
  cosine = setup.assembled(
    scripts.settings_of(schedule='cosine'), 30, 10
  ).rule_fn
  assert cosine.schedule.total == 30


def test_training_follows_its_schedule():
  settings = scripts.settings_of(epochs=1.5, method='asgd')
  cut = dataclasses.replace(
    settings, schedule='step', boundaries=(0.5,), decay_factor=1e-30
  )
  plain, frozen = (train.train(s).result for s in (settings, cut))
  half = 22  # batches, of 44 in an epoch
  losses, stopped = plain.metrics['loss'], frozen.metrics['loss']
  np.testing.assert_allclose(losses[: half + 1], stopped[: half + 1], rtol=1e-5)
  assert np.all(losses[half + 5 :] != stopped[half + 5 :])
