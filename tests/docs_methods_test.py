"""docs/methods and docs/gap.md: every method, and only what was measured."""

import json
import pathlib
import re

import pytest

from experiments.catalogue import methods, parts
from experiments.documents import digits_curves, method_pictures
from experiments.reporting import method_tables
from ga_jax import compression, policies, programs, rules

pytestmark = pytest.mark.usefixtures('relaxed')

ROOT = pathlib.Path(__file__).parent.parent
DOCS, RESULTS = ROOT / 'docs', ROOT / 'results'
PAGES = {
  name: (DOCS / 'methods' / f'{name}.md').read_text()
  for name in methods.FAMILIES
}
RUNS = digits_curves.read(str(RESULTS / 'digits_curves'))
COMMON = {'momentum', 'nesterov', 'weight_decay'}  # of nearly every rule


def described(page: str) -> list[str]:
  """What stands in code in the headings of a page."""
  headings = re.findall(r'^##+ (.*)$', page, re.MULTILINE)
  return [name for text in headings for name in re.findall('`([^`]+)`', text)]


def test_every_part_is_described_once():
  found = [name for page in PAGES.values() for name in described(page)]
  names = set(methods.METHODS).union(*parts.TABLES.values())
  assert not names - set(found)
  assert sorted(found) == sorted(names)


def families_of(page: str) -> list[list[str]]:
  """The methods in the rows of a page's table of families."""
  table = re.search(
    r'^\| family .*\n\|[-|]+\n((?:\|.*\n)+)', page, re.MULTILINE
  )
  rows = [line.split('|')[-2] for line in table[1].splitlines()]
  return [re.findall('`([^`]+)`', row) for row in rows]


def test_the_tables_of_families_have_every_method():
  index = families_of((DOCS / 'methods' / 'index.md').read_text())
  assert index == [list(names) for names in methods.FAMILIES.values()]
  readme = (ROOT / 'README.md').read_text()
  found = [name for row in families_of(readme) for name in row]
  assert sorted(found) == sorted(methods.METHODS)
  counts = (
    f'{len(rules.RULES)} server rules, {len(policies.POLICIES)} policies, '
    f'{len(programs.PROGRAMS)} worker programs, '
    f'{len(compression.COMPRESSIONS) - 1} compressions'  # beside none
  )
  assert counts in readme


@pytest.mark.parametrize('family', methods.FAMILIES)
def test_a_page_describes_its_family_in_order(family):
  found = [n for n in described(PAGES[family]) if n in methods.METHODS]
  assert found == list(methods.FAMILIES[family])


@pytest.mark.parametrize('family', methods.FAMILIES)
def test_a_page_names_the_flags_of_its_methods(family):
  for name in methods.FAMILIES[family]:
    method = methods.METHODS[name]
    own = (parts.read_by(method) & set(parts.PARAMETERS)) - COMMON
    unknown = [flag for flag in own if f'--{flag}`' not in PAGES[family]]
    assert not unknown, name
    assert f'--method={name} ' in PAGES[family]


@pytest.mark.parametrize('family', ['', *methods.FAMILIES])
def test_a_page_holds_the_cost_table_of_its_methods(family):
  index = (DOCS / 'methods' / 'index.md').read_text()
  assert method_tables.markdown(family) in PAGES.get(family, index)


@pytest.mark.slow  # they are runs: a check before a release
@pytest.mark.parametrize('family', methods.FAMILIES)
def test_a_page_holds_the_table_of_the_runs(family):
  assert digits_curves.markdown(family, RUNS) in PAGES[family]


@pytest.mark.slow  # they are runs: a check before a release
def test_the_committed_runs_are_every_method_at_its_best_rate():
  rates = digits_curves.best_rates(str(ROOT / digits_curves.RATES))
  seen = {(run['clock'], run['method'], run['seed']) for run in RUNS}
  assert seen == {
    (clock, method, seed)
    for clock in digits_curves.CLOCKS
    for method in methods.METHODS
    for seed in range(digits_curves.SEEDS)
  }
  for run in RUNS:
    rate = run['learning_rate']
    known = rates.get((run['clock'], run['method']), rate)
    assert rate == pytest.approx(known, rel=1e-4)
    last = run['curve'][-1]
    assert last['epoch'] == pytest.approx(20)
    # A round that is still open is closed after the last row: one image.
    assert last['test_error'] == pytest.approx(run['test_error'], abs=0.003)
    assert last['time'] == pytest.approx(run['simulated_time'], rel=1e-3)


def test_every_picture_is_there_and_shown():
  shown = {'gap.md': (DOCS / 'gap.md').read_text()} | {
    f'methods/{name}.md': page for name, page in PAGES.items()
  }
  found = {
    name
    for page in shown.values()
    for name in re.findall(
      r'!\[.+?\]\([./]*pictures/([^)]+)\)', page, re.DOTALL
    )
  }
  assert found == set(method_pictures.names())
  for name in found:
    assert (DOCS / 'pictures' / name).stat().st_size < 150_000


@pytest.mark.slow  # they are runs: a check before a release
@pytest.mark.parametrize('family', methods.FAMILIES)
def test_a_picture_shows_every_method_of_its_family(family):
  """matplotlib writes every text beside its glyphs, as a comment."""
  drawn = (DOCS / 'pictures' / f'family-{family}.svg').read_text()
  for method in digits_curves.family(family):
    assert f'<!-- {method} -->' in drawn


def test_the_page_on_the_gap_quotes_its_runs(monkeypatch):
  monkeypatch.chdir(ROOT)
  page = ' '.join((DOCS / 'gap.md').read_text().split())
  penalties, errors = {}, {}
  for method in method_pictures.GAP_METHODS:
    run = method_pictures.read(method)
    penalties[method] = [
      f'{run["mean_penalty"][some].mean():.2g}'
      for some in method_pictures.phases(run).values()
    ]
    summary = RESULTS / 'gap' / method / 'summary.json'
    errors[method] = 100 * json.loads(summary.read_text())['test_error']
  assert penalties['asgd'] == ['1', '1', '1']
  assert set(penalties['sa']) <= {'31', '32'}
  assert 'divides by 31 on average' in page
  assert 'falls from {} to {} and {}:'.format(*penalties['ga']) in page
  quoted = 'ends at {asgd:.0f} % error, SA at {sa:.1f} and GA at {ga:.1f} %'
  assert quoted.format(**errors) in page
