"""Flags that the scripts share."""

import dataclasses
import math
import os

from absl import flags

from experiments.catalogue import parts
from experiments.records import folders
from experiments.running import compilation
from experiments.script import launch as launch_lib
from experiments.script import name_flags
from experiments.settings import table as settings_lib
from ga_jax import data, models

_DEFAULTS = settings_lib.Settings()
_DEFINE = {
  float: flags.DEFINE_float,
  int: flags.DEFINE_integer,
  bool: flags.DEFINE_bool,
  str: flags.DEFINE_string,
}


def _names(table) -> str:
  return '|'.join(table)


def define_run_flags(without: tuple[str, ...] = ()):
  """Defines the flags of `Settings`, but for method, workers and sweeps.

  Args:
    without: names that the script sweeps itself.
  """
  d = _DEFAULTS
  compilation.define_flag()
  launch_lib.define_quiet_flag()
  flags.DEFINE_string('dataset', d.dataset, _names(data.DATASETS))
  flags.DEFINE_string(
    'data_path',
    d.data_path,
    'where the data are: folder of --dataset=idx, file of --dataset=npz, '
    'data_dir of those that experiments.prepare prepares (default '
    '~/tensorflow_datasets)',
  )
  flags.DEFINE_integer(
    'holdout', d.holdout, 'training examples held out for validation'
  )
  flags.DEFINE_bool('augment', d.augment, 'random crop and horizontal flip')
  flags.DEFINE_string('model', d.model, _names(models.MODELS))
  flags.DEFINE_string(
    'compute_dtype',
    d.compute_dtype,
    f'{_names(models.COMPUTE_DTYPES)}: of activations; parameters are float32',
  )
  flags.DEFINE_bool(
    'remat', d.remat, "compute a block's activations again for its gradient"
  )
  flags.DEFINE_integer(
    'segment_length', d.segment_length, "tokens per row (0: the model's own)"
  )
  flags.DEFINE_integer(
    'memory_length',
    d.memory_length,
    'tokens before these that a model remembers (-1: as many; 0: none)',
  )
  for part, table in parts.TABLES.items():
    name_flags.one(
      part, getattr(d, part), f"instead of the method's: {_names(table)}"
    )
  for name, (kind, about) in parts.PARAMETERS.items():
    if name != 'momentum':  # the scripts' own: one of them sweeps it
      _DEFINE[kind](name, None, about)
  if 'clock' not in without:
    flags.DEFINE_string('clock', d.clock, _names(settings_lib.CLOCKS))
  flags.DEFINE_string(
    'clock_times', d.clock_times, 'trace.npz whose times --clock=recorded plays'
  )
  flags.DEFINE_list(
    'stalls', [], 'WORKER:TIME:DURATION,... in mean batch times (simulated)'
  )
  flags.DEFINE_list('deaths', [], 'WORKER:TIME,... (simulated)')
  flags.DEFINE_float(
    'latency', d.latency, 'per message, in mean batch times (simulated)'
  )
  flags.DEFINE_float(
    'bandwidth', d.bandwidth, 'bytes per mean batch time (simulated)'
  )
  flags.DEFINE_float('epochs', d.epochs, 'of all workers together')
  flags.DEFINE_float(
    'evaluate_every', d.evaluate_every, 'epochs between two evaluations'
  )
  flags.DEFINE_integer('batch_size', d.batch_size, 'examples per gradient')
  flags.DEFINE_bool(
    'scale_lr',
    d.scale_lr,
    'multiply the learning rate by the gradients of a round (linear scaling)',
  )
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


def define_runtime_flags():
  """Defines the flags of the runtime; simulated without."""
  d = _DEFAULTS
  flags.DEFINE_string('runtime', d.runtime, _names(settings_lib.RUNTIMES))
  flags.DEFINE_integer(
    'devices',
    d.devices,
    'local devices that the threads use (0: all of an accelerator, on the CPU '
    'one per worker up to its cores)',
  )
  flags.DEFINE_integer(
    'devices_per_worker',
    d.devices_per_worker,
    'devices that share the batches of a worker (threads, ray)',
  )
  flags.DEFINE_float(
    'lease_seconds',
    d.lease_seconds,
    'how long a worker may take for a ticket (threads, ray)',
  )
  flags.DEFINE_integer(
    'pipeline_depth',
    d.pipeline_depth,
    'snapshots that a worker reads ahead (threads, ray)',
  )
  flags.DEFINE_list(
    'straggler', [], 'WORKER:FACTOR,...: slows workers down (threads, ray)'
  )
  flags.DEFINE_string(
    'address',
    d.address,
    'auto (the cluster of this machine)|local (a new one here)|HOST:PORT (ray)',
  )
  flags.DEFINE_string(
    'accelerator',
    d.accelerator,
    f'of the workers: {_names(settings_lib.ACCELERATORS)} (ray)',
  )
  flags.DEFINE_integer(
    'server_shards', d.server_shards, 'actors that share the parameters (ray)'
  )


def run_settings(method: str, **own) -> settings_lib.Settings:
  """Checked settings from the flags.

  Args:
    method: the named method.
    **own: fields that the script's own flags set; `parameters` among them are
      added to those given as flags.

  Returns:
    `Settings`.
  """
  values = flags.FLAGS
  fields = {
    field.name: getattr(values, field.name)
    for field in dataclasses.fields(settings_lib.Settings)
    if field.name in values and field.name not in own
  }
  fields['boundaries'] = number_list('boundaries', values.boundaries, float)
  fields['stalls'] = fault_list('stalls', values.stalls, 3)
  fields['deaths'] = fault_list('deaths', values.deaths, 2)
  if 'straggler' in values:
    fields['straggler'] = fault_list('straggler', values.straggler, 2)
  given = {
    name: getattr(values, name)
    for name in parts.PARAMETERS
    if name in values and getattr(values, name) is not None
  }
  given.update(own.pop('parameters', {}))
  return settings_lib.check(
    settings_lib.Settings(
      **{
        **fields,
        'method': method,
        'parameters': tuple(sorted(given.items())),
        **own,
      }
    )
  )


def check_names(flag: str, names: list[str], table):
  """Raises a SettingError unless names are of a table, none of them twice."""
  if not names:
    raise settings_lib.SettingError(flag, '', 'must name at least one')
  text = ','.join(names)
  if len(set(names)) < len(names):
    raise settings_lib.SettingError(flag, text, 'names something twice')
  unknown = [name for name in names if name not in table]
  if unknown:
    raise settings_lib.SettingError(
      flag, text, f'{unknown[0]} is none of {", ".join(table)}'
    )


def check_rates(rates: tuple[float, ...]):
  """Raises a SettingError unless a grid of rates can be swept."""
  rising = all(a < b for a, b in zip((0.0, *rates), rates, strict=False))
  if not (rising and all(1e-30 <= rate <= 1e30 for rate in rates)):
    text = ','.join(str(v) for v in rates)
    raise settings_lib.SettingError(
      'learning_rates', text, 'must be positive, finite and increasing'
    )
  if rates and not flags.FLAGS.holdout:
    raise settings_lib.SettingError(
      'holdout', 0, '--learning_rates needs a validation split: at least 1'
    )


def check_positive(*holders: flags.FlagHolder):
  """Raises a SettingError unless the flags are positive and finite."""
  for holder in holders:
    if not 0 < holder.value < math.inf:
      raise settings_lib.SettingError(
        holder.name, holder.value, 'must be positive and finite'
      )


def counts(holder: flags.FlagHolder) -> list[int]:
  """The numbers of a list flag, each at least 1."""
  found = number_list(holder.name, holder.value, int)
  if min(found, default=1) < 1:
    raise settings_lib.SettingError(
      holder.name, ','.join(holder.value), 'must be at least 1, every one'
    )
  return list(found)


def fault_list(flag: str, values, length: int) -> tuple:
  """Faults given as WORKER:TIME or WORKER:TIME:DURATION.

  Raises:
    SettingError: one of them is not of that form.
  """
  form = ':'.join(('WORKER', 'TIME', 'DURATION')[:length])
  try:
    faults = tuple(
      (int(worker), *map(float, times))
      for worker, *times in (value.split(':') for value in values)
    )
  except ValueError:
    faults = ((),)
  if any(len(fault) != length for fault in faults):
    raise settings_lib.SettingError(
      flag, ','.join(values), f'must be {form},... with numbers'
    )
  return faults


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
    raise folders.unwritable(flag, path, error) from error
  return path
