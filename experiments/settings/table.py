"""The table of settings: one row each, with all that is known of it.

Flags, help screens (`help_screens`), what is checked (`check`) and what a run
records are made from the rows: a new setting is a new row, and the code that
uses it. What a row may say stands in `setting.Row`.
"""

import dataclasses
import functools
import itertools
import math
import os
import re
from typing import Any

from experiments.catalogue import methods
from experiments.catalogue import parts as parts_lib
from experiments.settings import setting
from ga_jax import clocks, data, models

SCHEDULES = ('constant', 'step', 'cosine')
EXECUTORS = ('fast', 'exact')
ACCELERATORS = ('auto', 'cpu', 'gpu', 'tpu')
CLOCKS = (*clocks.CLOCKS, 'recorded')

# A field with its row, by the group of its flag.
_data, _method, _cluster, _training, _output = (
  functools.partial(setting.row, group)
  for group in (
    setting.DATA,
    setting.METHOD,
    setting.CLUSTER,
    setting.TRAINING,
    setting.OUTPUT,
  )
)
_SIMULATED = ('simulate',)
_LIVE = ('threads', 'ray')
_INSTEAD = "instead of the method's: {names}"
_AT_LEAST_0, _AT_LEAST_1 = setting.at_least(0), setting.at_least(1)
_POSITIVE = setting.Range(
  'finite and from 1e-30 to 1e30', lambda v: 1e-30 <= v <= 1e30
)


class SettingError(ValueError):
  """A setting that cannot be used: which, what it is, and what is accepted."""

  def __init__(self, flag: str, got: Any, accepted: str):
    if isinstance(got, (list, tuple)):
      got = setting.text_of(got)
    super().__init__(f'--{flag}={setting.shown(str(got))}: {accepted}')


@dataclasses.dataclass(frozen=True)
class Settings:
  """One run. `parameters` holds what was given explicitly for its parts."""

  dataset: str = _data('digits', '{names}', often=2, names=data.DATASETS)
  data_path: str = _data(
    '',
    'where the data are: folder of --dataset=idx, file of --dataset=npz, '
    'published files or archive of CIFAR, data_dir of those that '
    'experiments.prepare prepares (default ~/tensorflow_datasets)',
    often=2,
    is_path=True,
  )
  holdout: int = _data(
    0, 'training examples held out for validation', accepts=_AT_LEAST_0
  )
  augment: bool = _data(False, 'random crop and horizontal flip')
  model: str = _data('mlp_bn', '{names}', often=1, names=models.MODELS)
  compute_dtype: str = _data(
    'float32',
    '{names}: of activations; parameters are float32',
    names=models.COMPUTE_DTYPES,
    of_model=True,
  )
  remat: bool = _data(
    False, "compute a block's activations again for its gradient", of_model=True
  )
  segment_length: int = _data(
    0, "tokens per row (0: the model's own)", of_model=True
  )
  memory_length: int = _data(
    -1,
    'tokens before these that a model remembers (-1: as many; 0: none)',
    of_model=True,
  )
  method: str = _method(
    'ga',
    'python -m experiments.methods explains them: {names}',
    often=1,
    names=methods.METHODS,
  )
  rule: str = _method('', _INSTEAD, names=parts_lib.TABLES['rule'])
  policy: str = _method('', _INSTEAD, names=parts_lib.TABLES['policy'])
  program: str = _method('', _INSTEAD, names=parts_lib.TABLES['program'])
  compression: str = _method(
    '', _INSTEAD, names=parts_lib.TABLES['compression']
  )
  parameters: tuple[tuple[str, object], ...] = ()
  workers: int = _cluster(
    1, 'that train at once', often=1, accepts=_AT_LEAST_1, alias='num_workers'
  )
  clock: str = _cluster(
    'homogeneous', '{names}', often=1, names=CLOCKS, read_by=_SIMULATED
  )
  clock_times: str = _cluster(
    '',
    'trace.npz whose times --clock=recorded plays',
    read_by=_SIMULATED,
    is_path=True,
  )
  stalls: tuple[tuple[int, float, float], ...] = _cluster(
    (),
    'WORKER:TIME:DURATION,... in mean batch times (simulated)',
    form='WORKER:TIME:DURATION',
    read_by=_SIMULATED,
  )
  deaths: tuple[tuple[int, float], ...] = _cluster(
    (), 'WORKER:TIME,... (simulated)', form='WORKER:TIME', read_by=_SIMULATED
  )
  latency: float = _cluster(
    0.0,
    'per message, in mean batch times (simulated)',
    accepts=setting.Range('finite and at least 0', lambda v: 0 <= v < math.inf),
    read_by=_SIMULATED,
  )
  bandwidth: float = _cluster(
    math.inf,
    'bytes per mean batch time (simulated)',
    accepts=setting.Range('positive', lambda v: v > 0),
    read_by=_SIMULATED,
  )
  epochs: float = _training(
    20.0,
    'of all workers together',
    often=1,
    accepts=setting.Range(
      'finite and from 1e-30 to 1e6', lambda v: 1e-30 <= v <= 1e6
    ),
    alias='num_epochs',
  )
  evaluate_every: float = _training(
    1.0, 'epochs between two evaluations', accepts=_POSITIVE
  )
  batch_size: int = _training(
    32, 'examples per gradient', often=1, accepts=_AT_LEAST_1
  )
  learning_rate: float = _method(
    0.1, 'peak learning rate', often=1, accepts=_POSITIVE, alias='lr'
  )
  scale_lr: bool = _training(
    False,
    'multiply the learning rate by the gradients of a round (linear scaling)',
  )
  schedule: str = _training('constant', '{names}', often=1, names=SCHEDULES)
  boundaries: tuple[float, ...] = _training(
    (),
    'epochs where --schedule=step decays',
    accepts=setting.Range(
      'increasing epochs above 0 and up to 1e6',
      lambda v: (
        all(a < b for a, b in itertools.pairwise((0.0, *v)))
        and all(epoch <= 1e6 for epoch in v)
      ),
    ),
  )
  decay_factor: float = _training(
    0.1, 'what --schedule=step multiplies by', accepts=_POSITIVE
  )
  warmup_epochs: float = _training(
    0.0,
    'linear warm-up from rate/workers',
    accepts=setting.Range('finite and from 0 to 1e6', lambda v: 0 <= v <= 1e6),
  )
  seed: int = _training(
    0,
    'of model, batches and clock',
    often=1,
    accepts=setting.Range('from 0 to 2147483647', lambda v: 0 <= v < 2**31),
  )
  executor: str = _training(
    'fast',
    "fast (compiled blocks)|exact (a live run's bits)",
    names=EXECUTORS,
    read_by=_SIMULATED,
  )
  simulate_devices: str = _cluster(
    '',
    'all|NUMBER: local devices that compute the gradients of the simulated '
    "cluster ahead, with the exact executor's bits (none: one device)",
    accepts=setting.Range(
      'all, or a number of at least 1',
      lambda v: re.fullmatch('(all|[1-9][0-9]*)?', v),
    ),
    read_by=_SIMULATED,
  )
  runtime: str = _cluster(
    'simulate', '{names}', often=1, names=setting.RUNTIMES
  )
  devices: int = _cluster(
    0,
    'local devices that the threads use (0: all of an accelerator, on the CPU '
    'one per worker up to its cores)',
    accepts=_AT_LEAST_0,
    read_by=('threads',),
  )
  devices_per_worker: int = _cluster(
    1,
    'devices that share the batches of a worker (threads, ray)',
    accepts=_AT_LEAST_1,
    read_by=_LIVE,
  )
  workers_per_device: int = _cluster(
    1,
    'workers that share a device, each with its part of the memory (ray)',
    accepts=_AT_LEAST_1,
    read_by=('ray',),
  )
  wait_for_workers: float = _cluster(
    120.0,
    'seconds until the first worker must have found room (ray)',
    accepts=setting.Range('positive', lambda v: v > 0),
    read_by=('ray',),
  )
  lease_seconds: float = _cluster(
    60.0,
    'how long a worker may take for a ticket (threads, ray)',
    accepts=setting.Range('finite and positive', lambda v: 0 < v < math.inf),
    read_by=_LIVE,
  )
  pipeline_depth: int = _cluster(
    0,
    'snapshots that a worker reads ahead (threads, ray)',
    accepts=_AT_LEAST_0,
    read_by=_LIVE,
  )
  straggler: tuple[tuple[int, float], ...] = _cluster(
    (),
    'WORKER:FACTOR,...: slows workers down (threads, ray)',
    form='WORKER:FACTOR',
    read_by=_LIVE,
  )
  address: str = _cluster(
    'local',
    'auto (the cluster of this machine)|local (a new one here)|HOST:PORT (ray)',
    read_by=('ray',),
  )
  accelerator: str = _cluster(
    'auto',
    'of the workers: {names} (ray)',
    names=ACCELERATORS,
    read_by=('ray',),
  )
  server_accelerator: str = _cluster(
    'auto',
    'of the server, or each of its shards: {names}; auto is one that the '
    'workers leave (ray)',
    names=ACCELERATORS,
    read_by=('ray',),
  )
  server_shards: int = _cluster(
    1,
    'actors that share the parameters (ray)',
    accepts=_AT_LEAST_1,
    read_by=('ray',),
  )
  layer_metrics: bool = _output(
    False, 'measure gap and penalty of every layer too'
  )

  @classmethod
  def rows(cls) -> dict[str, setting.Row]:
    """The rows of the table by the names of their settings."""
    return {
      field.name: field.metadata['row']
      for field in dataclasses.fields(cls)
      if field.metadata
    }

  def joins_cluster(self) -> bool:
    """Whether the run is on a Ray cluster of somebody's, by its address."""
    return self.runtime == 'ray' and self.address not in ('local', 'auto')

  def data_name(self) -> str:
    """The data set, or the name of the file or folder of somebody's own."""
    if not self.data_path or self.dataset not in data.GIVEN:
      return self.dataset
    name = os.path.basename(os.path.normpath(self.data_path))
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
      for name, row in self.rows().items()
      if row.of_model and getattr(self, name) != row.default
    }

  def arguments(self) -> dict[str, dict[str, object]]:
    """What every part is built with beside its learning rate."""
    return parts_lib.arguments(
      self.parts(), dict(self.parameters), self.workers
    )


def flag_rows() -> dict[str, setting.Row]:
  """The rows of all flags of a run: its settings, the parameters of methods."""
  parameters = {
    name: setting.Row(
      one.kind,
      None,
      setting.METHOD if one.usual else setting.PARAMETERS,
      one.about,
      often=int(one.usual),
    )
    for name, one in parts_lib.PARAMETERS.items()
  }
  return {**Settings.rows(), **parameters}
