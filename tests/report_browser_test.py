"""The report in a real browser: no request, no error, what events say."""

import gc
import os
import re
import shutil
import subprocess
import sys

import pytest

from experiments.records import finished as runs_lib
from experiments.reporting import browser
from tests import made_runs

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pytestmark = [
  pytest.mark.usefixtures('relaxed'),
  pytest.mark.browser,
  pytest.mark.skipif(bool(browser.missing()), reason=browser.missing()),
]
SECONDS, BYTES = 2.0, 3e6  # what a report of 3 methods and 32 workers may take


@pytest.fixture(autouse=True)
def nothing_is_left_open():
  """What Playwright leaves is found here, in the test that left it."""
  yield
  gc.collect()


class Watched:
  """A page, and what it asked for and complained of."""

  def __init__(self, page):
    self.page, self.requests, self.errors = page, [], []
    page.on('request', lambda request: self.requests.append(request.url))
    page.on('console', lambda message: self.errors.append(message.text))
    page.on('pageerror', lambda error: self.errors.append(str(error)))

  def opens(self, path) -> float:
    """Opens a report; the seconds it took, as the browser measures them."""
    self.page.goto(browser.address(str(path)))
    return self.page.evaluate(
      "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
    )

  def told(self) -> str | None:
    """What is said of an event now."""
    said = self.page.locator('#told')
    return said.inner_text() if said.is_visible() else None

  def is_silent(self, path):
    """It asked for its own file alone, and complained of nothing."""
    assert self.errors == []
    assert {u for u in self.requests if not u.startswith('data:')} == {
      browser.address(str(path))
    }


def written(path, *folders):
  path.write_text(made_runs.report(*map(str, folders), drawn=True))
  return path


def fields(text: str) -> dict[str, str]:
  """{'worker': '3', 'version': '17', ...} of what is said of an event."""
  return dict(
    re.findall(r'(worker|version|staleness|gap|ticket) ([^\s,:]+)', text)
  )


def expected(one, ticket: int) -> dict[str, str]:
  """The same, from the record of the run."""
  applied = one.trace.applied()
  at = applied['ticket_id'].tolist().index(ticket)
  row = applied[at]
  return {
    'worker': str(row['worker_id']),
    'version': str(row['version']),
    'staleness': str(row['staleness']),
    'gap': f'{one.arrivals["gap"][at]:.3e}',
    'ticket': str(ticket),
  }


def hovers(watched: Watched, one, number: int):
  """Points at an event, and compares what is said with the record."""
  event = watched.page.locator('.timeline').first.locator('rect').nth(number)
  event.hover()
  got = fields(watched.told())
  assert got == expected(one, int(got['ticket']))
  assert 'on' in event.get_attribute('class').split()
  return got


def test_a_report_answers_mouse_and_keys_in_a_browser(tmp_path):
  folder = made_runs.trained(tmp_path / 'run', workers=3)
  (one,) = runs_lib.load(folder)
  path = written(tmp_path / 'report.html', folder)
  with browser.opened(dark=True) as page:
    watched = Watched(page)
    watched.opens(path)
    assert page.title() == 'Report: ga, 3 workers'
    assert watched.told() is None
    assert len({hovers(watched, one, i)['ticket'] for i in (0, 5, 10)}) == 3
    page.mouse.move(0, 0)
    assert watched.told() is None
    chart = page.locator('.timeline').first
    chart.focus()
    said = [watched.told()]
    for key in ('ArrowRight', 'ArrowDown', 'End', 'ArrowUp', 'Home'):
      page.keyboard.press(key)
      said.append(watched.told())
    got = [fields(text) for text in said]
    assert [f['worker'] for f in got] == ['0', '0', '1', '1', '0', '0']
    for one_event in got:
      if 'ticket' in one_event:
        ticket = int(one_event['ticket'])
        assert one_event == expected(one, ticket)
    assert said[0] == said[-1] != said[1]
    page.keyboard.press('Escape')
    assert watched.told() is None
    watched.is_silent(path)
    assert page.pdf()[:5] == b'%PDF-'


@pytest.mark.slow
def test_without_the_script_titles_tell_of_the_spans(tmp_path):
  folder = made_runs.trained(tmp_path / 'run', workers=3)
  text = made_runs.report(folder)
  path = tmp_path / 'report.html'
  path.write_text(re.sub('<script>.*</script>', '', text, flags=re.DOTALL))
  with browser.opened() as page:
    Watched(page).opens(path)
    first = page.locator('.timeline rect title').first.text_content()
    assert first.startswith('worker 0: compute')


@pytest.mark.slow
@pytest.mark.skipif(
  not shutil.which('pdftotext'), reason='needs pdftotext (poppler-utils)'
)
def test_a_report_is_printed_whole(tmp_path):
  folder = made_runs.trained(tmp_path / 'run', workers=3)
  path, pdf = written(tmp_path / 'report.html', folder), tmp_path / 'a.pdf'
  with browser.opened(dark=True) as page:
    Watched(page).opens(path)
    page.pdf(path=pdf)
  text = subprocess.run(
    ['pdftotext', '-layout', pdf, '-'],
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert text.count('\f') > 1  # pages
  for words in ('What came out', 'Timelines', 'lease_seconds', 'xla_flags'):
    assert words in text  # of folded parts too


@pytest.mark.slow
def test_three_methods_with_32_workers_open_at_once(tmp_path):
  """The promise of the page: under 2 seconds, under 3 MB."""
  folders = [str(tmp_path / method) for method in ('asgd', 'sa', 'ga')]
  for folder in folders:
    train(folder, '--workers=32', '--learning_rate=0.03', '--epochs=10')
  path = written(tmp_path / 'report.html', *folders)
  assert path.stat().st_size < BYTES
  (one,) = runs_lib.load(folders[0])
  with browser.opened() as page:
    watched = Watched(page)
    assert min(watched.opens(path) for _ in range(3)) < SECONDS
    assert page.locator('.timeline').count() in (3, 6)
    for i in (1, 100, 300):
      hovers(watched, one, i)
    watched.is_silent(path)


@pytest.mark.slow
def test_a_comparison_of_32_workers_opens_at_once(tmp_path):
  """The same of experiments.compare, whose schedules are played again."""
  folder, path = str(tmp_path / 'compare'), tmp_path / 'report.html'
  script(
    'compare',
    *('--methods=asgd,sa,ga', '--workers=1,32', '--seeds=2', '--epochs=5'),
    f'--workdir={folder}',
  )
  script('report', f'--workdir={folder}', f'--output={path}')
  assert path.stat().st_size < BYTES
  with browser.opened() as page:
    watched = Watched(page)
    assert min(watched.opens(path) for _ in range(3)) < SECONDS
    page.locator('.timeline rect').nth(40).hover()
    assert 'gap not recorded' in watched.told()
    watched.is_silent(path)


def train(folder: str, *arguments: str):
  method = os.path.basename(folder)
  script('train', f'--method={method}', f'--workdir={folder}', *arguments)


def script(name: str, *arguments: str):
  """Runs one of the scripts in a process of its own."""
  subprocess.run(
    [sys.executable, '-m', f'experiments.{name}', *arguments],
    cwd=ROOT,
    check=True,
    capture_output=True,
  )
