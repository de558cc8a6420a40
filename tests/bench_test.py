"""The page of benchmarks; what they measure is not tested."""

import json
import pathlib

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.bench import all as bench_all
from experiments.bench import timing

FOLDER = pathlib.Path(bench_all.__file__).parent
COMMITTED = FOLDER.parent.parent / 'results' / 'bench'


@pytest.fixture(autouse=True)
def parsed():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['test'])


def test_every_benchmark_is_run_and_has_a_section():
  here = {
    path.stem
    for path in FOLDER.glob('*.py')
    if "__name__ == '__main__'" in path.read_text()
  }
  names = {bench.name for bench in bench_all.BENCHES}
  assert names == here - {'all', 'accelerator', 'device_checks'}
  for bench in bench_all.BENCHES:
    title, limits = bench_all.about(bench)
    assert title.endswith('.'), bench.name
    assert limits == '' or limits.startswith('\n'), bench.name


def test_ratios_pair_times_of_the_same_round():
  assert timing.ratios([1.0, 9.0, 4.0], [2.0, 3.0, 4.0]) == (1.0, 0.5, 3.0)


def test_candidates_are_timed_in_turn():
  order = []
  candidates = {name: lambda name=name: order.append(name) for name in 'ab'}
  timing.alternate(candidates, 3)
  assert ''.join(order) == 'abbaab'


@pytest.mark.parametrize(
  ('median', 'at_least', 'met'),
  [
    (1.0, True, True),
    (0.9, True, False),
    (1.0, False, True),
    (1.1, False, False),
  ],
)
def test_a_target_is_judged_by_its_median(median, at_least, met):
  measured = timing.Figure(median, 0.1, 9.0)
  target = timing.Target('x', measured, 1.0, at_least)
  assert target.met == met
  assert ('MISSED' in str(target)) != met


def test_the_page_shows_printed_tables_and_targets(tmp_path, capsys):
  where = timing.machine()
  path = tmp_path / 'growth.json'
  slow = timing.Target('how slow', timing.figure([3.0, 2.0, 7.0]), 2.5)
  with (
    flagsaver.flagsaver(json=str(path), folder=str(tmp_path)),
    pytest.MonkeyPatch.context() as patch,
  ):
    patch.setattr(timing, '_SAID', [])
    patch.setattr(timing, '_command', lambda: 'python -m this')
    timing.say('a table')
    timing.finish(where, [{'values': [3.0, 2.0, 7.0]}], [slow])
    page = bench_all.page()
  assert json.loads(path.read_text())['machine']['cores'] == where['cores']
  assert '```\na table\n```' in page
  assert '| **missed** |' in page
  assert '3 (2 to 7)' in page
  assert 'at most 2.5' in page
  assert '`python -m this`' in page
  assert capsys.readouterr().out.startswith('a table\nhow slow: 3 (2 to 7)')


def test_the_committed_page_is_made_of_the_committed_figures():
  with flagsaver.flagsaver(folder=str(COMMITTED)):
    assert bench_all.page() == (COMMITTED / 'README.md').read_text()
