"""Tables of papers: their cells, their runs, their pages."""

import concurrent.futures
import functools
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags

from experiments import tasks
from experiments.records import cells
from experiments.reporting import statistics, tables
from experiments.running import setup, train, watch
from experiments.screens import progress
from experiments.script import launch as launch_lib
from experiments.settings import check
from experiments.settings import table as settings_lib
from experiments.studies import (
  budget,
  design,
  papers,
  processes,
  rate_search,
  study_page,
)
from experiments.studies import study as study_lib
from ga_jax import plots
from tests import idx_files, scripts

pytestmark = pytest.mark.usefixtures('relaxed')

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FINISHED = 10  # runs after which a table is killed


def call(*arguments, **how):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.reproduce', *arguments],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
    **how,
  )


# --- tables


def instead_of_launching(monkeypatch, does):
  """Makes a script do `does(prepare)`, without the data of its tables."""
  monkeypatch.setattr(tasks, 'source_of', lambda settings: None)
  monkeypatch.setattr(
    launch_lib, 'launch', lambda main, prepare, **options: does(prepare)
  )


def test_every_cell_of_every_table_has_a_meaning(tmp_path, monkeypatch):
  rows = []

  def read_all(prepare):
    for name in papers.TABLES:
      for scale in prepare.__globals__['SCALES']:
        sys.argv = ['x', f'--table={name}', f'--scale={scale}', '--data_path=']
        flags.FLAGS.unparse_flags()
        for flag in flags.FLAGS:
          flags.FLAGS[flag].unparse()
        flags.FLAGS(sys.argv)
        plans = prepare().plans.values()
        plan, *_ = plans
        cells = {s for p in plans for s in p.settings.values()}
        rows.append(
          (name, scale, len(cells), len(plan.lines()), len(plan.columns))
        )

  instead_of_launching(monkeypatch, read_all)
  monkeypatch.chdir(tmp_path)
  assert scripts.call('reproduce').code == 0
  assert {row[0] for row in rows} == set(papers.TABLES)
  for name, scale, found, lines, columns in rows:
    table = papers.TABLES[name]
    wanted = len(table.lines) * len(table.columns) * len(table.clocks)
    assert lines == len(table.lines)
    if scale == 'full':
      assert columns == len(table.columns)
      assert found == wanted  # all of them differ


def test_published_figures_belong_to_a_cell():
  for table in papers.TABLES.values():
    lines = {'', *(line.label for line in table.lines)}
    columns = {column.label for column in table.columns}
    for (line, column), (figure, source) in table.published.items():
      assert line in lines
      assert column in columns
      assert figure
      assert source


def test_the_list_names_every_table():
  code, out, err = scripts.call('reproduce', '--list')
  assert code == 0, err
  rows = {line.split('|')[1].strip() for line in out.splitlines()[2:-2]}
  assert rows == set(papers.TABLES)


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (('--table=none',), '--table=none: must be one of digits_mlp'),
    (('--table=digits_mlp', '--scale=tiny'), '--scale=tiny: must be one'),
    (
      ('--table=fashion_mnist_mlp', '--data_path=/nowhere'),
      '--data_path=/nowhere: no such file or folder; apt install '
      'dataset-fashion-mnist',
    ),
  ],
)
def test_a_table_that_cannot_be_made_is_refused_in_one_line(
  arguments, said, tmp_path
):
  code, _, err = scripts.call('reproduce', *arguments, f'--folder={tmp_path}')
  assert code == 2
  assert err.startswith('error: ')
  assert said in err
  assert err.count('\n') == 1


def test_the_first_table_is_made_where_nothing_is_installed(
  tmp_path, monkeypatch
):
  """The README's first one, of one worker and for less long."""
  monkeypatch.setenv('HOME', str(tmp_path / 'nobody'))
  first, *_ = papers.TABLES
  code, out, err = scripts.call(
    *('reproduce', f'--table={first}', '--scale=smoke', '--epochs=1'),
    *('--methods=asgd', '--columns=1', '--processes=1', '--quiet'),
    f'--folder={tmp_path}',
  )
  assert (code, err) == (0, '')
  page = (tmp_path / 'table.md').read_text()
  assert page in out
  rows = re.findall(
    r'^\| asgd, momentum \S+ +\| +(\d+\.\d+)', page, re.MULTILINE
  )
  assert len(rows) >= 4  # both protocols, both momenta
  assert all(float(error) < 60 for error in rows)
  assert cells.read(tmp_path / 'metrics.jsonl')


# --- runs


def tiny(**fields):
  return settings_lib.Settings(
    model='mlp', epochs=0.2, learning_rate=0.05, **fields
  )


@pytest.mark.parametrize(
  'method',
  [
    method if method == 'sa' else pytest.param(method, marks=pytest.mark.slow)
    for method in papers.ALONE
  ],
)
def test_one_worker_equals_the_method_that_stands_for_it(method):
  settings = check.check(tiny(method=method, clock='heterogeneous'))
  stand_in = study_lib.canonical(settings)
  assert stand_in == tiny(method=papers.ALONE[method])
  ours, theirs = (train.train(s).result for s in (settings, stand_in))
  np.testing.assert_allclose(
    ours.metrics['loss'], theirs.metrics['loss'], rtol=2e-5
  )


def test_several_workers_have_no_stand_in():
  settings = tiny(method='ga', workers=2, clock='heterogeneous')
  assert study_lib.canonical(settings) == settings


def test_the_name_of_a_cell_does_not_depend_on_folders():
  one = cells.cell_name(
    tiny(dataset='idx', data_path='/a/data'), any_version=True
  )
  assert one == cells.cell_name(
    tiny(dataset='idx', data_path='/b/data'), any_version=True
  )
  assert one != cells.cell_name(
    tiny(dataset='idx', data_path='/b/other'), any_version=True
  )
  assert one != cells.cell_name(tiny(dataset='idx', data_path='/a/data'))


def test_lines_that_threads_append_are_whole(tmp_path):
  path = tmp_path / 'metrics.jsonl'

  def write(i):
    cells.append(path, {'cell': f'{i}', 'much': 'x' * 5000})

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(write, range(200)))
  assert set(cells.read(path)) == {f'{i}' for i in range(200)}
  assert len(path.read_bytes().splitlines()) == 200


def test_a_full_disk_is_told_by_name():
  with pytest.raises(OSError, match='/dev/full'):
    cells.append('/dev/full', {'cell': 'x'})


def test_half_decades_lie_on_both_sides_of_a_rate():
  rates = [float(f'{rate:.3g}') for rate in rate_search.half_decades(0.0316)]
  assert rates == [0.01, 0.0316, 0.1]


def test_a_search_begins_where_the_last_one_ended(monkeypatch, tmp_path):
  tried = []

  def fake(settings, **_):
    tried.append((settings.workers, settings.learning_rate))
    best = {1: -1.0, 4: -1.5, 8: -3.0}[settings.workers]
    error = abs(math.log10(settings.learning_rate) - best)
    return setup.Run(
      {'validation_error': error, 'test_error': error, 'diverged': False}, None
    )

  monkeypatch.setattr(train, 'train', fake)
  numbers = (1, 4, 8)
  plan = rate_search.Plan(
    {('ga', n): tiny(workers=n) for n in numbers},
    numbers,
    (0.1, 10**-0.5),
    {'ga': tiny()},
    (0,),
    follows=True,
  )
  unchanged, best = rate_search.outcomes(
    plan, cells.Cells(tmp_path / 'x.jsonl')
  )
  assert {n: min(s, key=s.get) for (_, n), s in best.scores.items()} == {
    1: 0.1,
    4: 0.0316,
    8: 0.001,
  }
  assert not best.unbracketed
  assert set(best.scores['ga', 4]) == {0.01, 0.0316, 0.1, 0.316}
  assert set(best.scores['ga', 8]) == {
    3.16e-4,
    0.001,
    0.00316,
    0.01,
    0.0316,
    0.1,
  }
  assert set(unchanged.scores['ga', 8]) == set(best.scores['ga', 1])
  assert len(tried) == len(set(tried))


# --- a table, killed and gone on with


@pytest.mark.parametrize(
  ('methods', 'processes'),
  [
    pytest.param('asgd', 1, marks=pytest.mark.slow),
    pytest.param('asgd,ga', 2, marks=pytest.mark.slow),
  ],
)
def test_a_table_that_was_killed_ends_as_the_whole_one(
  tmp_path, methods, processes
):
  data = tmp_path / 'data'
  data.mkdir()
  idx_files.write(data)
  arguments = [
    '--table=fashion_mnist_mlp',
    '--scale=smoke',
    f'--data_path={data}',
    f'--methods={methods}',
    '--holdout=40',
    '--batch_size=10',
    '--epochs=2',
    '--warmup_epochs=0.5',
    '--boundaries=1,1.5',
  ]
  whole = call(
    *(*arguments, f'--folder={tmp_path}/whole', f'--processes={processes}')
  )
  assert whole.returncode == 0, whole.stderr
  assert whole.stderr.startswith('device: cpu, ')
  rows = tmp_path / 'killed' / 'metrics.jsonl'
  with subprocess.Popen(
    [
      *(sys.executable, '-m', 'experiments.reproduce', *arguments),
      f'--folder={tmp_path}/killed',
    ],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  ) as process:
    deadline = time.monotonic() + 120
    while not rows.exists() or rows.read_bytes().count(b'\n') < FINISHED:
      assert process.poll() is None
      assert time.monotonic() < deadline
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
  assert not (tmp_path / 'killed' / 'table.md').exists()
  before = rows.read_bytes()
  with open(rows, 'ab') as file:
    file.write(b'{"cell": "cut sho')
  done = call(*arguments, f'--folder={tmp_path}/killed')
  assert done.returncode == 0, done.stderr
  assert rows.read_bytes().startswith(before)
  page = {
    name: (tmp_path / name / 'table.md').read_text().splitlines()
    for name in ('whole', 'killed')
  }
  assert page['whole'][0].startswith('`python -m experiments.reproduce --table')
  # The first line is the command, the last one says how long it took.
  assert page['whole'][1:-1] == page['killed'][1:-1]
  found = {
    name: cells.read(tmp_path / name / 'metrics.jsonl')
    for name in ('whole', 'killed')
  }
  assert set(found['whole']) == set(found['killed'])
  for kind in ('error-unchanged', 'error-best', 'error-over-rate'):
    for clock in ('homogeneous', 'heterogeneous'):
      picture = tmp_path / 'whole' / f'{kind}-{clock}.png'
      assert picture.read_bytes().startswith(b'\x89PNG')
      assert f']({picture.name})' in '\n'.join(page['whole'])


# --- in an order in which little is of use, and within a time


@pytest.mark.parametrize(
  ('number', 'order'),
  [(1, [0]), (2, [0, 1]), (3, [0, 2, 1]), (6, [0, 5, 2, 1, 3, 4])],
)
def test_columns_come_coarse_to_fine(number, order):
  assert processes.coarse_to_fine(tuple(range(number))) == order


@pytest.fixture
def instant(monkeypatch):
  """Runs that take 10 seconds of a clock of their own; (clock, done)."""
  clock, done = [0.0], []

  def fake(settings, *, observe, evaluate_epochs):
    observe(watch.Progress(0.0, 0, 1, None, None))
    clock[0] += 10.0
    observe(watch.Progress(1.0, 1, 1, None, None))
    done.append((settings.method, settings.workers, settings.seed))
    rate = settings.learning_rate
    error = abs(math.log10(rate) + 1) / 10 + 0.01 * settings.seed + 0.1
    found = summary(error, validation_error=error, seed=settings.seed)
    return setup.Run(found | {'learning_rate': rate}, None)

  monkeypatch.setattr(train, 'train', fake)
  monkeypatch.setattr(cells.inputs, 'of', lambda settings: {})
  budget_of = functools.partial(budget.Budget, clock_fn=lambda: clock[0])
  monkeypatch.setattr(budget, 'Budget', budget_of)
  return clock, done


FEW = design.Table(
  'a table',
  'cifar10_resnet20',
  design.methods(('asgd', 'ga')),
  design.workers(1, 4, 16),
  seeds=2,
  pictures=(),
)


def compute(study, ends=math.inf):
  with progress.GridProgress(None, quiet=True) as shown:
    return processes.compute(study, 1, shown, ends)


def test_all_methods_come_first_with_one_seed(instant, tmp_path):
  _, done = instant
  assert compute(study_of(FEW)._replace(folder=str(tmp_path)))
  one = [('asgd', 1), ('asgd', 16), ('ga', 16), ('asgd', 4), ('ga', 4)]
  assert done == [(*cell, seed) for seed in (0, 1) for cell in one]


def test_a_table_stops_in_time_says_what_is_missing_and_goes_on(
  instant, tmp_path
):
  clock, done = instant
  table = FEW._replace(rates=(0.01, 0.1, 1.0), search_seeds=1)
  study = study_of(table)._replace(folder=str(tmp_path), scale='quarter')
  pages = []

  def page_of(study):
    return study_page.page(study, study_lib.outcomes(study), 'x')

  while not compute(study, clock[0] + 75.0):
    assert len(done) == 7 * (len(pages) + 1)  # an eighth would end at 80
    pages.append(page_of(study))
  assert len(pages) > 1
  assert (
    '**Not finished.** Runs that are missing: unchanged, homogeneous'
    in (pages[0])
  )
  assert '; best, homogeneous clock: ' in pages[0]
  assert any(' (1 of 2 seeds) ' in page for page in pages)
  assert any('| – ' in page for page in pages)
  assert 'the quarter schedule: all epochs and milestones' in pages[0]
  whole = page_of(study)
  assert 'Not finished' not in whole
  assert '| – ' not in whole
  number = len(done)
  at_once = study._replace(folder=str(tmp_path / 'at_once'))
  assert compute(at_once)
  assert len(done) == 2 * number  # nothing was done twice
  assert page_of(at_once) == whole


def test_a_run_in_hand_is_given_up_when_the_time_is_up(instant, tmp_path):
  _, done = instant
  study = study_of(FEW)._replace(folder=str(tmp_path))
  assert not compute(study, 5.0)
  assert not done


def test_a_part_of_a_schedule():
  table = papers.TABLES['cifar10_resnet20']
  assert table.divided(16)[1:] == (
    '--boundaries=5,7.5',
    '--warmup_epochs=0.3125',
  )
  assert table.divided(4) == (
    '--epochs=40',
    '--boundaries=20,30',
    '--warmup_epochs=1.25',
  )
  assert papers.TABLES['digits_mlp'].divided(4) == ('--epochs=5',)


# --- pages


def summary(error, **more):
  return {
    'test_error': error,
    'diverged': error is None,
    'learning_rate': 0.1,
    'seed': 0,
    'updates': 10,
    'wall_seconds': 60.0,
    'device': 'abacus',
    'jax': '1.2',
    **more,
  }


def test_a_difference_is_shown_with_its_t_value():
  ours = [summary(e, seed=i) for i, e in enumerate((0.12, 0.13, 0.14))]
  theirs = [summary(0.1, seed=i) for i in range(3)]
  # mean 3 points, standard deviation 1, standard error 1/√3
  assert tables.difference(ours, theirs) == '+3.00 (5.2)'
  assert tables.difference(theirs, ours) == '-3.00 (5.2)'
  assert tables.difference(ours, ours) == ''
  failed = summary(None, seed=2)
  assert tables.difference(ours, [*theirs[:2], failed]) == ''
  assert tables.difference(ours, theirs[1:]) == '+3.50 (7.0)'  # of those there
  assert tables.difference(ours, []) == ''
  assert tables.difference(ours[:1], theirs[:1]) == ''


def study_of(table, clock='homogeneous'):
  def make(method, workers, clock, parameters):
    return tiny(
      method=method,
      workers=workers,
      clock=clock,
      parameters=tuple(sorted(parameters.items())),
    )

  plan = study_lib.plan_of(table, table.columns, table.seeds, make, clock)
  return study_lib.Study('x', table, {clock: plan}, '')


def test_published_figures_stand_beside_ours(tmp_path):
  table = design.Table(
    'a table',
    'cifar10_resnet20',
    design.methods(('asgd', 'ga')),
    design.workers(1, 4),
    seeds=2,
    published={('', 'N = 1'): ('8.37', 'A'), ('ga', 'N = 4'): ('9.1', 'B')},
    note='A note.',
  )
  study = study_of(table)._replace(folder=str(tmp_path))
  results = {
    'asgd': {
      'N = 1': [summary(0.1), summary(0.1)],
      'N = 4': [summary(None), summary(None)],
    },
    'ga': {
      'N = 1': [summary(0.1), summary(0.1)],
      'N = 4': [summary(0.11), summary(0.13)],
    },
  }
  found = {'homogeneous': [rate_search.Outcome('fixed', results)]}
  text = study_page.page(study, found, 'python x')
  assert text.startswith('`python x` made this page.\n')
  assert '| asgd   | 10.00 ± 0.00 [1: 8.37] | diverged ' in text
  assert '| ga     | 10.00 ± 0.00 [1: 8.37] | 12.00 ± 1.41 [2: 9.1] |' in text
  assert '[1] A; [2] B' in text
  assert 'A note.' in text
  assert 'abacus (JAX 1.2)' in text
  assert '8 different runs are shown, 80 updates in 8 minutes' in text


def test_the_time_to_a_target_is_when_an_error_first_reaches_it():
  def run_of(errors, step):
    curve = [
      {'epoch': i + 1.0, 'time': step * (i + 1.0), 'test_error': e}
      for i, e in enumerate(errors)
    ]
    return summary(errors[-1], curve=curve)

  runs = {
    'a': [run_of((0.3, 0.2, 0.1), 10)],
    'b': [run_of((0.3, 0.104, 0.11), 7)],
  }
  target = study_page.target_of(runs)
  assert target == pytest.approx(0.105)
  assert statistics.time_to(runs['a'][0], target) == 30
  assert statistics.time_to(runs['b'][0], target) == 14
  assert statistics.time_to(runs['b'][0], 0.01) is None
  assert statistics.time_to(summary(None), target) is None


def committed():
  for name in papers.TABLES:
    for folder in (name, *(f'{name}-{scale}' for scale in design.DIVIDED)):
      if os.path.exists(os.path.join(ROOT, 'results', folder, 'table.md')):
        yield folder


@pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('digits_mlp', 'fashion_mnist_mlp', 'text_transformer_xl')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in committed()
  ],
)
def test_committed_tables_are_those_of_their_runs(name, tmp_path, monkeypatch):
  """The page is made again from metrics.jsonl by the command in its head."""
  there = os.path.join(ROOT, 'results', name)
  shutil.copytree(there, tmp_path / name)
  page = tmp_path / name / 'table.md'
  text = page.read_text()
  page.unlink()
  command = shlex.split(text.split('`')[1])
  assert command[:3] == ['python', '-m', 'experiments.reproduce']
  given = [x for x in command if x.startswith('--data_path=')]
  preset = papers.TABLES[name.split('-')[0]].preset
  with open(f'{ROOT}/experiments/presets/{preset}.flags') as file:
    given += [x.strip() for x in file if x.startswith('--data_path=')]
  if given:  # the name is in the runs
    data = tmp_path / os.path.basename(given[0].partition('=')[2])
    data.touch()
    given = [f'--data_path={data}']
  launch = launch_lib.launch

  def again(study):
    arguments = shlex.join(x for x in sys.argv[1:] if x not in given)
    study_page.write(
      study._replace(folder=str(tmp_path / name)),
      f'python -m experiments.reproduce {arguments}',
    )

  instead_of_launching(monkeypatch, lambda prepare: launch(again, prepare))
  for figure in ('error_over_workers', 'error_over_rates', 'curves', 'save'):
    monkeypatch.setattr(plots, figure, lambda *args, **how: None)  # by eye
  monkeypatch.setattr(train, 'train', None)  # no run is missing
  monkeypatch.chdir(tmp_path)
  code, _, err = scripts.call('reproduce', *command[3:], *given)
  assert code == 0, err
  assert page.read_text() == text


def test_there_are_committed_tables():
  assert {
    'digits_mlp',
    'fashion_mnist_mlp',
    'text_transformer_xl',
  } <= set(committed())


@pytest.mark.parametrize('name', papers.TABLES)
def test_a_short_table_takes_at_most_a_third(name):
  table = papers.TABLES[name]
  given = dict(x.removeprefix('--').split('=') for x in table.short)
  seeds = int(given.get('seeds', table.seeds))
  assert seeds <= table.seeds
  with open(f'{ROOT}/experiments/presets/{table.preset}.flags') as file:
    epochs = next(float(x[9:]) for x in file if x.startswith('--epochs='))
  assert float(given.get('epochs', epochs)) * seeds <= table.seeds * epochs / 3


@pytest.mark.parametrize(
  ('argument', 'said'),
  [
    ('--seeds=-1', '--seeds=-1: must be at least 0'),
    ('--learning_rate=0.5', '--table=digits_mlp sweeps rates'),
    ('--workers=2', '--workers=2: 2 is none of 1, 8, 16, 32'),
    ('--seconds=-1', '--seconds=-1.0: must be at least 0'),
  ],
)
def test_flags_without_a_meaning_are_refused(argument, said, tmp_path):
  code, _, err = scripts.call(
    'reproduce', '--table=digits_mlp', argument, f'--folder={tmp_path}'
  )
  assert code == 2
  assert said in err
