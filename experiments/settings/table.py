"""The settings of one run, checked before anything is computed."""

import dataclasses
import importlib.util
import inspect
import math
import os
import re

import jax
import numpy as np

from experiments.catalogue import assembly, methods
from experiments.catalogue import parts as parts_lib
from ga_jax import clocks, data, models

SCHEDULES = ('constant', 'step', 'cosine')
EXECUTORS = ('fast', 'exact')
RUNTIMES = ('simulate', 'threads', 'ray')
ACCELERATORS = ('auto', 'cpu', 'gpu', 'tpu')
CLOCKS = (*clocks.CLOCKS, 'recorded')
MODEL_OPTIONS = ('compute_dtype', 'remat', 'segment_length', 'memory_length')


class SettingError(ValueError):
  """A setting that cannot be used: which, what it is, and what is accepted."""

  def __init__(self, flag: str, got, accepted: str):
    super().__init__(f'--{flag}={got}: {accepted}')


@dataclasses.dataclass(frozen=True)
class Settings:
  """One run. `parameters` holds what was given explicitly for its parts."""

  dataset: str = 'digits'
  data_path: str = ''
  holdout: int = 0
  augment: bool = False
  model: str = 'mlp_bn'
  compute_dtype: str = 'float32'
  remat: bool = False
  segment_length: int = 0
  memory_length: int = -1
  method: str = 'ga'
  rule: str = ''
  policy: str = ''
  program: str = ''
  compression: str = ''
  parameters: tuple[tuple[str, object], ...] = ()
  workers: int = 1
  clock: str = 'homogeneous'
  clock_times: str = ''
  stalls: tuple[tuple[int, float, float], ...] = ()
  deaths: tuple[tuple[int, float], ...] = ()
  latency: float = 0.0
  bandwidth: float = math.inf
  epochs: float = 20.0
  evaluate_every: float = 1.0
  batch_size: int = 32
  learning_rate: float = 0.1
  scale_lr: bool = False
  schedule: str = 'constant'
  boundaries: tuple[float, ...] = ()
  decay_factor: float = 0.1
  warmup_epochs: float = 0.0
  seed: int = 0
  executor: str = 'fast'
  simulate_devices: str = ''
  runtime: str = 'simulate'
  devices: int = 0
  devices_per_worker: int = 1
  lease_seconds: float = 60.0
  pipeline_depth: int = 0
  straggler: tuple[tuple[int, float], ...] = ()
  address: str = 'local'
  accelerator: str = 'auto'
  server_shards: int = 1
  layer_metrics: bool = False

  def data_name(self) -> str:
    """The data set, or the name of the file or folder it is read from."""
    name = os.path.basename(os.path.normpath(self.data_path or self.dataset))
    return os.path.splitext(name)[0]

  def parts(self) -> methods.Method:
    """The method, with the parts that were given explicitly."""
    named = methods.METHODS[self.method]
    own = {
      part: getattr(self, part)
      for part in methods.PARTS
      if getattr(self, part) not in ('', getattr(named, part))
    }
    replaced = {
      parameter
      for part in own
      for parameter in parts_lib.reads(part, getattr(named, part))
    }
    # What the name implied for a part that was replaced goes with it.
    fixed = tuple(pair for pair in named.fixed if pair[0] not in replaced)
    return named._replace(fixed=fixed, **own)

  def model_options(self) -> dict[str, object]:
    """What the model is made with beside its classes: what is no default."""
    return {
      name: getattr(self, name)
      for name in MODEL_OPTIONS
      if getattr(self, name) != type(self).__dataclass_fields__[name].default
    }

  def arguments(self) -> dict[str, dict[str, object]]:
    """What every part is built with beside its learning rate."""
    return parts_lib.arguments(
      self.parts(), dict(self.parameters), self.workers
    )


def check(settings: Settings) -> Settings:
  """Checks everything that can be checked without reading the data.

  Returns:
    The settings.

  Raises:
    SettingError: naming the flag, what it got and what it takes.
  """
  _check_names(settings)
  _check_model(settings)
  _check_numbers(settings)
  _check_parts(settings)
  _check_faults(settings)
  _check_runtime(settings)
  return settings


def _check_names(s: Settings):
  for flag, table in (
    ('dataset', data.DATASETS),
    ('model', models.MODELS),
    ('compute_dtype', models.COMPUTE_DTYPES),
    ('method', methods.METHODS),
    ('clock', CLOCKS),
    ('schedule', SCHEDULES),
    ('executor', EXECUTORS),
    ('runtime', RUNTIMES),
    ('accelerator', ACCELERATORS),
  ):
    _one_of(flag, getattr(s, flag), table)
  for flag, table in parts_lib.TABLES.items():
    if getattr(s, flag):
      _one_of(flag, getattr(s, flag), table)
  for flag, brings in (
    ('data_path', data.origin(s.dataset, s.data_path)),
    ('clock_times', "a run's trace.npz is one"),
  ):
    path = getattr(s, flag)
    if path and not os.path.exists(path):
      raise SettingError(flag, path, f'no such file or folder; {brings}')
  if (s.clock == 'recorded') != bool(s.clock_times):
    raise SettingError(
      'clock_times',
      s.clock_times,
      'a trace.npz for --clock=recorded, and for no other clock',
    )


def _check_model(s: Settings):
  for option, value in s.model_options().items():
    takers = [
      name
      for name, factory in models.MODELS.items()
      if option in inspect.signature(factory).parameters
    ]
    if s.model not in takers:
      raise SettingError(
        option, value, f'taken by {", ".join(takers)}, not by --model={s.model}'
      )


def _check_numbers(s: Settings):
  for flag, low in (('workers', 1), ('batch_size', 1), ('holdout', 0)):
    _require(flag, getattr(s, flag), getattr(s, flag) >= low, f'at least {low}')
  _require('seed', s.seed, 0 <= s.seed < 2**31, 'from 0 to 2147483647')
  for flag in ('learning_rate', 'epochs', 'evaluate_every', 'decay_factor'):
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
  given = dict(s.parameters)
  try:
    made = assembly.assembled(
      s.parts(), given, s.workers, s.learning_rate, scale_lr=s.scale_lr
    )
  except parts_lib.ParameterError as error:
    named = error.name in parts_lib.PARAMETERS or hasattr(s, error.name)
    flag = error.name if named else 'method'
    got = given.get(flag, getattr(s, flag, ''))
    got = got or getattr(s.parts(), flag, got)
    raise SettingError(flag, got, str(error)) from error
  _check_depth(s, made)
  several = s.simulate_devices
  fine = bool(re.fullmatch('(all|[1-9][0-9]*)?', several))
  _require('simulate_devices', several, fine, 'all, or a number of at least 1')
  if several and made.policy.needs_loss:
    why = f'--policy={s.parts().policy} decides by losses, not known ahead'
    raise SettingError('simulate_devices', several, why)


def _check_depth(s: Settings, made: assembly.Assembled):
  """Reading ahead wants workers that neither wait nor keep a state."""
  if s.pipeline_depth <= 0:
    return
  why, method = '', s.parts()
  if not made.policy.pipelines:
    why = f'--policy={method.policy} makes workers wait, or restarts them'
  elif jax.tree.leaves(made.program(len).init(np.zeros(2, np.float32))):
    parts_ = f'--program={method.program}, --compression={method.compression}'
    why = f'workers keep a state from batch to batch with {parts_}'
  _require('pipeline_depth', s.pipeline_depth, not why, f'0: {why}')


def _check_faults(s: Settings):
  for flag, faults in (('stalls', s.stalls), ('deaths', s.deaths)):
    for fault in faults:
      text = ':'.join(f'{value:g}' for value in fault)
      worker, *times = fault
      fine = 0 <= worker < s.workers and all(
        math.isfinite(t) and t >= 0 for t in times
      )
      fine = fine and (flag == 'deaths' or times[1] > 0)
      accepted = f'a worker below {s.workers} and times of at least 0'
      _require(flag, text, fine, accepted)
  if len({worker for worker, _ in s.deaths}) >= s.workers:
    raise SettingError('deaths', len(s.deaths), 'must leave a worker alive')


# Which runtimes read what the others do not.
_READ_BY = {
  **dict.fromkeys(
    (
      'clock',
      'clock_times',
      'latency',
      'bandwidth',
      'stalls',
      'deaths',
      'executor',
      'simulate_devices',
    ),
    ('simulate',),
  ),
  'devices': ('threads',),
  **dict.fromkeys(
    ('devices_per_worker', 'lease_seconds', 'pipeline_depth', 'straggler'),
    ('threads', 'ray'),
  ),
  **dict.fromkeys(('address', 'accelerator', 'server_shards'), ('ray',)),
}


def _check_runtime(s: Settings):
  for name, runtimes in _READ_BY.items():
    default = Settings.__dataclass_fields__[name].default
    if s.runtime not in runtimes and getattr(s, name) != default:
      readers = ' and '.join(f'--runtime={runtime}' for runtime in runtimes)
      raise SettingError(
        name, getattr(s, name), f'read by {readers} only, not by {s.runtime}'
      )
  for flag in ('devices', 'pipeline_depth'):
    _require(flag, getattr(s, flag), getattr(s, flag) >= 0, 'at least 0')
  for flag in ('devices_per_worker', 'server_shards'):
    _require(flag, getattr(s, flag), getattr(s, flag) >= 1, 'at least 1')
  each = f'a multiple of --devices_per_worker={s.devices_per_worker}'
  _require('devices', s.devices, s.devices % s.devices_per_worker == 0, each)
  if s.layer_metrics and s.server_shards > 1:
    why = (
      f'no shard has whole layers: not with --server_shards={s.server_shards}'
    )
    raise SettingError('layer_metrics', True, why)
  divides = s.batch_size % s.devices_per_worker == 0
  accepted = f'a divisor of --batch_size={s.batch_size}'
  _require('devices_per_worker', s.devices_per_worker, divides, accepted)
  if s.runtime == 'ray' and importlib.util.find_spec('ray') is None:
    raise SettingError('runtime', 'ray', "needs Ray: pip install 'ga_jax[ray]'")
  _finite('lease_seconds', s.lease_seconds, 'positive', lambda v: v > 0)
  for worker, factor in s.straggler:
    fine = 0 <= worker < s.workers and 1 <= factor < math.inf
    accepted = f'a worker below {s.workers} and a factor of at least 1'
    _require('straggler', f'{worker:g}:{factor:g}', fine, accepted)


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
