"""Named methods: their parts, who reads what, and what goes with what."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.catalogue import facts, methods, parts
from experiments.documents import compatibility
from experiments.running import train as train_lib
from experiments.settings import table as settings_lib
from ga_jax.policies.parts.base import Kind
from tests import scripts

pytestmark = pytest.mark.usefixtures('relaxed')

DOCS = os.path.join(os.path.dirname(os.path.dirname(__file__)), 'docs')


def test_every_part_is_in_a_named_method():
  for part, table in parts.TABLES.items():
    used = {getattr(method, part) for method in methods.METHODS.values()}
    unused = set(table) - used
    # The rule form of DANA-Slim: the method holds the momentum at the workers.
    assert unused == ({'dana_slim'} if part == 'rule' else set())


def test_every_parameter_has_a_flag_and_every_flag_a_reader():
  """But for what is supplied, and the constants of GA and Adam."""
  supplied = {'learning_rate', 'loss_fn', 'num_workers'}
  constants = {'weight_decay_mask', 'decay', 'eps', 'adam_eps'}
  read = {'outer_learning_rate'}
  for part, table in parts.TABLES.items():
    for name in table:
      read |= parts.reads(part, name)
  assert read - supplied - constants == set(parts.PARAMETERS)


def test_a_name_implies_its_parameters_unless_told_otherwise():
  def rule(**fields):
    return scripts.settings_of(**fields).arguments()['rule']

  assert rule(method='ga_global') == {'granularity': 'global'}
  given = (('granularity', 'parameter'),)
  assert rule(method='ga_global', parameters=given) == dict(given)
  assert rule(method='ga_global', rule='asgd') == {}
  assert rule(method='ga_global', policy='softsync') == {
    'granularity': 'global'
  }
  assert rule(method='dana_ga', workers=7)['num_workers'] == 7
  eamsgd = scripts.settings_of(method='eamsgd', workers=3).arguments()
  assert eamsgd['program'] == {'local_momentum': 0.9, 'num_workers': 3}


def test_a_parameter_goes_to_the_program_where_it_reads_it():
  given = (('momentum', 0.5), ('weight_decay', 0.1))
  slim = scripts.settings_of(method='dana_slim', parameters=given).arguments()
  assert slim['program'] == dict(given)
  assert slim['rule'] == {'momentum': 0.0}
  local = scripts.settings_of(method='local_sgd', parameters=given).arguments()
  assert local['program'] == {'weight_decay': 0.1}
  assert local['rule'] == {'momentum': 0.5}  # the outer one
  plain = scripts.settings_of(method='local_sgd').arguments()
  assert plain['rule'] == {'momentum': 0.0}
  assert scripts.settings_of(method='asgd').arguments()['rule'] == {}


def test_a_parameter_that_nobody_reads_is_refused_with_those_read():
  with pytest.raises(settings_lib.SettingError) as error:
    scripts.settings_of(
      method='sa', policy='softsync', parameters=(('abs_k0', 2),), workers=4
    )
  text = str(error.value)
  assert text.startswith('--abs_k0=2: ')
  assert 'policy softsync' in text
  assert text.endswith('they read momentum, nesterov, softsync_n, weight_decay')


@pytest.mark.slow
def test_local_programs_take_the_learning_rate_and_its_schedule():
  """Half of the batches at a rate of nothing leave what the others made."""

  def train(**fields):
    settings = scripts.settings_of(method='local_sgd', workers=1, **fields)
    return train_lib.train(settings, evaluate_epochs=False).result.params

  frozen = train(
    epochs=16 / 44,
    schedule='step',
    boundaries=(8 / 44,),
    decay_factor=1e-30,
  )
  short = train(epochs=8 / 44)
  other = train(epochs=8 / 44, learning_rate=0.02)
  for a, b, c in zip(
    *map(jax.tree.leaves, (frozen, short, other)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert np.abs(np.asarray(b) - np.asarray(c)).max() > 1e-6


@pytest.mark.parametrize('executor', ['exact', 'fast'])
def test_deaths_stalls_and_messages_reach_the_clock(executor):
  settings = scripts.settings_of(
    workers=3,
    clock='constant',
    deaths=((2, 1.5),),
    stalls=((1, 2.5, 10.0),),
    latency=0.25,
    method='asgd',
    executor=executor,
  )
  done = train_lib.train(settings, evaluate_epochs=False)
  events = done.result.trace.events
  assert (events['worker_id'][events['event'] == Kind.LEAVE] == [2]).all()
  first = events[events['event'] == Kind.ARRIVE][:2]
  assert first['time'].tolist() == [1.5, 1.5]  # a batch and two messages
  stalled = events[(events['worker_id'] == 1) & (events['event'] == 1)]
  assert stalled['time'][1] == 13.0
  assert done.summary['wasted_work'] == 0  # it died at the end of a batch


def test_a_recorded_clock_plays_a_trace(tmp_path):
  done = train_lib.train(scripts.settings_of(workers=3), evaluate_epochs=False)
  path = str(tmp_path / 'trace.npz')
  done.result.trace.save(path)
  again = train_lib.train(
    scripts.settings_of(workers=3, clock='recorded', clock_times=path),
    evaluate_epochs=False,
  )
  assert again.result.trace.applied()['worker_id'].tolist() == (
    done.result.trace.applied()['worker_id'].tolist()
  )
  np.testing.assert_allclose(
    again.summary['simulated_time'], done.summary['simulated_time']
  )


@pytest.mark.parametrize(
  ('method', 'expected'),
  [
    ('asgd', ('1', 'N', '0', 4_000_000, ())),
    ('ga', ('2', 'N', '0', 4_000_000, ('stale_params',))),
    ('multi_asgd', ('N', 'N', '0', 4_000_000, ('worker_id',))),
    (
      'dana_zero',
      ('1 + N', 'N', '0', 4_000_000, ('worker_id', 'lookahead sent')),
    ),
    ('dana_slim', ('1', 'N', '1', 4_000_000, ())),
    ('ssgd', ('2', '1', '0', 4_000_000, ())),
    ('abs', ('2', 'N', '0', 4_000_000, ('losses',))),
    ('ringmaster', ('1', '13 of N = 16', '0', 4_000_000, ())),
    ('easgd', ('1', 'N', '2', 4_000_000, ('exchange at arrival',))),
    ('terngrad', ('1', 'N', '0', 250_004, ())),
    ('topk', ('1', 'N', '1', 80_000, ())),
  ],
)
def test_the_cost_of_a_method_is_measured(method, expected):
  assert facts.facts(methods.METHODS[method]) == expected


def kinds(text: str) -> dict[tuple[str, str], str]:
  """{(rule, name): 'yes', 'no' or 'number'} of a page."""
  found, names = {}, []
  for line in text.splitlines():
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    if cells[0].startswith('rule '):
      names = [cell.strip('`') for cell in cells[1:]]
    elif cells[0].startswith('`'):
      for name, cell in zip(names, cells[1:], strict=True):
        kind = cell.split(' ')[0]
        found[cells[0].strip('`'), name] = (
          kind if kind in ('yes', 'no') else 'number'
        )
  return found


def page_of(rules):
  return compatibility.page(
    {
      part: compatibility.outcomes(part, rules)
      for part in ('policy', 'program', 'compression')
    }
  )


@pytest.mark.slow  # they are runs: a check before a release
@pytest.mark.parametrize('rules', [['dana_ga'], list(parts.TABLES['rule'])])
def test_the_compatibility_page_is_that_of_the_code(rules):
  with open(os.path.join(DOCS, 'compatibility.md')) as file:
    written = kinds(file.read())
  made = kinds(page_of(rules))
  assert {rule for rule, _ in written} == set(parts.TABLES['rule'])
  columns = sum(
    len(parts.TABLES[part]) for part in ('policy', 'program', 'compression')
  )
  assert len(made) == columns * len(rules)
  # At the limit a rounding may decide between a number and yes.
  differ = {pair for pair in made if made[pair] != written[pair]}
  assert not [p for p in differ if 'no' in (made[p], written[p])]
  assert len(differ) <= len(made) // 50


SURVEY = """
import os, sys
from experiments import survey
from experiments.script import launch

workdir, *sys.argv = sys.argv[1:]

def call():
  try:
    launch.launch(survey.main, survey.prepare)
  except SystemExit as stopped:
    assert not stopped.code
  with open(os.path.join(workdir, 'metrics.jsonl')) as file:
    return file.read()

assert call() == call()  # nothing is computed again
"""


@pytest.mark.slow
def test_survey_writes_a_table_and_resumes(tmp_path):
  workdir = str(tmp_path / 'survey')
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      SURVEY,
      workdir,
      'survey',
      '--methods=abs',
      '--clocks=constant',
      '--workers=3',
      '--seeds=1',
      '--model=mlp',
      '--epochs=0.25',
      '--holdout=100',
      '--learning_rates=0.03,0.1,0.3',
      f'--workdir={workdir}',
    ],
    capture_output=True,
    text=True,
    cwd=os.path.dirname(DOCS),
    check=False,
  )
  assert done.returncode == 0, done.stderr
  with open(os.path.join(workdir, 'table.md')) as file:
    table = file.read()
  assert done.stdout.count(table) == 2
  rows = [line for line in table.splitlines() if line.startswith('| `')]
  assert [row.split('`')[1] for row in rows] == ['abs', 'ssgd']
  head = next(line for line in table.splitlines() if '× SSGD' in line)
  ssgd = {
    name.strip(): cell.strip()
    for name, cell in zip(head.split('|'), rows[1].split('|'), strict=True)
  }
  assert ssgd['× SSGD'] == '1.00'
  assert ssgd['time'] == '4'  # 10 batches by 3 workers
