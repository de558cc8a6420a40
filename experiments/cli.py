"""Flags that the scripts share, and how they fail: one line, exit code 2."""

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from experiments import methods
from experiments import settings as settings_lib
from ga_jax import clocks, data, models, policies, programs, rules

_DEFAULTS = settings_lib.Settings()


def _names(table) -> str:
  return '|'.join(table)


def define_run_flags():
  """Defines the flags of `Settings`, but for method, workers and sweeps."""
  d = _DEFAULTS
  flags.DEFINE_string('dataset', d.dataset, _names(data.DATASETS))
  flags.DEFINE_string(
    'data_path', d.data_path, 'folder of --dataset=idx, file of --dataset=npz'
  )
  flags.DEFINE_integer(
    'holdout', d.holdout, 'training examples held out for validation'
  )
  flags.DEFINE_bool('augment', d.augment, 'random crop and horizontal flip')
  flags.DEFINE_string('model', d.model, _names(models.MODELS))
  flags.DEFINE_string(
    'rule', d.rule, f"instead of the method's: {_names(rules.RULES)}"
  )
  flags.DEFINE_string(
    'policy', d.policy, f"instead of the method's: {_names(policies.POLICIES)}"
  )
  flags.DEFINE_string(
    'program',
    d.program,
    f"instead of the method's: {_names(programs.PROGRAMS)}",
  )
  flags.DEFINE_string(
    'compression',
    d.compression,
    f"instead of the method's: {_names(methods.COMPRESSIONS)}",
  )
  flags.DEFINE_float('weight_decay', None, 'L2 coefficient (default 0)')
  flags.DEFINE_bool('nesterov', None, 'Nesterov momentum (default no)')
  flags.DEFINE_float('dc_lambda', None, 'λ of dc_asgd (default 0.04)')
  flags.DEFINE_string('granularity', None, 'of ga: parameter|global')
  flags.DEFINE_float('b1', None, 'first decay of ga_adam (default 0.9)')
  flags.DEFINE_float('b2', None, 'second decay of ga_adam (default 0.999)')
  flags.DEFINE_string('clock', d.clock, _names(clocks.CLOCKS))
  flags.DEFINE_float(
    'latency', d.latency, 'per message, in mean batch times (simulated)'
  )
  flags.DEFINE_float(
    'bandwidth', d.bandwidth, 'bytes per mean batch time (simulated)'
  )
  flags.DEFINE_float('epochs', d.epochs, 'of all workers together')
  flags.DEFINE_integer('batch_size', d.batch_size, 'examples per gradient')
  flags.DEFINE_string('schedule', d.schedule, _names(settings_lib.SCHEDULES))
  flags.DEFINE_list('boundaries', [], 'epochs where --schedule=step decays')
  flags.DEFINE_float(
    'decay_factor', d.decay_factor, 'what --schedule=step multiplies by'
  )
  flags.DEFINE_float(
    'warmup_epochs', d.warmup_epochs, 'linear warm-up from rate/workers'
  )
  flags.DEFINE_string(
    'executor', d.executor, "fast (compiled blocks)|exact (a live run's bits)"
  )


def run_settings(method: str, **own) -> settings_lib.Settings:
  """Checked settings from the flags.

  Args:
    method: the named method.
    **own: fields that the script's own flags set; `rule_params` among them are
      added to those given as flags.

  Returns:
    `Settings`.
  """
  values = flags.FLAGS
  fields = {
    name: getattr(values, name)
    for name in (
      'dataset',
      'data_path',
      'holdout',
      'augment',
      'model',
      'rule',
      'policy',
      'program',
      'compression',
      'clock',
      'latency',
      'bandwidth',
      'epochs',
      'batch_size',
      'schedule',
      'decay_factor',
      'warmup_epochs',
      'executor',
    )
  }
  fields['boundaries'] = number_list('boundaries', values.boundaries, float)
  given = {
    name: getattr(values, name)
    for name in settings_lib.RULE_FLAGS
    if name in values and getattr(values, name) is not None
  }
  given.update(own.pop('rule_params', {}))
  return settings_lib.check(
    settings_lib.Settings(
      method=method, rule_params=tuple(sorted(given.items())), **fields, **own
    )
  )


def number_list(flag: str, values, kind: type) -> tuple:
  """The numbers of a list flag.

  Raises:
    SettingError: one of them is none.
  """
  try:
    return tuple(kind(value) for value in values)
  except ValueError as error:
    name = 'integers' if kind is int else 'numbers'
    raise settings_lib.SettingError(
      flag, ','.join(values), f'must be {name} separated by commas'
    ) from error


def writable_folder(flag: str, path: str) -> str:
  """Makes a folder and checks that it can be written to."""
  try:
    os.makedirs(path, exist_ok=True)
    probe = os.path.join(path, '.probe')
    with open(probe, 'w'):
      pass
    os.unlink(probe)
  except OSError as error:
    raise settings_lib.SettingError(
      flag, path, f'must be a folder that can be written to ({error.strerror})'
    ) from error
  return path


def launch(main: Callable[[], None], prepare: Callable[[], object]):
  """Parses the flags and runs a script.

  Args:
    main: `main(prepared)`; Ctrl-C in it ends with exit code 130.
    prepare: reads and checks every flag before anything is computed.
  """

  def parse(argv):
    try:
      rest = flags.FLAGS(argv)
    except (flags.Error, ValueError) as error:  # absl lets some through
      _fail(str(error).strip())
    if len(rest) > 1:
      _fail(f'unexpected argument {rest[1]!r}: all settings are --flags')
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    return rest

  def checked(argv):
    del argv
    try:
      prepared = prepare()
    except settings_lib.SettingError as error:
      _fail(str(error))
    try:
      main(prepared)
    except KeyboardInterrupt:
      print('interrupted: what was finished is kept', file=sys.stderr)
      sys.exit(130)

  app.define_help_flags()
  app.run(checked, flags_parser=parse)


def _fail(message: str):
  first, *_ = message.splitlines()
  print(f'error: {first}', file=sys.stderr)
  sys.exit(2)
