"""Runs of a grid that are computed together: what each of them is alone."""

import numpy as np
import pytest

from experiments.records import cells
from experiments.running import mapped
from experiments.settings import check
from experiments.settings import table as settings_lib
from experiments.studies import rate_search
from tests import scripts

pytestmark = pytest.mark.usefixtures('relaxed')


@pytest.fixture
def pays(monkeypatch):
  """Mapping pays, whatever the machine says of so small runs."""
  monkeypatch.setattr(mapped, 'probe', lambda settings: (2.0, 1.0))


def run_of(**fields):
  return check.check(
    settings_lib.Settings(
      **{
        'model': 'mlp_bn',
        'epochs': 0.5,
        'learning_rate': 0.05,
        'workers': 4,
        'holdout': 100,
        **fields,
      }
    )
  )


def close(found, alone):
  """Two rows of a file are the same to rounding, but for times."""
  different = {'wall_seconds', 'updates_per_second', 'compilation'}
  assert found.keys() - alone.keys() == {'mapped_runs'}
  assert alone.keys() <= found.keys()
  for name, value in alone.items():
    if name in different:
      continue
    if isinstance(value, float):
      # A test image is 1 of 360, and may fall to the other side.
      atol = 0.006 if name.endswith('_error') else 1e-4
      np.testing.assert_allclose(
        found[name], value, rtol=2e-3, atol=atol, err_msg=name
      )
    else:
      assert found[name] == value, name


@pytest.mark.parametrize(
  'method', ['ga', pytest.param('dana_ga', marks=pytest.mark.slow)]
)
def test_mapped_seeds_and_rates_are_the_same_cells(tmp_path, pays, method):
  runs = [
    run_of(method=method, seed=seed, learning_rate=rate)
    for seed in (0, 1)
    for rate in (0.02, 0.05)
  ]
  alone = cells.Cells(tmp_path / 'alone.jsonl')
  told = []
  together = cells.Cells(
    tmp_path / 'mapped.jsonl', mapper=mapped.Mapper(told.append)
  )
  together.together(runs)
  assert together.computed == 4
  assert told == [
    '4 runs of mlp_bn, 4 workers are mapped into one program: a probe took '
    '0.50 times as long mapped as one by one'
  ]
  for run in runs:
    close(together.summary(run), alone.summary(run))
  assert together.computed == 4
  assert alone.rows.keys() == together.rows.keys()


@pytest.mark.slow
def test_what_is_there_is_not_computed_again(tmp_path, pays):
  path = tmp_path / 'x.jsonl'
  alone = cells.Cells(path)
  first = alone.summary(run_of(seed=0))
  again = cells.Cells(path, mapper=mapped.Mapper(str))
  found = rate_search.over_seeds(again, run_of(), range(3))
  assert found[0] == first
  assert again.computed == 2
  assert [row.get('mapped_runs') for row in found] == [None, 2, 2]


@pytest.mark.slow
def test_runs_that_diverge_are_those_that_are_alone(tmp_path, pays):
  runs = [run_of(seed=0), run_of(seed=1, learning_rate=1e30)]
  together = cells.Cells(tmp_path / 'x.jsonl', mapper=mapped.Mapper(str))
  together.together(runs)
  assert together.computed == 1  # the other one is stopped where it diverges
  alone = cells.Cells(tmp_path / 'y.jsonl')
  found, expected = together.summary(runs[1]), alone.summary(runs[1])
  assert found['diverged']
  assert found['updates'] == expected['updates']


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'method': 'abs'}, 'abs decides by losses'),
    ({'executor': 'exact'}, 'it takes --runtime=simulate, --executor=fast'),
    (
      {'method': 'local_sgd', 'epochs': 0.12},
      'no multiple of those per ticket',
    ),
  ],
)
def test_what_cannot_be_mapped_is_computed_one_by_one(pays, fields, said):
  told = []
  runs = [run_of(seed=seed, **fields) for seed in range(2)]
  mapper = mapped.Mapper(told.append)
  assert mapper(runs) == mapper(runs) == [None, None]
  assert len(told) == 1
  assert said in told[0]


def test_memory_is_counted_beforehand(pays, monkeypatch):
  told = []
  runs = [run_of(seed=seed) for seed in range(2)]
  monkeypatch.setattr(mapped, 'free_bytes', lambda: 1_000_000)
  assert mapped.Mapper(told.append)(runs) == [None, None]
  assert 'more than half of the 1.0 MB that are free' in told[0]


def test_the_memory_that_is_free_is_a_number():
  assert mapped.free_bytes() > 1_000_000


def test_a_probe_decides_and_says_so(monkeypatch):
  told = []
  runs = [run_of(seed=seed) for seed in range(2)]
  seconds = iter([(1.0, 1.5)])
  monkeypatch.setattr(mapped, 'probe', lambda settings: next(seconds))
  mapper = mapped.Mapper(told.append)
  assert mapper(runs) == [None, None]
  other = [run_of(seed=seed, method='sa', workers=2) for seed in range(2)]
  assert mapper(other) == [None, None]  # a probe per model
  assert told == [
    '2 runs of mlp_bn, 4 workers are computed one by one: a probe took 1.50 '
    'times as long mapped as one by one'
  ]


@pytest.mark.slow
def test_a_probe_measures_both():
  alone, together = mapped.probe([run_of(seed=seed) for seed in range(2)])
  assert 0 < alone < 60
  assert 0 < together < 60


@pytest.mark.slow
@pytest.mark.parametrize(
  ('script', 'flags'),
  [
    ('compare', ['--methods=asgd,ga', '--workers=2', '--seeds=2']),
    (
      'compare',
      ['--methods=ga', '--workers=2', '--seeds=2', '--learning_rates=0.03,0.1'],
    ),
    (
      'survey',
      [
        '--methods=ga',
        '--clocks=homogeneous',
        '--workers=2',
        '--seeds=2',
        '--learning_rates=0.03,0.1',
      ],
    ),
  ],
)
def test_scripts_say_the_same_with_mapped_seeds(script, flags, tmp_path, pays):
  shared = ['--epochs=0.5', '--holdout=360', '--model=mlp', '--quiet']
  rows = {}
  for name, more in (('alone', []), ('mapped', ['--mapped_seeds'])):
    folder = tmp_path / name
    ended = scripts.call(script, *flags, *shared, *more, f'--workdir={folder}')
    assert ended.code == 0, ended.err
    rows[name] = cells.read(folder / 'metrics.jsonl')
  assert rows['alone'].keys() == rows['mapped'].keys()
  assert any('mapped_runs' in row for row in rows['mapped'].values())
  for name, row in rows['mapped'].items():
    if 'mapped_runs' in row:
      close(row, rows['alone'][name])


@pytest.mark.slow
def test_a_table_says_the_same_with_mapped_seeds(tmp_path, pays):
  flags = ['--table=digits_mlp', '--scale=smoke', '--methods=asgd,ga']
  flags += ['--seeds=2', '--epochs=0.5', '--processes=1', '--quiet']
  rows = {}
  for name, more in (('alone', []), ('mapped', ['--mapped_seeds'])):
    folder = tmp_path / name
    ended = scripts.call('reproduce', *flags, *more, f'--folder={folder}')
    assert ended.code == 0, ended.err
    rows[name] = cells.read(folder / 'metrics.jsonl')
  assert rows['alone'].keys() == rows['mapped'].keys()
  for name, row in rows['mapped'].items():
    if 'mapped_runs' in row:
      close(row, rows['alone'][name])


def test_curves_need_a_run_at_a_time(tmp_path):
  code, _, err = scripts.call(
    *('reproduce', '--table=text_transformer_xl', '--mapped_seeds'),
    f'--folder={tmp_path}',
  )
  assert code == 2
  assert '--mapped_seeds=True: --table=text_transformer_xl shows epochs' in err
