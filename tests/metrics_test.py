"""What a run measures and writes down, and that docs/metrics.md says so."""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import struct

import jax
import numpy as np
import optax
import pytest
from tensorboardX.proto import event_pb2

import ga_jax
from experiments.records import record
from experiments.running import setup, summaries, train
from experiments.screens import tensorboard
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax import clocks, policies, rules
from ga_jax.executors import execution
from ga_jax.rules.parts import layer_penalties, optimizer
from ga_jax.rules.parts import penalties as penalties_lib
from tests import cases, scripts
from tests.oracles import rules as oracles

PAGE = pathlib.Path(__file__).parent.parent / 'docs' / 'metrics.md'
SCRIPT = (
  *('--model=mlp', '--workers=4', '--epochs=2', '--batch_size=64'),
  *('--learning_rate=0.05', '--evaluate_every=0.5', '--quiet'),
)


# What arrivals are measured by.


def simulated(rule, layer_metrics=True, **options):
  policy = options.pop('policy', policies.asynchronous())
  job = cases.tiny_job(rule, policy, layer_metrics=layer_metrics)
  options = {'executor': 'exact', 'num_batches': 30, **options}
  return ga_jax.simulate(job, clocks.homogeneous(0), num_workers=3, **options)


def is_made_of_its_layers(result) -> bool:
  return are_made_of_layers(result.metrics, result.params)


def are_made_of_layers(seen, params) -> bool:
  """Whether gaps and mean penalties are what the layers' come to."""
  sizes = np.array([x.size for x in jax.tree.leaves(params)])
  weights = sizes / sizes.sum()
  assert seen['layer_gap'].shape == (len(seen['loss']), len(sizes))
  np.testing.assert_allclose(
    np.sqrt(seen['layer_gap'] ** 2 @ weights), seen['gap'], rtol=1e-5
  )
  np.testing.assert_allclose(
    seen['layer_mean_penalty'] @ weights, seen['mean_penalty'], rtol=1e-5
  )
  assert seen['gap'].max() > 0
  return True


@pytest.mark.slow
@pytest.mark.parametrize('name', cases.EVERY_RULE)
def test_layer_metrics_make_the_whole_and_change_no_bits(name):
  rule = cases.rule(name, 0.01)
  measured, plain = (simulated(rule, layer_metrics=on) for on in (True, False))
  assert is_made_of_its_layers(measured)
  assert cases.same_bits(measured.state, plain.state)
  more = {'layer_gap', 'layer_mean_penalty'}
  assert measured.metrics.keys() - plain.metrics.keys() == more
  for metric, values in plain.metrics.items():
    np.testing.assert_array_equal(measured.metrics[metric], values)


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [
    {'executor': 'fast'},
    {'policy': policies.softsync(2)},
    {'policy': policies.softsync(2), 'executor': 'fast'},
    {'devices': jax.devices()[:1]},
  ],
  ids=['fast', 'rounds', 'rounds, fast', 'parallel'],
)
def test_layer_metrics_make_the_whole_in_every_executor(options):
  result = simulated(cases.rule('ga', 0.01), **options)
  assert is_made_of_its_layers(result)
  if options.get('executor') == 'fast':  # it makes the same, to rounding
    own = simulated(cases.rule('ga', 0.01), **{**options, 'executor': 'exact'})
    for name in ('layer_gap', 'layer_mean_penalty'):
      np.testing.assert_allclose(
        result.metrics[name], own.metrics[name], rtol=1e-3, atol=1e-6
      )


LINEAR = {'a': np.zeros(3, np.float32), 'b': {'c': np.zeros((2, 2), 'f4')}}


def linear(params, model_state, x, key):
  """A loss whose gradient is the batch."""
  del key
  loss = x[:3] @ params['a'] + x[3:] @ params['b']['c'].ravel()
  return loss, model_state


def on_linear(layer_metrics, executor='exact'):
  return ga_jax.simulate(
    ga_jax.Job(
      linear,
      LINEAR,
      gradient,
      cases.rule('ga', 0.01),
      policies.asynchronous(),
      layer_metrics=layer_metrics,
    ),
    clocks.heterogeneous(0),
    num_workers=3,
    num_batches=20,
    executor=executor,
  )


def gradient(batch_id):
  rng = np.random.default_rng(batch_id)
  return rng.normal(size=7).astype(np.float32) * np.arange(1, 8, dtype='f4')


def test_layer_metrics_of_a_linear_loss_change_no_bits():
  measured, plain = (
    on_linear(layer_metrics) for layer_metrics in (True, False)
  )
  assert cases.same_bits(measured.state, plain.state)
  more = {'layer_gap', 'layer_mean_penalty'}
  assert measured.metrics.keys() - plain.metrics.keys() == more
  assert is_made_of_its_layers(measured)


@pytest.mark.parametrize(
  'executor', ['exact', pytest.param('fast', marks=pytest.mark.slow)]
)
def test_layer_metrics_are_those_of_the_formula(executor):
  result = on_linear(True, executor)
  assert layer_penalties.names(LINEAR) == ('a', 'b/c')
  oracle = oracles.GA(np.zeros(7), 0.01, 0.9, wd=1e-3)
  versions, gaps, penalties = [oracle.sent()], [], []
  for row in result.trace.applied():
    sent = versions[row['version']]
    gaps.append(np.square(oracle.theta - sent))
    oracle.arrive(gradient(row['first_batch']), sent, row['staleness'], 0)
    penalties.append(oracle.penalty)
    versions.append(oracle.sent())

  def means(rows):
    rows = np.array(rows)
    return np.stack([rows[:, :3].mean(1), rows[:, 3:].mean(1)], axis=1)

  seen = result.metrics
  assert seen['layer_mean_penalty'].max() > 1.5
  np.testing.assert_allclose(
    seen['layer_mean_penalty'], means(penalties), rtol=2e-4
  )
  np.testing.assert_allclose(
    seen['layer_gap'], np.sqrt(means(gaps)), rtol=2e-4, atol=1e-7
  )


@pytest.mark.slow
def test_layer_metrics_of_a_masked_rule_are_of_its_layers_alone():
  masked = optax.masked(
    rules.scale_by_staleness(),
    {'w': True, 'b': False, 'scale': False, 'v': True},
    mask_compatible_extra_args=True,
  )
  result = simulated(rules.chain(masked, rules.asgd(0.01)), executor='fast')
  seen = result.metrics
  stale = np.maximum(seen['staleness'], 1)
  assert stale.max() > 1
  for name, values in zip(
    layer_penalties.names(result.params),
    seen['layer_mean_penalty'].T,
    strict=True,
  ):
    expected = stale if name in ('w', 'v') else np.ones(len(stale))
    np.testing.assert_array_equal(values, expected)


def silent():
  """A rule that keeps a penalty and tells nobody of it."""
  return optimizer.correction(
    lambda params: penalties_lib.no_penalty(),
    lambda grads, state, params=None, **extra: (grads, state),
  )


@pytest.mark.parametrize(
  ('rule', 'why'),
  [
    (optax.apply_if_finite(rules.gap_aware(0.1), 3), 'inside lax.cond'),
    (rules.chain(silent(), rules.asgd(0.1)), 'layer_penalties.tell'),
  ],
)
def test_layer_metrics_refuse_a_penalty_that_is_not_told(rule, why):
  with pytest.raises(ValueError, match=why):
    simulated(rule)


def test_layer_metrics_are_refused_on_shards():
  job = cases.tiny_job(
    cases.rule('sa', 0.01), policies.asynchronous(), layer_metrics=True
  )
  with pytest.raises(ValueError, match='one server shard'):
    execution.check_shards(job, 2)
  wrong = settings_lib.Settings(
    runtime='ray', server_shards=2, layer_metrics=True
  )
  with pytest.raises(settings_lib.SettingError, match='--layer_metrics=True'):
    check.check(wrong)


def test_histograms_count_every_value_once():
  gaps = np.array([0.0, 1e-9, 1e-8, 0.5, 1.0, 2e9])
  found = summaries.histogram(gaps, summaries.decades(gaps))
  assert found['edges'] == [0.0, *(float(f'1e{k}') for k in range(-9, 10))]
  by_edge = dict(zip(found['edges'], found['counts'], strict=True))
  assert {e: c for e, c in by_edge.items() if c} == {
    0.0: 1,
    1e-9: 1,
    1e-8: 1,
    0.1: 1,
    1.0: 1,
    1e9: 1,
  }
  for power in (-12, 12):  # in another unit: the same counts
    other = summaries.histogram(
      gaps * 10.0**power, summaries.decades(gaps * 10.0**power)
    )
    assert other['counts'] == found['counts']
  nothing = np.zeros(3)
  found = summaries.histogram(nothing, summaries.decades(nothing))
  assert found == {'edges': [0.0], 'counts': [3]}
  found = summaries.histogram(
    np.array([0.5, 1.0, 1.9, 2.0, 1e6]), summaries.PENALTY_EDGES
  )
  assert found['counts'] == [1, 2, 1, *[0] * 8, 1]


# What the script writes.


@pytest.fixture(scope='module', autouse=True)
def relaxed():
  """What the scripts run with."""
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    yield


def script(*arguments) -> int:
  """Runs experiments.train; its exit code."""
  return scripts.call('train', *arguments).code


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run with all that it can write."""
  workdir = str(tmp_path_factory.mktemp('finished'))
  more = '--tensorboard', '--layer_metrics', f'--workdir={workdir}'
  assert script(*SCRIPT, *more) == 0
  return workdir


def rows_of(workdir):
  with open(os.path.join(workdir, 'metrics.jsonl')) as file:
    return [json.loads(line) for line in file]


def parts_of(workdir):
  """Arrivals by the row that they are in."""
  arrivals = record.load_arrivals(workdir)
  arrivals.pop('layers', None)
  ends = (
    arrivals['num_batches']
    .cumsum()
    .searchsorted([row['batches'] for row in rows_of(workdir)])
  )
  return [
    {name: values[first:last] for name, values in arrivals.items()}
    for first, last in zip([0, *(ends[:-1] + 1)], ends + 1, strict=True)
  ]


def test_arrivals_are_those_of_the_trace(finished):
  arrivals = record.load_arrivals(finished)
  applied = record.load_trace(finished).applied()
  for name in ('staleness', 'num_batches', 'time'):
    np.testing.assert_array_equal(arrivals[name], applied[name])
  assert arrivals['staleness'].dtype == np.int32
  assert arrivals['gap'].dtype == np.float32
  params, _ = record.load_params(finished, record.load_settings(finished))
  assert arrivals['layers'].tolist() == [
    f'Dense_{i}/{name}' for i in range(3) for name in ('bias', 'kernel')
  ]
  assert are_made_of_layers(arrivals, params)


def test_rows_sum_up_their_arrivals(finished):
  rows, parts = rows_of(finished), parts_of(finished)
  assert len(rows) == 4
  for row, part in zip(rows, parts, strict=True):
    assert row['time'] == part['time'][-1]
    assert row['train_loss'] == pytest.approx(part['loss'].mean(), rel=1e-6)
    assert row['max_staleness'] == part['staleness'].max()
    assert row['mean_gap'] == pytest.approx(part['gap'].mean(), rel=1e-6)
    assert row['max_penalty'] == part['max_penalty'].max()


def test_summary_has_the_quantiles_of_layers(finished):
  summary = record.load_json(finished, 'summary.json')
  arrivals = record.load_arrivals(finished)
  assert list(summary['layers']) == arrivals['layers'].tolist()
  for i, found in enumerate(summary['layers'].values()):
    gaps = np.sort(arrivals['layer_gap'][:, i])
    assert found['gap_quantiles'][0] == gaps[0]
    assert found['gap_quantiles'][-1] == gaps[-1]
    assert found['gap_quantiles'][2] == pytest.approx(np.median(gaps))
    assert found['penalty_quantiles'][0] == 1.0
    assert found['penalty_quantiles'][-1] > 1.0
  assert sum(summary['penalty_histogram']['counts']) == len(arrivals['gap'])


def test_arrivals_that_are_not_there_or_damaged_are_named(tmp_path):
  with pytest.raises(settings_lib.SettingError, match='no arrivals'):
    record.load_arrivals(str(tmp_path))
  (tmp_path / 'arrivals.npz').write_bytes(b'PK no archive')
  with pytest.raises(settings_lib.SettingError, match='damaged'):
    record.load_arrivals(str(tmp_path))


# TensorBoard.


def events_of(workdir):
  """The events of a run's files in the order in which TensorBoard reads them.

  Records are [length, its checksum, data, its checksum].
  """
  folder = pathlib.Path(workdir) / setup.EVENTS
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      yield event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


def shown(workdir):
  """What TensorBoard shows: {tag: {step: value}}; a later start forgets."""
  found = {}
  for event in events_of(workdir):
    if event.HasField('session_log'):
      for steps in found.values():
        for step in [step for step in steps if step >= event.step]:
          del steps[step]
    for value in event.summary.value:
      steps = found.setdefault(value.tag, {})
      assert event.step not in steps, value.tag  # nothing is there twice
      kind = value.WhichOneof('value')
      steps[event.step] = kind and getattr(value, kind)
  return found


def shows_the_rows(found, workdir) -> bool:
  """Whether event files hold what metrics.jsonl and arrivals.npz hold."""
  rows, parts = rows_of(workdir), parts_of(workdir)
  for name, tag in tensorboard.SCALARS.items():
    expected = {
      row['updates']: np.float32(row[name])
      for row in rows
      if row.get(name) is not None
    }
    assert found.get(tag, {}) == expected, tag
  for name, tag in tensorboard.HISTOGRAMS.items():
    assert len(found[tag]) == len(rows)
    for row, part in zip(rows, parts, strict=True):
      histogram = found[tag][row['updates']]
      values = part[name]
      assert histogram.num == sum(histogram.bucket) == len(values)
      assert histogram.min == values.min()
      assert histogram.max == values.max()
      assert histogram.sum == pytest.approx(values.sum(), rel=1e-5)
  return True


def test_event_files_hold_the_rows(finished):
  found = shown(finished)
  assert shows_the_rows(found, finished)
  part, step = parts_of(finished)[1], rows_of(finished)[1]['updates']
  counts = found['staleness/arrivals'][step]
  for limit, count in zip(counts.bucket_limit, counts.bucket, strict=True):
    assert count == np.sum(part['staleness'] == limit - 0.5)
  names = record.load_arrivals(finished)['layers'].tolist()
  for name, tag in tensorboard.LAYERS.items():
    for i, layer in enumerate(names):
      histogram = found[f'{tag}/{layer}'][step]
      total = part[name][:, i].astype(np.float64).sum()
      assert histogram.sum == pytest.approx(total, rel=1e-9)
  settings = found['settings/text_summary'][0].string_val[0].decode()
  assert '| learning_rate | 0.05 |' in settings
  assert '| layer_metrics | True |' in settings


@pytest.mark.slow
def test_a_resumed_run_shows_every_row_once(tmp_path):
  workdir = str(tmp_path)
  where = f'--workdir={workdir}'
  more = '--tensorboard', '--checkpoint_every=16'
  assert script(*SCRIPT, where, *more) == 0
  before = rows_of(workdir)
  store = os.path.join(workdir, setup.CHECKPOINTS)
  for name in sorted(os.listdir(store))[1:]:  # it goes on with the oldest
    shutil.rmtree(os.path.join(store, name))
  assert script('--resume', where, '--quiet') == 0
  assert len(os.listdir(os.path.join(workdir, setup.EVENTS))) == 2
  after = rows_of(workdir)
  for name in ('updates', 'train_loss', 'time'):
    assert [row[name] for row in after] == [row[name] for row in before]
  assert shows_the_rows(shown(workdir), workdir)
  assert tensorboard_shows(workdir) == len(after)


def tensorboard_shows(workdir) -> int:
  """How many rows TensorBoard itself shows; they must be those that we read."""
  reader = pytest.importorskip(
    'tensorboard.backend.event_processing.event_accumulator'
  )
  folder = os.path.join(workdir, setup.EVENTS)
  seen = reader.EventAccumulator(folder, reader.STORE_EVERYTHING_SIZE_GUIDANCE)
  seen.Reload()
  ours = shown(workdir)
  for tag in seen.Tags()['scalars']:
    assert {e.step: e.value for e in seen.Scalars(tag)} == ours[tag]
  for tag in seen.Tags()['histograms']:
    for event in seen.Histograms(tag):
      assert event.histogram_value.num == ours[tag][event.step].num
  return len(seen.Scalars('train/loss'))


@pytest.mark.slow
def test_tensorboard_reads_the_event_files(finished):
  assert tensorboard_shows(finished) == len(rows_of(finished))


def test_tensorboards_table_of_runs_has_their_settings():
  settings = settings_lib.Settings(
    workers=4, parameters=(('momentum', 0.5),), stalls=((1, 2.0, 3.0),)
  )
  table = tensorboard.hparams(settings)
  assert set(tensorboard.MAIN) == set(table) - {'momentum', 'stalls'}
  assert (table['workers'], table['momentum']) == (4, 0.5)
  assert table['stalls'] == '((1, 2.0, 3.0),)'


def test_without_tensorboardx_one_line_says_so(monkeypatch, tmp_path):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name: None if name == 'tensorboardX' else find(name),
  )
  code, _, error = scripts.call(
    'train', '--tensorboard', f'--workdir={tmp_path / "run"}'
  )
  assert code == 2
  assert error.startswith('error: --tensorboard=True: needs tensorboardX: pip')
  assert len(error.splitlines()) == 1
  assert not (tmp_path / 'run').exists()


# The page.


def names_on_page() -> dict[str, set[str]]:
  """The names in the tables of docs/metrics.md, by section."""
  sections = re.split(r'^## (.*)$', PAGE.read_text(), flags=re.MULTILINE)
  return {
    title: set(re.findall(r'^\| `([^`]+)` \|', text, re.MULTILINE))
    for title, text in zip(sections[1::2], sections[2::2], strict=True)
  }


RAY = {'missing_workers', 'server_accelerator'}
LIVE = {'refused', 'worker_seconds', *RAY}
SIMULATED = {'simulated_time', 'simulated_speedup'}


def test_the_metrics_page_names_all_that_runs_write(finished):
  page = names_on_page()
  assert set().union(*rows_of(finished)) == page['metrics.jsonl']
  assert set(record.load_arrivals(finished)) == page['arrivals.npz']
  summary = record.load_json(finished, 'summary.json')
  assert set(summary) | LIVE == page['summary.json']
  assert set(summary) & (LIVE | SIMULATED) == SIMULATED
  tags = {
    re.sub('^(layer_[a-z]+)/.*', r'\1/LAYER', tag) for tag in shown(finished)
  }
  assert tags | {'validation/error'} == page['TensorBoard']  # no --holdout


@pytest.mark.slow
def test_the_metrics_page_names_all_that_live_runs_write():
  settings = settings_lib.Settings(
    model='mlp', runtime='threads', workers=2, epochs=1.0, layer_metrics=True
  )
  rows = []

  def observe(now):
    if now.row:
      rows.append((now.row, now.arrivals))

  done = train.train(check.check(settings), observe=observe)
  page = names_on_page()
  here = page['summary.json'] - SIMULATED - RAY
  assert set(done.summary) == here
  assert set(done.result.metrics) | {'layers'} == page['arrivals.npz']
  assert is_made_of_its_layers(done.result)
  ((row, arrivals),) = rows
  assert set(row) == page['metrics.jsonl'] - {'check'}
  assert cases.same_bits(arrivals, done.result.metrics)
  assert row['time'] == done.result.trace.applied()['time'][-1]
