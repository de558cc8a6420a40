"""What the README and the documentation show as code runs.

Python blocks are run, commands have flags that there are and settings that the
programs accept. Really run are the commands with

  python -m pytest tests/docs_test.py -m slow
"""

import ast
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from experiments import tasks
from experiments.script import launch as launch_lib
from tests import scripts

pytestmark = pytest.mark.usefixtures('quick_compiler', 'relaxed')

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {
  path.relative_to(ROOT).as_posix(): path.read_text()
  for path in [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
}
LONGEST = 30  # lines of an example, empty ones not counted
# Before a block that needs those before it.
GOES_ON = '<!-- goes on -->\n\n'
BLOCK = re.compile(rf'({GOES_ON})?```python\n(.*?)```', re.DOTALL)
WITH_PYTHON = [page for page, text in PAGES.items() if BLOCK.search(text)]


# Python.


@pytest.mark.parametrize(
  'page',
  [
    page
    if page in ('README.md', 'docs/index.md')
    else pytest.param(page, marks=pytest.mark.slow)
    for page in WITH_PYTHON
  ],
)
def test_examples_run(page, capsys):
  for i, (goes_on, block) in enumerate(BLOCK.findall(PAGES[page])):
    assert sum(map(bool, block.split('\n'))) <= LONGEST
    if not goes_on:
      names = {'__name__': 'example'}
    exec(compile(block, f'{page}, block {i}', 'exec'), names)
    out = capsys.readouterr().out
    assert out
    if (page, i) == ('docs/index.md', 0):  # what the page says of it
      plain, gap_aware = map(float, re.findall(r'([\d.]+) % wrong', out))
      assert plain > 50
      assert gap_aware < 15


def test_the_pages_have_python_examples():
  found = [block for text in PAGES.values() for block in BLOCK.findall(text)]
  assert len(found) >= 14
  assert {'README.md', 'docs/index.md', 'docs/your_own.md'} <= {*WITH_PYTHON}
  for text in PAGES.values():  # no other spelling hides a block
    assert text.count('```py') == len(BLOCK.findall(text))


# Commands.

FENCED = re.compile(r'^```(?:bash|sh|shell|console)\n(.*?)^```', re.S | re.M)
INDENTED = re.compile(
  r'^(?: {4}| {7,})(?=\S)(?!- |\* )(.*\n(?: {4}.*\n)*)', re.M
)
INLINE = re.compile(r'`(python -m experiments\.[a-z][^`]+)`')
MODULE = 'python -m experiments.'


def commands(text: str) -> list[tuple[str, tuple[str, ...]]]:
  """The scripts that a page starts, with their arguments, in order."""
  shown = ''.join(FENCED.findall(text)) + ''.join(INDENTED.findall(text))
  lines = shown.replace('\\\n', ' ').splitlines() + INLINE.findall(text)
  found = []
  for line in lines:
    if MODULE not in line:
      continue
    line = re.split(r' &$| && | \| |; ', line[line.index(MODULE) :].strip())[0]
    script, *given = shlex.split(line, comments=True)[2:]
    found.append((script.removeprefix('experiments.'), tuple(given)))
  return list(dict.fromkeys(found))


SHOWN = {page: commands(text) for page, text in PAGES.items()}
ALL = sorted({one for found in SHOWN.values() for one in found})
PLACEHOLDER = re.compile(r'=(?:[A-Z]{3,}|.*/[A-Z]{3,}|.*\.\.\.)')
# What the others ask for first is a run, a report, or TensorFlow.
PREPARED = ('train', 'compare', 'survey', 'reproduce')


def test_the_pages_have_commands():
  assert len(ALL) >= 50
  assert {'train', 'compare', 'replay', 'verify', 'report'} <= dict(ALL).keys()


@pytest.mark.parametrize('name', sorted(dict(ALL)))
def test_commands_are_accepted(name, monkeypatch, tmp_path):
  """They parse, and settings pass what is checked before the data are read."""
  for folder in ('experiments', 'results'):
    (tmp_path / folder).symlink_to(ROOT / folder)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(tasks, 'source_of', lambda settings: None)
  launch, prepared, wanted = launch_lib.launch, [], []

  def parsed(main, prepare, **options):
    del main

    def checked():
      prepared.append(given)
      if name in PREPARED and '--resume' not in given:
        prepare()

    options['device_fn'] = lambda _: None
    launch(lambda nothing: None, checked, **options)

  monkeypatch.setattr(launch_lib, 'launch', parsed)
  monkeypatch.setattr('experiments.running.devices.use', lambda settings: None)
  for script, given in ALL:
    if script != name or any(map(PLACEHOLDER.search, given)):
      continue
    if not given:
      assert importlib.util.find_spec(f'experiments.{name}')
      continue
    wanted.append(given)
    code, _, err = scripts.call(name, *given)
    here = 'no such file or folder' not in err  # Debian's data sets
    assert (code, err) == (0, '') or not here, (name, given)
  assert prepared == wanted


NOT_RUN = {
  'bench.all': 'measures for minutes, alone on the machine',
  'documents.digits_curves': 'minutes: tests/docs_methods_test.py reads it',
  'prepare': 'needs TensorFlow and archives: tests/prepare_test.py',
  'documents.compatibility': 'half an hour; a test makes it by parts',
  'survey': 'all methods: 11 minutes',
  'documents.pictures': 'writes over the pictures',
  'documents.screenshot': 'run by tests/report_browser_test.py',
}
NOT_WITH = {
  '--address': 'a cluster',
  '--runtime=ray': 'run by tests/ray_test.py',
  '--table': 'an hour, or an accelerator: tests/reproduce_test.py',
  '--learning_rates': 'a search: run by tests/experiments_test.py',
  '--flagfile': 'presets are run by tests/presets_test.py',
  '--data_path': 'data that may not be here',
}
REFUSED = {('replay', ('--workdir=runs/real', '--method=ssgd'))}


@pytest.mark.slow
@pytest.mark.parametrize('page', [p for p, found in SHOWN.items() if found])
def test_commands_run(page, tmp_path):
  made = {
    part.removeprefix('--workdir=')
    for name, given in SHOWN[page]
    for part in given
    if name in ('train', 'compare') and part.startswith('--workdir=')
  }
  for name, given in SHOWN[page]:
    unknown = any(map(PLACEHOLDER.search, given))
    left_out = any(part.startswith(tuple(NOT_WITH)) for part in given)
    read = [
      folder
      for part in given
      if part.startswith('--workdir=')
      for folder in part.removeprefix('--workdir=').split(',')
    ]
    elsewhere = not set(read) <= made  # a run of another page
    if name in NOT_RUN or unknown or left_out or (read and elsewhere):
      continue
    if not all((tmp_path / f).exists() for f in read) and name not in (
      'train',
      'compare',
    ):
      continue  # of a run that is left out
    done = subprocess.run(
      [sys.executable, '-m', f'experiments.{name}', *given],
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=600,
      check=False,
    )
    wanted = 2 if (name, given) in REFUSED else 0
    assert done.returncode == wanted, (given, done.stderr)


def test_launch_scripts_that_pages_name_exist():
  for page, text in PAGES.items():
    for path in re.findall(r'\b(launch/[\w/]+\.\w+)', text):
      assert (ROOT / path).is_file(), page


# What stands in pages and comes from elsewhere.


def test_links_of_the_readme_lead_somewhere():
  for path in re.findall(r'\]\((?!http)([^)#]+)', PAGES['README.md']):
    assert (ROOT / path).exists(), path


def test_the_page_on_reproducing_lists_every_table():
  listing = scripts.call('reproduce', '--list').out
  assert listing.strip() in PAGES['docs/reproducing.md']


def test_every_picture_is_made_by_the_script_and_shown():
  with scripts.own_flags('documents.pictures'):
    from experiments.documents import pictures
  there = sorted(path.name for path in (ROOT / 'docs' / 'pictures').iterdir())
  assert there == pictures.names()
  shown = re.findall(r'!\[[^\]]*\]\([./]*pictures/([^)]+)\)', str(PAGES))
  assert sorted(set(shown)) == there


def test_errors_on_the_choosing_page_are_those_of_the_table():
  made = (ROOT / 'results/fashion_mnist_mlp/table.md').read_text()
  sections = re.split(r'^## \w+ clock|^Protocol ', made, flags=re.M)
  best = [s for s in sections if s.startswith('*best*')]
  rows = [
    cells
    for line in PAGES['docs/choosing.md'].splitlines()
    if re.match(r'\| `\w+` \| 0', line)
    for cells in [re.sub('[*`]', '', line).strip('| ').split(' | ')]
  ]
  assert len(rows) == 8
  for method, momentum, *errors in rows:
    for clock, three in zip(best, (errors[:3], errors[3:]), strict=True):
      line = re.search(rf'^\| {method}, momentum {momentum} .*', clock, re.M)[0]
      eight, sixteen, _, most = re.findall(r' ([\d.]+) ±', line)[-4:]
      assert [eight, sixteen, most] == three, (method, momentum)


TROUBLE = PAGES['docs/troubleshooting.md']


def texts() -> str:
  """What the sources may print: their strings, one a line."""
  found = []
  paths = [
    p for d in ('ga_jax', 'experiments') for p in (ROOT / d).rglob('*.py')
  ]
  for path in paths:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.JoinedStr):
        parts = (
          v.value if isinstance(v, ast.Constant) else '…' for v in node.values
        )
        found.append(''.join(parts))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
  return '\n'.join(found)


def test_messages_that_troubleshooting_quotes_are_in_the_sources():
  rows = re.findall(r'^\| (.*?`.*?) \| .* \| .* \|$', TROUBLE, re.M)
  quoted = [text for row in rows for text in re.findall('`([^`]+)`', row)]
  messages = [text for text in quoted if ' ' in text]
  assert len(messages) >= 50
  known = texts()
  for message in messages:
    for part in message.split('…'):
      if len(part.strip()) > 3:
        assert part.strip() in known, message


def test_every_exception_is_explained():
  classes = re.compile(r'^class (\w+)\((\w*(?:Error|Exception))\):', re.M)
  internal = {
    'Forgotten',
    'TimeUp',
    'UnknownHistoryError',
  }  # caught where they are raised for
  found = {
    (name, parent)
    for part in ('ga_jax', 'experiments')
    for path in (ROOT / part).rglob('*.py')
    for name, parent in classes.findall(path.read_text())
    if name not in internal
  }
  assert len(found) >= 8
  for name, parent in found:
    row = re.search(rf'^\| `[\w.]*\.{name}` \| (.*?) \|', TROUBLE, re.M)
    assert row, name
    assert row[1].strip('` ') == parent or parent == 'Exception'
