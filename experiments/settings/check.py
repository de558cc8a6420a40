"""What is checked of settings before anything is computed.

The range of one setting stands in its row (`table`); here are the rules that
tie several together, and those that look at the machine.
"""

import importlib.util
import inspect
import math
import os

import jax
import numpy as np

from experiments.catalogue import assembly
from experiments.catalogue import parts as parts_lib
from experiments.settings import table
from ga_jax import data, models


def check(settings: table.Settings) -> table.Settings:
  """Checks everything that can be checked without reading the data.

  Returns:
    The settings.

  Raises:
    SettingError: naming the flag, what it got and what it takes.
  """
  _check_rows(settings)
  _check_paths(settings)
  _check_model(settings)
  _check_schedule(settings)
  _check_parts(settings)
  _check_faults(settings)
  _check_runtime(settings)
  _check_devices(settings)
  return settings


def check_record(settings: table.Settings) -> table.Settings:
  """Checks settings that were recorded, perhaps on another machine.

  Returns:
    The settings.

  Raises:
    SettingError: they are those of no run.
  """
  _check_rows(settings)
  _check_model(settings)
  _check_schedule(settings)
  _check_parts(settings)
  _check_faults(settings)
  _check_devices(settings)
  return settings


def _check_rows(s: table.Settings):
  for name, row in s.rows().items():
    value = getattr(s, name)
    if row.names and value not in (*row.names, row.default):
      raise table.SettingError(
        name, value, f'must be one of {", ".join(row.names)}'
      )
    if row.accepts and not row.accepts.holds(value):
      raise table.SettingError(name, value, f'must be {row.accepts.said}')


def _check_paths(s: table.Settings):
  for flag, brings in (
    ('data_path', data.origin(s.dataset, s.data_path)),
    ('clock_times', "a run's trace.npz is one"),
  ):
    path = getattr(s, flag)
    if path and not os.path.exists(path):
      raise table.SettingError(flag, path, f'no such file or folder; {brings}')
  if (s.clock == 'recorded') != bool(s.clock_times):
    why = 'a trace.npz for --clock=recorded, and for no other clock'
    raise table.SettingError('clock_times', s.clock_times, why)


def _check_model(s: table.Settings):
  for option, value in s.model_options().items():
    takers = [
      name
      for name, factory in models.MODELS.items()
      if option in inspect.signature(factory).parameters
    ]
    if s.model not in takers:
      why = f'taken by {", ".join(takers)}, not by --model={s.model}'
      raise table.SettingError(option, value, why)


def _check_schedule(s: table.Settings):
  if s.schedule == 'step' and not s.boundaries:
    raise table.SettingError('schedule', 'step', 'needs --boundaries=EPOCH,...')
  if s.schedule != 'step' and s.boundaries:
    why = f'read by --schedule=step only, not by {s.schedule}'
    raise table.SettingError('boundaries', s.boundaries, why)


def _check_parts(s: table.Settings):
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
    raise table.SettingError(flag, got, str(error)) from error
  if s.simulate_devices and made.policy.needs_loss:
    why = f'--policy={s.parts().policy} decides by losses, not known ahead'
    raise table.SettingError('simulate_devices', s.simulate_devices, why)
  if s.pipeline_depth:
    _check_depth(s, made)


def _check_depth(s: table.Settings, made: assembly.Assembled):
  """Reading ahead wants workers that neither wait nor keep a state."""
  method = s.parts()
  if not made.policy.pipelines:
    why = f'--policy={method.policy} makes workers wait, or restarts them'
    raise table.SettingError(
      'pipeline_depth', s.pipeline_depth, f'must be 0: {why}'
    )
  if jax.tree.leaves(made.program(len).init(np.zeros(2, np.float32))):
    parts = f'--program={method.program}, --compression={method.compression}'
    why = f'workers keep a state from batch to batch with {parts}'
    raise table.SettingError(
      'pipeline_depth', s.pipeline_depth, f'must be 0: {why}'
    )


def _check_faults(s: table.Settings):
  times, end = 'times of at least 0', math.inf
  for fault in s.stalls:
    fine = 0 <= fault[1] < end and 0 < fault[2] < end
    _check_fault(s, 'stalls', fault, fine, times)
  for fault in s.deaths:
    _check_fault(s, 'deaths', fault, 0 <= fault[1] < end, times)
  for fault in s.straggler:
    fine = 1 <= fault[1] < end
    _check_fault(s, 'straggler', fault, fine, 'a factor of at least 1')
  if len({worker for worker, _ in s.deaths}) >= s.workers:
    raise table.SettingError(
      'deaths', len(s.deaths), 'must leave a worker alive'
    )


def _check_fault(
  s: table.Settings, flag: str, fault, fine: bool, accepted: str
):
  """Raises a SettingError unless a fault is fine, and of a worker there is."""
  if not (fine and 0 <= fault[0] < s.workers):
    why = f'must be a worker below {s.workers} and {accepted}'
    raise table.SettingError(flag, [fault], why)


def _check_runtime(s: table.Settings):
  for name, row in s.rows().items():
    value = getattr(s, name)
    if s.runtime not in row.read_by and value != row.default:
      readers = ' and '.join(f'--runtime={runtime}' for runtime in row.read_by)
      raise table.SettingError(
        name, value, f'read by {readers} only, not by {s.runtime}'
      )
  if s.runtime == 'ray' and importlib.util.find_spec('ray') is None:
    raise table.SettingError(
      'runtime', 'ray', "needs Ray: pip install 'ga_jax[ray]'"
    )
  if s.layer_metrics and s.server_shards > 1:
    why = (
      f'no shard has whole layers: not with --server_shards={s.server_shards}'
    )
    raise table.SettingError('layer_metrics', True, why)


def _check_devices(s: table.Settings):
  each = s.devices_per_worker
  if s.devices % each:
    why = f'must be a multiple of --devices_per_worker={each}'
    raise table.SettingError('devices', s.devices, why)
  if s.workers_per_device > 1 and each > 1:
    why = f'must be 1 with --devices_per_worker={each}'
    raise table.SettingError('workers_per_device', s.workers_per_device, why)
  if s.batch_size % each:
    why = f'must be a divisor of --batch_size={s.batch_size}'
    raise table.SettingError('devices_per_worker', each, why)
