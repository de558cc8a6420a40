"""Other settings for the arrivals of a run: what if they had met another rule?

A trace says which batches meet which version, and when a round is closed. What
does not say so may be another: the rule, its numbers, the learning rate.
"""

import dataclasses
from typing import Any

from experiments import tasks
from experiments.catalogue import methods, parts
from experiments.running import setup
from experiments.settings import check
from experiments.settings import table as settings_lib

# Of the settings, what may be another, beside the parameters of the parts. Of
# policies and programs only those that fit may.
FIELDS = (
  'method',
  *methods.PARTS,
  'learning_rate',
  'schedule',
  'boundaries',
  'decay_factor',
  'warmup_epochs',
)
_RULE_ALONE = '; --rule= changes the rule alone'


def settings_with(
  settings: settings_lib.Settings, given: dict[str, Any]
) -> settings_lib.Settings:
  """The settings of a run with others in their place.

  Another method brings its rule, policy, program and compression; what the run
  has instead of its own method's (but for the rule) it goes on to have, and the
  parameters that are still read stay.

  Args:
    settings: of the run.
    given: fields and parameters by name.

  Returns:
    Checked settings.

  Raises:
    SettingError: something is not free, is out of its range, or does not fit
      the trace.
  """
  for name, value in given.items():
    if name not in (*FIELDS, *parts.PARAMETERS):
      raise settings_lib.SettingError(
        name, value, f'the run had {getattr(settings, name)}, which stays'
      )
  fields = {name: value for name, value in given.items() if name in FIELDS}
  if 'method' in fields:
    fields = {'rule': '', **fields}
  other = check.check(
    dataclasses.replace(
      settings,
      clock=settings_lib.Settings.clock,  # the trace takes its place
      clock_times='',
      simulate_devices='',  # it is computed on one
      parameters=(),
      **fields,
    )
  )
  parameters = {
    **{
      k: v for k, v in settings.parameters if k in parts.read_by(other.parts())
    },
    **{k: v for k, v in given.items() if k not in FIELDS},
  }
  other = check.check(
    dataclasses.replace(other, parameters=tuple(sorted(parameters.items())))
  )
  _check_fits(settings, other)
  return other


def changes(
  settings: settings_lib.Settings, other: settings_lib.Settings
) -> str:
  """What differs of two settings, as `name=value, ...`."""
  fields = {
    **{k: v for k, v in vars(other).items() if k in FIELDS},
    **dict(other.parameters),
  }
  was = {**vars(settings), **dict(settings.parameters)}
  changed = [f'{k}={v}' for k, v in fields.items() if was.get(k) != v]
  return ', '.join(changed) or 'nothing changes'


def _check_fits(settings, other):
  """Raises a SettingError where a method cannot meet the run's arrivals."""
  was, now = settings.parts(), other.parts()
  (held, per_ticket), (makes, takes) = map(_shape, (settings, other))
  if held != makes:
    one, many = 'one gradient per round', 'rounds of several gradients'
    raise settings_lib.SettingError(
      'policy',
      now.policy,
      f'makes {many if makes else one}, but the trace, of {was.policy}, has '
      f'{many if held else one}{_RULE_ALONE}',
    )
  if per_ticket != takes:
    raise settings_lib.SettingError(
      'program',
      now.program,
      f'takes {takes} batches per ticket, but the trace, of {was.program}, has '
      f'{per_ticket}{_RULE_ALONE}',
    )


def _shape(settings) -> tuple[bool, int]:
  """Whether rounds hold several gradients; batches per ticket."""
  method = setup.method_of(settings)
  program = method.program(tasks.task_of(settings).loss_fn)
  return method.policy.accumulates, program.num_batches
