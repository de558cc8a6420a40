"""Flags that the scripts share."""

import math
from collections.abc import Collection
from typing import Any

from absl import flags

from experiments.catalogue import methods, parts
from experiments.running import compilation, mapped
from experiments.script import name_flags
from experiments.settings import check, path_flags, table

_DEFINE = {
  float: flags.DEFINE_float,
  int: flags.DEFINE_integer,
  bool: flags.DEFINE_bool,
  str: flags.DEFINE_string,
  tuple: flags.DEFINE_list,
}
_MOST_SEEDS = 1_000_000
# What a script with many runs sets itself, or leaves as it is by default.
OF_ONE_RUN = (
  *('method', 'workers', 'learning_rate', 'momentum', 'seed'),
  *('simulate_devices', 'layer_metrics'),
)


def define_run_flags(*, without: Collection[str] = (), live: bool = True):
  """Defines the flags of a run: its settings, the parameters of methods.

  Args:
    without: those that the script does without, or defines itself.
    live: whether the runs may be live; else all are simulated.
  """
  compilation.define_flag()
  flags.DEFINE_bool('quiet', False, 'show no progress, only what came out')
  for name, row in table.flag_rows().items():
    simulated = 'simulate' in row.read_by and name != 'runtime'
    if name not in without and (live or simulated):
      define(name)


def define_mapped():
  """Defines the flag of scripts that run the seeds of a cell together."""
  flags.DEFINE_bool(
    'mapped_seeds',
    False,
    'the seeds of a cell, and the rates of a search, in one program, where a '
    'probe of some steps says that it is sooner (simulated, --executor=fast)',
  )


def mapper() -> mapped.Mapper | None:
  """What computes runs together; None where they are not to be."""
  return mapped.Mapper() if flags.FLAGS.mapped_seeds else None


def define(name: str, about: str = '') -> flags.FlagHolder:
  """Defines the flag of a setting, or of a parameter of methods.

  Args:
    name: of the setting.
    about: what the flag says, where the script means something of its own.

  Returns:
    What holds its value.
  """
  row = table.flag_rows()[name]
  default = list(row.default) if row.kind is tuple else row.default
  named = name in ('method', *methods.PARTS)
  make = name_flags.one if named else _DEFINE[row.kind]
  make = path_flags.one if row.is_path else make
  return make(name, default, about or row.help())


def value_of(name: str) -> Any:
  """What the flag of a setting, or of a parameter, gives it.

  Args:
    name: of the setting.

  Returns:
    The value as `Settings` has it.

  Raises:
    SettingError: an item of a list has not its form.
  """
  row, value = table.flag_rows()[name], flags.FLAGS[name].value
  if row.form:
    return fault_list(name, value, row.form)
  return number_list(name, value, float) if row.kind is tuple else value


def quiet() -> bool:
  """Whether no progress is to be shown; of a script with no such flag, no."""
  return 'quiet' in flags.FLAGS and flags.FLAGS.quiet


def run_settings(**own: Any) -> table.Settings:
  """Checked settings from the flags.

  Args:
    **own: settings that the script gives itself, whatever their flags say;
      `parameters` among them are added to those given as flags.

  Returns:
    `Settings`.
  """
  given = {
    name: value_of(name)
    for name in table.Settings.rows()
    if name in flags.FLAGS and name not in own
  }
  parameters = {
    name: flags.FLAGS[name].value
    for name in parts.PARAMETERS
    if name in flags.FLAGS and flags.FLAGS[name].value is not None
  }
  parameters |= own.pop('parameters', {})
  return check.check(
    table.Settings(**given, **own, parameters=tuple(sorted(parameters.items())))
  )


def check_names(flag: str, names: list[str], known: Collection[str]):
  """Raises a SettingError unless names are known ones, none of them twice."""
  if not names:
    raise table.SettingError(flag, '', 'must name at least one')
  if len(set(names)) < len(names):
    raise table.SettingError(flag, names, 'names something twice')
  unknown = [name for name in names if name not in known]
  if unknown:
    raise table.SettingError(
      flag, names, f'{unknown[0]} is none of {", ".join(known)}'
    )


def check_rates(rates: tuple[float, ...]):
  """Raises a SettingError unless a grid of rates can be swept."""
  rising = all(a < b for a, b in zip((0.0, *rates), rates, strict=False))
  if not (rising and all(1e-30 <= rate <= 1e30 for rate in rates)):
    raise table.SettingError(
      'learning_rates', rates, 'must be positive, finite and increasing'
    )
  if rates and not flags.FLAGS.holdout:
    raise table.SettingError(
      'holdout', 0, '--learning_rates needs a validation split: at least 1'
    )


def check_seeds(seeds: int, least: int = 1):
  """Raises a SettingError unless there can be so many runs per cell."""
  if not least <= seeds <= _MOST_SEEDS:
    raise table.SettingError(
      'seeds', seeds, f'must be at least {least} and at most {_MOST_SEEDS}'
    )


def check_positive(*holders: flags.FlagHolder):
  """Raises a SettingError unless the flags are positive and finite."""
  for holder in holders:
    if not 0 < holder.value < math.inf:
      raise table.SettingError(
        holder.name, holder.value, 'must be positive and finite'
      )


def counts(holder: flags.FlagHolder) -> list[int]:
  """The numbers of a list flag, each at least 1."""
  found = number_list(holder.name, holder.value, int)
  if min(found, default=1) < 1:
    raise table.SettingError(
      holder.name, holder.value, 'must be at least 1, every one'
    )
  return list(found)


def fault_list(flag: str, values: list[str], form: str) -> tuple:
  """The items of a list flag, each an integer and numbers.

  Args:
    flag: its name.
    values: the items, of which each must have the form.
    form: such as 'WORKER:TIME'.

  Returns:
    ((worker, time), ...).

  Raises:
    SettingError: one of them is not of that form.
  """
  try:
    found = tuple(
      (int(first), *map(float, rest))
      for first, *rest in (value.split(':') for value in values)
    )
  except ValueError:
    found = ((),)
  if any(len(item) != 1 + form.count(':') for item in found):
    raise table.SettingError(flag, values, f'must be {form},... with numbers')
  return found


def number_list(flag: str, values, kind: type) -> tuple:
  """The numbers of a list flag.

  Raises:
    SettingError: one of them is none.
  """
  try:
    return tuple(kind(value) for value in values)
  except ValueError as error:
    name = 'integers' if kind is int else 'numbers'
    raise table.SettingError(
      flag, values, f'must be {name} separated by commas'
    ) from error
