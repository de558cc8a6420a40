"""The table of settings: all that is made from its rows."""

import dataclasses
import json

import pytest

from experiments.records import record
from experiments.settings import check, setting, table
from tests import scripts


@dataclasses.dataclass(frozen=True)
class OneMore(table.Settings):
  """The table with another row."""

  patience: int = setting.row(
    setting.TRAINING,
    3,
    'evaluations that may bring nothing',
    often=1,
    accepts=setting.at_least(1),
    read_by=('simulate',),
    alias='wait',
  )


@pytest.fixture
def one_more(monkeypatch):
  monkeypatch.setattr(table, 'Settings', OneMore)


@pytest.mark.parametrize(
  'name', ['train', 'compare', 'survey', 'reproduce', 'replay']
)
def test_a_new_row_is_on_the_help_screens(one_more, name):
  line = (
    '  --patience=3             evaluations that may bring nothing (or --wait)'
  )
  for flag in ('--help', '--helpfull'):
    _, text, _ = scripts.call(name, flag)
    _, _, group = text.partition('\ntraining')
    assert line in group.partition('\n\n')[0].splitlines()


@pytest.mark.parametrize(
  ('given', 'why'),
  [
    ('--patience=x', 'must be an integer'),
    ('--patience=0', 'must be at least 1'),
    (
      '--patience=2 --runtime=threads',
      'read by --runtime=simulate only, not by threads',
    ),
  ],
)
def test_a_new_row_is_checked(one_more, given, why):
  flag, *_ = given.split()
  ended = scripts.call('train', *given.split())
  assert (ended.code, ended.err) == (2, f'error: {flag}: {why}\n')


def test_a_new_row_is_recorded(one_more, tmp_path):
  given = ('--wait=2', '--model=mlp', '--epochs=0.1', f'--workdir={tmp_path}')
  assert scripts.call('train', *given).code == 0
  config = json.loads((tmp_path / 'config.json').read_text())
  assert list(config)[-1] == 'patience'
  assert config['patience'] == 2
  assert record.load_settings(str(tmp_path)).patience == 2
  began = json.loads((tmp_path / 'began.json').read_text())
  assert began['settings']['patience'] == 2


def test_every_row_takes_its_default():
  rows = table.Settings.rows()
  settings = check.check(table.Settings())
  fields = vars(settings)
  assert fields.keys() - rows.keys() == {'parameters'}
  assert {name: row.default for name, row in rows.items()}.items() <= (
    fields.items()
  )
  assert {row.group for row in rows.values()} <= set(setting.GROUPS)


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (0.1, '0.1'),
    (1 / 3, repr(1 / 3)),
    (((0, 1.0, 2.5), (1, 3.0, 1e30)), '0:1:2.5,1:3:1e+30'),
    ((1.0, 2.0), '1,2'),
    (['ga', 'sa'], 'ga,sa'),
    ((), ''),
  ],
)
def test_a_value_is_shown_as_its_flag_takes_it(value, text):
  assert setting.text_of(value) == text
