"""What --help says of a script: its flags by group, the most used ones first.

`--help` and `--helpshort` fit a screen, `--helpfull` has everything. Where the
flag of a setting stands, its row says (`table`); flags that no group has are
the script's own.
"""

import functools
import inspect
import io
import itertools
import sys
import textwrap
from typing import NamedTuple

from absl import app, flags

from experiments.settings import setting, table

WIDTH = 80
_TEXT = 27  # column where the explanation of a flag begins


class Group(NamedTuple):
  """Flags that belong together.

  Attributes:
    title: of the group.
    often: those that --helpshort names.
    rest: those that only --helpfull names.
  """

  title: str
  often: tuple[str, ...] = ()
  rest: tuple[str, ...] = ()


# Flags of scripts that are no settings: those that --help names, the rest.
_OF_SCRIPTS = {
  setting.METHOD: ((), ('baseline',)),
  setting.TRAINING: ((), ('mapped_seeds',)),
  setting.OUTPUT: (
    (
      *('workdir', 'folder', 'overwrite', 'checkpoint_every', 'resume'),
      *('tensorboard', 'quiet'),
    ),
    ('keep_checkpoints', 'note', 'compilation_cache'),
  ),
}
# Those that give a setting several values stand beside it.
_SEVERAL = {
  'method': 'methods',
  'learning_rate': 'learning_rates',
  'momentum': 'momenta',
  'clock': 'clocks',
  'seed': 'seeds',
}


def groups() -> list[Group]:
  """The groups of all flags that scripts share."""
  rows, found = table.flag_rows(), []
  for title in setting.GROUPS:
    often, rest = _OF_SCRIPTS.get(title, ((), ()))
    own = {name: row for name, row in rows.items() if row.group == title}
    usual = sorted((n for n in own if own[n].often), key=lambda n: own[n].often)
    usual = [(n, _SEVERAL[n]) if n in _SEVERAL else (n,) for n in usual]
    rest += tuple(name for name, row in own.items() if not row.often)
    found.append(Group(title, (*itertools.chain(*usual), *often), rest))
  return found


def aliases() -> dict[str, str]:
  """The flags' other names: {alias: name}."""
  rows = table.flag_rows()
  return {row.alias: name for name, row in rows.items() if row.alias}


class _Help(flags.BooleanFlag):
  """A flag that prints the help and ends the process."""

  def __init__(self, name: str, about: str, text_fn, short=None):
    super().__init__(name, False, about, short, allow_override=True)
    self._text_fn = text_fn

  def parse(self, arg):
    if self._parse(arg):
      print(self._text_fn())
      sys.exit(0)


def define(script):
  """Defines --help, --helpshort and --helpfull of a script, and the aliases.

  Args:
    script: its module.
  """
  app.define_help_flags()
  brief = functools.partial(short, script)
  for one in (
    _Help('help', 'show a screen of help', brief, '?'),
    _Help('helpshort', 'the same', brief),
    _Help('helpfull', 'show all flags', functools.partial(full, script)),
    _Help('helpxml', 'show all flags as XML', _xml),
  ):
    flags.DEFINE_flag(one)
  for alias, name in aliases().items():
    if name in flags.FLAGS and alias not in flags.FLAGS:
      flags.DEFINE_alias(alias, name)


def _xml() -> str:
  text = io.StringIO()
  flags.FLAGS.write_help_in_xml_format(text)
  return text.getvalue()


def short(script) -> str:
  """A screen of help: what the script is for, an example, the usual flags."""
  about, *rest = (inspect.getdoc(script) or '').split('\n\n')
  examples = [block for block in rest if _starts(block)]
  lines = [about]
  if examples:
    lines += ['', examples[0]]
  groups = grouped()
  for title, often, _ in groups:
    if often:
      lines += ['', title, *map(_one_line, often)]
  told = sum(len(group.often) for group in groups)
  number = told + sum(len(group.rest) for group in groups)
  lines.append('')
  if number > told:
    lines.append(
      f'--helpfull tells of all {number}; --flagfile=FILE reads flags of a file'
    )
  return '\n'.join(lines).rstrip()


def _starts(block: str) -> bool:
  """Whether a paragraph says how a script is started."""
  lines = block.splitlines()
  return any(line.lstrip().startswith('python -m ') for line in lines)


def full(script) -> str:
  """Everything: the docstring and all flags by group, absl's own last."""
  lines = [inspect.getdoc(script) or '']
  for title, often, rest in grouped():
    lines += ['', f'{title}:']
    for name in (*often, *rest):
      lines += _paragraph(name)
  lines += ['', 'of absl:']
  ours = {name for group in grouped() for name in (*group.often, *group.rest)}
  values = flags.FLAGS
  names = {values[name].name for name in values}  # not the short ones
  for name in sorted(names - ours - aliases().keys()):
    lines += _paragraph(name)
  lines += [
    f'{"  --flagfile=FILE":{_TEXT}}reads flags of a file, one a line; # begins',
    f'{"":{_TEXT}}a comment, flags that come later win',
  ]
  return '\n'.join(lines)


def grouped() -> list[Group]:
  """The flags that there are, by group; the script's own come first."""
  values, shared = flags.FLAGS, groups()
  listed = {name for group in shared for name in (*group.often, *group.rest)}
  listed |= aliases().keys()
  own = tuple(
    flag.name
    for module, found in values.flags_by_module_dict().items()
    if module == sys.argv[0] or module.startswith('experiments.')
    for flag in found
    if flag.name not in listed
    and values[flag.name] is flag
    and not isinstance(flag, _Help)
  )
  there = [
    Group(
      group.title,
      tuple(name for name in group.often if name in values),
      tuple(name for name in group.rest if name in values),
    )
    for group in shared
  ]
  found = [Group('this script', own), *there]
  return [group for group in found if group.often or group.rest]


def _head(name: str) -> str:
  """A flag with its default."""
  flag = flags.FLAGS[name]
  if flag.boolean:
    return f'  --{"no" if flag.default else ""}{name}'
  default = flag.default
  if isinstance(default, list):
    default = ','.join(map(str, default))
  return f'  --{name}={"" if default is None else default}'


def _about(name: str) -> str:
  text = ' '.join((flags.FLAGS[name].help or '').split())
  row = table.flag_rows().get(name)
  return f'{text} (or --{row.alias})' if row and row.alias else text


def _one_line(name: str) -> str:
  head = textwrap.shorten(_head(name).replace(',', ', '), 44).replace(', ', ',')
  about = _about(name).replace('|', ', ')
  return _shortened(f'  {head:<{_TEXT - 4}}  {about}')


def _shortened(line: str) -> str:
  if len(line) <= WIDTH:
    return line
  return line[: WIDTH - 3].rstrip(' ,') + '...'


def _paragraph(name: str) -> list[str]:
  head = _head(name)
  text = _about(name).replace('|', ' | ')
  lines = textwrap.wrap(text, WIDTH - _TEXT) or ['']
  if len(head) > _TEXT - 2:
    return [head, *(f'{"":{_TEXT}}{line}' for line in lines)]
  first, *more = lines
  return [
    f'{head:<{_TEXT}}{first}',
    *(f'{"":{_TEXT}}{line}' for line in more),
  ]
