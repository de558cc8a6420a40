"""Flags that name files and folders of this machine."""

import os
import re

from absl import flags

flags.disclaim_key_flags()  # they are those of the script that defines them

_ELSEWHERE = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+://')
_ACCEPTED = (
  'a path on this machine: files are locked, renamed and removed there, which '
  'a bucket cannot do (mount it, or copy the folder there afterwards)'
)


def is_elsewhere(path: str) -> bool:
  """Whether it names something that is no file of this machine: 'gs://...'."""
  return bool(_ELSEWHERE.match(path))


class _Path(flags.ArgumentParser):
  """A path; ~ is the home folder."""

  syntactic_help = _ACCEPTED

  def parse(self, argument):
    if is_elsewhere(argument) or '\0' in argument:
      raise ValueError(_ACCEPTED)
    return os.path.expanduser(argument)


class _Output(_Path):
  """Of a file that the command writes when all is done."""


class _Paths(flags.ListParser):
  """Several, separated by commas."""

  def __init__(self):
    super().__init__()
    self.syntactic_help = _ACCEPTED

  def parse(self, argument):
    return [_Path().parse(path) for path in super().parse(argument)]


def one(flag: str, default: str | None, about: str) -> flags.FlagHolder:
  """`flags.DEFINE_string` of a path."""
  return flags.DEFINE(
    _Path(), flag, default, about, serializer=flags.ArgumentSerializer()
  )


def output(flag: str, default: str | None, about: str) -> flags.FlagHolder:
  """The same of a file that is written; see `outputs`."""
  return flags.DEFINE(
    _Output(), flag, default, about, serializer=flags.ArgumentSerializer()
  )


def outputs() -> dict[str, str]:
  """The files that the flags of this command say are to be written, by flag."""
  values = flags.FLAGS
  return {
    name: values[name].value
    for name in values
    if isinstance(values[name].parser, _Output) and values[name].value
  }


def several(flag: str, about: str) -> flags.FlagHolder:
  """`flags.DEFINE_list` of paths, none by default."""
  return flags.DEFINE(
    _Paths(), flag, [], about, serializer=flags.CsvListSerializer(',')
  )
