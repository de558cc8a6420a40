"""What --help says of a script: its flags by group, the most used ones first.

`--help` and `--helpshort` fit a screen, `--helpfull` has everything. One table
of groups serves all scripts; flags that are not in it are the script's own.
"""

import inspect
import sys
import textwrap
from typing import NamedTuple

from absl import app, flags

from experiments.catalogue import parts

WIDTH = 80
_TEXT = 27  # column where the explanation of a flag begins
ALIASES = {  # names of other libraries' examples, and of ga_jax.simulate
  'lr': 'learning_rate',
  'num_epochs': 'epochs',
  'num_workers': 'workers',
}


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


GROUPS = (
  Group(
    'model and data',
    ('model', 'dataset', 'data_path'),
    (
      *('holdout', 'augment', 'compute_dtype', 'remat'),
      *('segment_length', 'memory_length'),
    ),
  ),
  Group(
    'method',
    (
      *('method', 'methods', 'learning_rate', 'learning_rates'),
      *('momentum', 'momenta', 'weight_decay'),
    ),
    ('baseline', *parts.TABLES),
  ),
  Group(
    'parameters of methods',
    (),
    tuple(p for p in parts.PARAMETERS if p not in ('momentum', 'weight_decay')),
  ),
  Group(
    'cluster',
    ('workers', 'clock', 'clocks', 'runtime'),
    (
      *('clock_times', 'stalls', 'deaths', 'latency', 'bandwidth'),
      *('simulate_devices', 'devices', 'devices_per_worker', 'straggler'),
      *('lease_seconds', 'pipeline_depth', 'address', 'accelerator'),
      'server_shards',
    ),
  ),
  Group(
    'training',
    ('epochs', 'batch_size', 'schedule', 'seed', 'seeds'),
    (
      *('boundaries', 'decay_factor', 'warmup_epochs', 'scale_lr'),
      *('evaluate_every', 'executor'),
    ),
  ),
  Group(
    'output',
    (
      *('workdir', 'folder', 'overwrite', 'checkpoint_every', 'resume'),
      *('tensorboard', 'quiet'),
    ),
    ('keep_checkpoints', 'layer_metrics', 'note', 'compilation_cache'),
  ),
)


class _Help(flags.BooleanFlag):
  """A flag that prints the help and ends the process."""

  def __init__(self, name: str, about: str, script, full: bool, short=None):
    super().__init__(name, False, about, short, allow_override=True)
    self._script, self._full = script, full

  def parse(self, arg):
    if self._parse(arg):
      text = full(self._script) if self._full else short(self._script)
      print(text, flush=True)  # | head may be gone
      sys.exit(0)


def define(script):
  """Defines --help, --helpshort and --helpfull of a script, and the aliases.

  Args:
    script: its module.
  """
  app.define_help_flags()
  flags.DEFINE_flag(_Help('help', 'show a screen of help', script, False, '?'))
  flags.DEFINE_flag(_Help('helpshort', 'the same', script, False))
  flags.DEFINE_flag(_Help('helpfull', 'show all flags', script, True))
  for alias, name in ALIASES.items():
    if name in flags.FLAGS and alias not in flags.FLAGS:
      flags.DEFINE_alias(alias, name)


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
  for name in sorted(names - ours - set(ALIASES)):
    lines += _paragraph(name)
  lines += [
    f'{"  --flagfile=FILE":{_TEXT}}reads flags of a file, one a line; # begins',
    f'{"":{_TEXT}}a comment, flags that come later win',
  ]
  return '\n'.join(lines)


def grouped() -> list[Group]:
  """The flags that there are, by group; the script's own come first."""
  values = flags.FLAGS
  listed = {name for group in GROUPS for name in (*group.often, *group.rest)}
  own = tuple(
    flag.name
    for module, found in values.flags_by_module_dict().items()
    if module == sys.argv[0] or module.startswith('experiments.')
    for flag in found
    if flag.name not in listed and values[flag.name] is flag
  )
  own = tuple(
    name
    for name in own
    if name not in ALIASES and not isinstance(values[name], _Help)
  )
  there = [
    Group(
      group.title,
      tuple(name for name in group.often if name in values),
      tuple(name for name in group.rest if name in values),
    )
    for group in GROUPS
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
  also = [alias for alias, of in ALIASES.items() if of == name]
  text = ' '.join((flags.FLAGS[name].help or '').split())
  return f'{text} (or --{also[0]})' if also else text


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
