"""Flags that take methods, rules and policies by any name that they have."""

from absl import flags

from ga_jax import policies, rules

flags.disclaim_key_flags()  # they are those of the script that defines them

_OTHER_NAMES = rules.OTHER_NAMES | policies.OTHER_NAMES


class _Name(flags.ArgumentParser):
  """One name; another name of it becomes the one that is recorded."""

  def parse(self, argument):
    return _OTHER_NAMES.get(argument, argument)


class _Names(flags.ListParser):
  """Several, separated by commas."""

  def parse(self, argument):
    return [_OTHER_NAMES.get(name, name) for name in super().parse(argument)]


def one(flag: str, default: str | None, about: str) -> flags.FlagHolder:
  """`flags.DEFINE_string` of one name."""
  return flags.DEFINE(
    _Name(), flag, default, about, serializer=flags.ArgumentSerializer()
  )


def several(flag: str, default: list[str], about: str) -> flags.FlagHolder:
  """`flags.DEFINE_list` of names."""
  return flags.DEFINE(
    _Names(), flag, default, about, serializer=flags.CsvListSerializer(',')
  )
