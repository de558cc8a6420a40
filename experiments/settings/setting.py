"""One setting: what is known of it, and which values are accepted."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from ga_jax.guards import forms

RUNTIMES = ('simulate', 'threads', 'ray')
# Groups of flags, in the order in which help screens have them.
DATA = 'model and data'
METHOD = 'method'
PARAMETERS = 'parameters of methods'
CLUSTER = 'cluster'
TRAINING = 'training'
OUTPUT = 'output'
GROUPS = (DATA, METHOD, PARAMETERS, CLUSTER, TRAINING, OUTPUT)

_STORED = {
  float: forms.number(),
  int: forms.integer(),
  bool: forms.flag,
  str: forms.text,
}


_LONGEST = 200  # characters of a value that a message shows


class Range(NamedTuple):
  """Which values are accepted.

  Attributes:
    said: after 'must be', in an error message.
    holds: `holds(value)`, whether a value is.
  """

  said: str
  holds: Callable[[Any], bool]


def at_least(low: int) -> Range:
  """The values from `low` on."""
  return Range(f'at least {low}', lambda value: value >= low)


class Row(NamedTuple):
  """A setting, but for its name: all that is known of it.

  Attributes:
    kind: float, int, bool, str, or tuple for what is a list on the command
      line.
    default: of the flag too.
    group: of the flags that it stands among on the help screens.
    about: what the flag says; '{names}' in it stands for `names`.
    often: place among the flags of its group that --help names, 1 the first,
      equals in the table's order; 0 where only --helpfull names it.
    names: those that it takes beside its default; none where it is no name.
    accepts: the range of its values; None for any.
    form: of a tuple, what its items are made of, such as 'WORKER:TIME': an
      integer and numbers; '' where they are numbers.
    read_by: the runtimes that read it; the others refuse it.
    of_model: whether it is an argument of the model, of those that take it.
    alias: another name of the flag; '' for none.
    is_path: whether it names a file or a folder.
  """

  kind: type
  default: Any
  group: str
  about: str
  often: int = 0
  names: Collection[str] = ()
  accepts: Range | None = None
  form: str = ''
  read_by: tuple[str, ...] = RUNTIMES
  of_model: bool = False
  alias: str = ''
  is_path: bool = False

  def help(self) -> str:
    """What the flag says."""
    return self.about.replace('{names}', '|'.join(self.names))

  def stored(self) -> forms.Form:
    """What a file of JSON may hold of it, but for its range."""
    if self.kind is not tuple:
      return _STORED[self.kind]
    _, *numbers = self.form.split(':')
    item = forms.row(forms.integer(), *(forms.number() for _ in numbers))
    return forms.listed(item if self.form else forms.number())


def row(group: str, default: Any, about: str, **more: Any) -> Any:
  """A field of the table of settings; arguments as of `Row`."""
  known = Row(type(default), default, group, about, **more)
  return dataclasses.field(default=default, metadata={'row': known})


def shown(text: str) -> str:
  """What was given, in one line that is safe to print."""
  cut = text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'
  return printable(cut)


def printable(text: str) -> str:
  """A text without what a terminal would obey: it may be from any file."""
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def text_of(value: Any) -> str:
  """A setting's value as its flag takes it."""
  if isinstance(value, float):
    return f'{value:g}' if float(f'{value:g}') == value else repr(value)
  if isinstance(value, (list, tuple)):
    inner = [
      ':'.join(map(text_of, v)) if isinstance(v, tuple) else text_of(v)
      for v in value
    ]
    return ','.join(inner)
  return str(value)
