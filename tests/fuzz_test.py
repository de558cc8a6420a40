"""Command lines that nobody would write: each ends in order, in one line.

A few are tried with the other tests; many with

  python -m pytest tests/fuzz_test.py -m slow
"""

import random
import re

import pytest

from experiments import tasks
from experiments.script import launch as launch_lib
from experiments.settings import table
from tests import scripts

NAMES = (
  *('train', 'compare', 'survey', 'reproduce', 'replay', 'verify', 'report'),
  *('methods', 'prepare'),
)
FEW, MANY = 12, 300
# A debugger waits for somebody who types, a profile is none of ours.
NOT_TRIED = ('pdb', 'profil')
BAD = (
  *('', ' ', 'x', ',', ',,', ':', '1:2', '1:2:3', '0:1,0:1', 'a,b', '--', '='),
  *('é', '±λ', '\udcff', '\x00', '\x1b[31m', 'a\nb', 'a\rb', '\u2028', '\'"'),
  *('%s', '{}', '$HOME', '*', 'x' * 5000, 'none', 'all', 'auto', 'true'),
)
NUMBERS = (
  *('0', '1', '2', '3', '7', '64', '0.5', '0.9', '1e-3', '-1', '-0.0', '1e-9'),
  *('1e-40', '1e30', '1e400', 'nan', 'inf', '-inf', '1000', '1000000000'),
  *('2147483647', '2147483648', '10000000000000', '9' * 5000, '1_000', '１'),
  *('0x10', '1,2', '0.1,0.2', '2,1', '1,1', '0:1', '0:1:2', '1:0.5,0:2'),
)
PATHS = (
  *('runs/a', '~/x', '.', '..', '/', '/proc/none', '/dev/null/x', '/dev/null'),
  *('gs://bucket/x', 'file:///x', 'finished', 'finished,finished', 'a' * 300),
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a finished run."""
  folder = tmp_path_factory.mktemp('finished') / 'run'
  scripts.call('train', '--quiet', '--epochs=0.2', f'--workdir={folder}')
  return folder


# Without these a script refuses whatever else it is given.
NEEDED = {
  'survey': ('--holdout=9',),
  'reproduce': ('--table=digits_mlp', '--methods=ga', '--columns=1'),
  'replay': ('--workdir=finished', '--anyway'),
  'verify': ('--workdir=finished',),
  'report': ('--workdir=finished',),
}


def flags_of(name: str) -> list[tuple[str, tuple[str, ...]]]:
  """The flags of a script, with values that they may well take."""
  _, out, _ = scripts.call(name, '--helpfull')
  rows, found = table.flag_rows(), []
  for flag, equals, default in re.findall(
    r'^  --(?:no(?=\w+\s))?(\w+)(=?)(\S*)', out, re.M
  ):
    row = rows.get(flag)
    numeric = (
      re.fullmatch(r'[-\d.,]*|inf', default)
      if row is None
      else (row.kind in (int, float, tuple))
    )
    values = (
      ('true', 'false')
      if not equals
      else (NUMBERS if numeric else (default, *(row.names if row else ())))
    )
    if not any(part in flag for part in NOT_TRIED):
      found.append((flag, values))
  return found


def command_line(rng: random.Random, name: str, known) -> list[str]:
  """Some flags with values that fit, do not fit or are none at all."""
  found = list(NEEDED.get(name, ())) if rng.random() < 0.8 else []
  for flag, values in rng.choices(known, k=rng.choice((0, 1, 1, 2, 3, 5))):
    pool = rng.choice((*4 * [values], BAD, PATHS))
    value = rng.choice(pool)
    usual = [[f'--{flag}={value}']]
    found += rng.choice(
      (
        *9 * usual,
        *([f'--{flag}', value], [f'--{flag}'], [f'--no{flag}'], [f'-{flag}']),
        *([f'--{flag}={value}', f'--{flag}={rng.choice(BAD)}'], [value]),
        [f'--{flag[:-1]}={value}'],
      )
    )
  return found


def tried(name: str, number: int):
  """Tries command lines; what was wrong is told of all of them."""
  rng, known, wrong = random.Random(name), flags_of(name), []
  for _ in range(number):
    given = command_line(rng, name, known)
    try:
      code, _, err = scripts.call(name, *given)
    except BaseException as error:
      wrong.append((given, f'{type(error).__name__}: {error}'))
      continue
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    others = [x for x in lines if not re.match('error|note|warning', x)]
    if code not in (0, 1, 2) or others or len(errors) != bool(code):
      wrong.append((given, code, err))
  return wrong


@pytest.fixture
def stubbed(monkeypatch, tmp_path, finished):
  """Nothing is computed, and everything is written to a folder of the test."""
  (tmp_path / 'finished').symlink_to(finished)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr(tasks, 'source_of', lambda settings: None)
  monkeypatch.setattr('experiments.running.devices.use', lambda settings: None)
  monkeypatch.setattr(
    'experiments.running.environment.restart', lambda variables: None
  )
  launch = launch_lib.launch

  def parsed(main, prepare, **options):
    del main
    options['device_fn'] = lambda _: None
    launch(lambda nothing: None, prepare, **options)

  monkeypatch.setattr(launch_lib, 'launch', parsed)


@pytest.mark.parametrize('name', NAMES)
def test_a_few_command_lines_end_in_order(name, stubbed):
  assert not (wrong := tried(name, FEW)), '\n'.join(map(repr, wrong))


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_many_command_lines_end_in_order(name, stubbed):
  assert not (wrong := tried(name, MANY)), '\n'.join(map(repr, wrong))
