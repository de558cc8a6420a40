"""The commands that make the runs of a report again."""

import dataclasses
import os
import re
import shlex

from experiments.records import finished as runs_lib
from experiments.reporting import lines, markup
from experiments.settings import setting
from experiments.settings import table as settings_lib

_PAGE = 'table.md'  # of a grid; it says which command made it
_MADE_BY = re.compile(
  r'python -m experiments\.(?:compare|survey|reproduce)[^`\n]*'
)


def section(comparison: lines.Comparison, made_by: str) -> str:
  """All commands.

  Args:
    comparison: the runs.
    made_by: the command of the report itself.
  """
  parts = []
  folders = dict.fromkeys(one.folder for one in comparison.seen)
  whole = [text for folder in folders for text in of_grid(folder)]
  if whole:
    parts += [markup.paragraph('The whole comparison:')]
    parts += [markup.code('\n'.join(whole))]
  trained = [one for one in comparison.seen if is_trained(one)]
  if trained:
    again = [train(one.settings, f'{one.folder}-again') for one in trained]
    checks = [
      f'python -m experiments.{what} --workdir={shlex.quote(one.folder)}'
      for one in trained
      for what in ('verify', 'replay')
    ]
    parts += [
      markup.paragraph('Train again:'),
      markup.code('\n'.join(again)),
      markup.paragraph(
        'Check the record (every batch in exactly one applied round), and '
        'compute it again to the same bits:'
      ),
      markup.code('\n'.join(checks)),
    ]
  else:
    parts.append(_single(comparison))
  parts += [markup.paragraph('This report:'), markup.code(made_by)]
  return ''.join(parts)


def is_trained(one: runs_lib.SavedRun) -> bool:
  """Whether a run has a folder of its own."""
  return os.path.exists(os.path.join(one.folder, 'config.json'))


def train(settings: settings_lib.Settings, workdir: str) -> str:
  """The command that makes a run: its flags that are no defaults."""
  defaults = settings_lib.Settings()
  given = {
    field.name: getattr(settings, field.name)
    for field in dataclasses.fields(settings)
    if field.name in ('method', 'workers', 'learning_rate')
    or getattr(settings, field.name) != getattr(defaults, field.name)
  }
  given |= dict(given.pop('parameters', ()))
  arguments = [
    shlex.quote(f'--{name}={_value(value)}')
    for name, value in (given | {'workdir': workdir}).items()
  ]
  return ' '.join(['python -m experiments.train', *arguments])


def of_grid(folder: str) -> list[str]:
  """The command that a grid's page says made it."""
  try:
    with open(os.path.join(folder, _PAGE), encoding='utf-8') as file:
      found = _MADE_BY.findall(file.read())
  except OSError:
    return []
  return [text.strip().rstrip('.') for text in dict.fromkeys(found)]


def _single(comparison) -> str:
  """One run of each cell of a grid, with everything that happens in it."""
  known = [cell for cell in comparison.cells if cell.runs[0].known]
  if not known:
    return markup.paragraph(
      'The settings of these runs were not recorded: an older version made '
      'them.'
    )
  folder = comparison.seen[0].folder
  made = [
    train(
      cell.runs[0].settings, os.path.join(folder, 'again', cell.runs[0].name)
    )
    for cell in known
  ]
  about = (
    'The first run of each row alone, with its trace. Data that is read from a '
    'file must be where --data_path says.'
  )
  inner = markup.paragraph(about) + markup.code('\n'.join(made))
  return markup.folded('One run at a time', inner)


def _value(value) -> str:
  if isinstance(value, bool):
    return 'true' if value else 'false'
  return setting.text_of(value)
