"""The settings of one run, checked before anything is computed."""

import dataclasses
import math
import os

from experiments import methods
from ga_jax import clocks, data, models, policies, programs, rules

SCHEDULES = ('constant', 'step', 'cosine')
EXECUTORS = ('fast', 'exact')
# Parameters of rules that have a flag of their own beside --learning_rate.
RULE_FLAGS = (
  'momentum',
  'nesterov',
  'weight_decay',
  'dc_lambda',
  'granularity',
  'b1',
  'b2',
)


class SettingError(ValueError):
  """A setting that cannot be used: which, what it is, and what is accepted."""

  def __init__(self, flag: str, got, accepted: str):
    super().__init__(f'--{flag}={got}: {accepted}')


@dataclasses.dataclass(frozen=True)
class Settings:
  """One run. `rule_params` holds what was given explicitly for the rule."""

  dataset: str = 'digits'
  data_path: str = ''
  holdout: int = 0
  augment: bool = False
  model: str = 'mlp_bn'
  method: str = 'ga'
  rule: str = ''
  policy: str = ''
  program: str = ''
  compression: str = ''
  rule_params: tuple[tuple[str, object], ...] = ()
  workers: int = 1
  clock: str = 'homogeneous'
  latency: float = 0.0
  bandwidth: float = math.inf
  epochs: float = 20.0
  batch_size: int = 32
  learning_rate: float = 0.1
  schedule: str = 'constant'
  boundaries: tuple[float, ...] = ()
  decay_factor: float = 0.1
  warmup_epochs: float = 0.0
  seed: int = 0
  executor: str = 'fast'

  def data_name(self) -> str:
    """The data set, or the name of the file or folder it is read from."""
    name = os.path.basename(os.path.normpath(self.data_path or self.dataset))
    return os.path.splitext(name)[0]

  def parts(self) -> methods.Method:
    """The method, with the parts that were given explicitly."""
    named = methods.METHODS[self.method]
    own = {
      part: getattr(self, part)
      for part in ('rule', 'policy', 'program', 'compression')
      if getattr(self, part)
    }
    if own.get('rule', named.rule) != named.rule:
      own['fixed'] = ()  # what the name implied was for another rule
    return named._replace(**own)

  def rule_arguments(self) -> dict[str, object]:
    """Everything the rule is built with beside its learning rate."""
    arguments = {**dict(self.parts().fixed), **dict(self.rule_params)}
    if 'num_workers' in methods.rule_parameters(self.parts().rule):
      arguments['num_workers'] = self.workers
    return arguments


def check(settings: Settings) -> Settings:
  """Checks everything that can be checked without reading the data.

  Returns:
    The settings.

  Raises:
    SettingError: naming the flag, what it got and what it takes.
  """
  _check_names(settings)
  _check_numbers(settings)
  _check_parts(settings)
  return settings


def _check_names(s: Settings):
  for flag, table in (
    ('dataset', data.DATASETS),
    ('model', models.MODELS),
    ('method', methods.METHODS),
    ('clock', clocks.CLOCKS),
    ('schedule', SCHEDULES),
    ('executor', EXECUTORS),
  ):
    _one_of(flag, getattr(s, flag), table)
  for flag, table in (
    ('rule', rules.RULES),
    ('policy', policies.POLICIES),
    ('program', programs.PROGRAMS),
    ('compression', methods.COMPRESSIONS),
  ):
    if getattr(s, flag):
      _one_of(flag, getattr(s, flag), table)
  if s.data_path and not os.path.exists(s.data_path):
    raise SettingError('data_path', s.data_path, 'no such file or folder')


def _check_numbers(s: Settings):
  for flag, low in (('workers', 1), ('batch_size', 1), ('holdout', 0)):
    _require(flag, getattr(s, flag), getattr(s, flag) >= low, f'at least {low}')
  _require('seed', s.seed, 0 <= s.seed < 2**31, 'from 0 to 2147483647')
  for flag in ('learning_rate', 'epochs', 'decay_factor'):
    accepted = 'from 1e-30 to 1e30'
    _finite(flag, getattr(s, flag), accepted, lambda v: 1e-30 <= v <= 1e30)
  _finite('epochs', s.epochs, 'at most 1e6', lambda v: v <= 1e6)
  _finite('warmup_epochs', s.warmup_epochs, 'at most 1e6', lambda v: v <= 1e6)
  for flag in ('warmup_epochs', 'latency'):
    _finite(flag, getattr(s, flag), 'at least 0', lambda v: v >= 0)
  _require('bandwidth', s.bandwidth, s.bandwidth > 0, 'positive')
  increasing = all(
    a < b for a, b in zip((0.0, *s.boundaries), s.boundaries, strict=False)
  )
  _require(
    'boundaries',
    ','.join(str(b) for b in s.boundaries),
    increasing and all(b <= 1e6 for b in s.boundaries),
    'increasing epochs above 0 and up to 1e6',
  )
  if s.schedule == 'step' and not s.boundaries:
    raise SettingError('schedule', 'step', 'needs --boundaries=EPOCH,...')
  if s.schedule != 'step' and s.boundaries:
    raise SettingError(
      'boundaries',
      ','.join(str(b) for b in s.boundaries),
      f'read by --schedule=step only, not by {s.schedule}',
    )


def _check_parts(s: Settings):
  parts = s.parts()
  known = methods.rule_parameters(parts.rule)
  for name, value in s.rule_params:
    if name not in known:
      raise SettingError(
        name,
        value,
        f'rule {parts.rule} (method {s.method}) does not read it; it reads '
        + ', '.join(sorted(known & set(RULE_FLAGS))),
      )
  try:
    methods.check(parts)
  except ValueError as error:
    raise SettingError('policy', parts.policy, str(error)) from error
  try:
    rules.RULES[parts.rule](s.learning_rate, **s.rule_arguments())
  except ValueError as error:
    name = str(error).split(' ', 1)[0]
    arguments = {'learning_rate': s.learning_rate, **s.rule_arguments()}
    raise SettingError(name, arguments.get(name, ''), str(error)) from error


def _one_of(flag: str, value: str, table):
  """Raises a SettingError where a name is not in a table."""
  if value not in table:
    raise SettingError(flag, value, f'must be one of {", ".join(table)}')


def _require(flag, value, holds: bool, accepted: str):
  if not holds:
    raise SettingError(flag, value, f'must be {accepted}')


def _finite(flag, value, accepted, holds):
  _require(
    flag, value, math.isfinite(value) and holds(value), f'finite and {accepted}'
  )
