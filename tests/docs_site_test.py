"""The documentation as a site: built without warnings, whole, offline."""

import html.parser
import importlib
import inspect
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

import ga_jax

pytest.importorskip('mkdocs', reason="needs pip install 'ga_jax[docs]'")

ROOT = pathlib.Path(__file__).parent.parent
LOADED = {'script': 'src', 'img': 'src', 'link': 'href', 'iframe': 'src'}
VERBATIM = ('pre', 'code', 'script', 'style')
PACKAGES = (
  *('', '.rules', '.policies', '.programs', '.compression', '.clocks'),
  *('.models', '.data', '.plots'),
)


class Page(html.parser.HTMLParser):
  """What a page names, what it loads and where it leads to."""

  def __init__(self, text: str):
    super().__init__()
    self.ids, self.loads, self.links, self.formulas = set(), set(), set(), 0
    self.preformatted, self.no_items = 0, []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids.add(attrs.get('id'))
    self.formulas += tag == 'math'
    self.preformatted += tag in VERBATIM
    if tag == 'a' and 'href' in attrs:
      self.links.add(attrs['href'])
    if attrs.get(LOADED.get(tag)):
      self.loads.add(attrs[LOADED[tag]])

  def handle_endtag(self, tag):
    self.preformatted -= tag in VERBATIM

  def handle_data(self, data):
    if not self.preformatted:
      self.no_items += re.findall(r'\n(?:\d\.|[*-]) .*', data)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """{path: Page} of the site, built with warnings as errors."""
  folder = tmp_path_factory.mktemp('site')
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', folder],
    env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return folder, {
    path: Page(path.read_text()) for path in folder.rglob('*.html')
  }


def test_the_site_has_every_page(site):
  folder, pages = site
  wanted = [p.relative_to(ROOT / 'docs') for p in (ROOT / 'docs').rglob('*.md')]
  wanted += [p.relative_to(ROOT) for p in (ROOT / 'results').rglob('table.md')]
  assert len(wanted) > 40
  for path in wanted:
    assert (folder / path).with_suffix('.html') in pages, path


def test_every_link_and_anchor_leads_somewhere(site):
  _, pages = site
  followed = 0
  for path, page in pages.items():
    if path.name == '404.html':
      continue  # its links begin at the root of a server
    for link in page.links | page.loads:
      found = urllib.parse.urlsplit(link)
      if found.scheme or found.netloc:
        continue
      target = path.parent / urllib.parse.unquote(found.path)
      target = pathlib.Path(os.path.normpath(target)) if found.path else path
      assert target.is_file(), (path, link)
      if found.fragment and target in pages and found.fragment != '__skip':
        anchor = urllib.parse.unquote(found.fragment)
        assert anchor in pages[target].ids, (path, link)
      followed += 1
  assert followed > 1000


def test_nothing_is_loaded_from_the_network(site):
  folder, pages = site
  for path, page in pages.items():
    for link in page.loads:
      assert not urllib.parse.urlsplit(link).netloc, (path, link)
  for path in folder.rglob('*.css'):
    assert 'url(http' not in path.read_text(), path


def test_markdown_lists_become_html_lists(site):
  """Python-Markdown wants an empty line before them, and indents of four."""
  _, pages = site
  for path, page in pages.items():
    assert not page.no_items, path


def test_formulas_are_mathml(site):
  folder, pages = site
  for name in ('gap', 'metrics', 'methods/gap_aware', 'api/rules'):
    assert pages[folder / f'{name}.html'].formulas, name
  for path in pages:
    assert 'class="arithmatex"' not in path.read_text(), path


def test_the_api_has_all_that_is_public(site):
  folder, pages = site
  ids = set().union(
    *(page.ids for path, page in pages.items() if path.parent == folder / 'api')
  )
  public = [
    getattr(module, name)
    for package in PACKAGES
    for module in [importlib.import_module(f'ga_jax{package}')]
    for name in module.__all__
  ]
  missing = [
    found.__qualname__
    for found in public
    if inspect.isfunction(found) or inspect.isclass(found)
    if f'{found.__module__}.{found.__qualname__}' not in ids
  ]
  assert not missing
  index = (ROOT / 'docs' / 'api' / 'index.md').read_text()
  assert [name for name in ga_jax.__all__ if f'`{name}`' not in index] == []
