"""The rows of a run as TensorBoard event files, without TensorFlow."""

import dataclasses
import importlib.util
import os
import time
from typing import Any

import numpy as np

from experiments import tasks
from experiments.running import setup
from experiments.settings import table as settings_lib

SCALARS = {  # a row's name -> the tag
  'train_loss': 'train/loss',
  **{
    f'{split}_{name}': f'{split}/{name}'
    for split in ('test', 'validation')
    for name in tasks.METRICS
  },
  'mean_staleness': 'staleness/mean',
  'max_staleness': 'staleness/max',
  'mean_gap': 'gap/mean',
  'mean_penalty': 'penalty/mean',
  'max_penalty': 'penalty/max',
  'epoch': 'progress/epoch',
  'batches': 'progress/batches',
  'time': 'progress/time',
  'batches_per_second': 'throughput/batches_per_second',
}
HISTOGRAMS = {  # a metric's name -> the tag
  'staleness': 'staleness/arrivals',
  'gap': 'gap/arrivals',
  'mean_penalty': 'penalty/arrivals',
}
MAIN = (
  *('method', 'workers', 'learning_rate', 'model', 'dataset'),
  *('batch_size', 'epochs', 'clock', 'runtime', 'seed'),
)
LAYERS = {  # a metric's name -> what the layer's name follows in the tag
  'layer_gap': 'layer_gap',
  'layer_mean_penalty': 'layer_penalty',
}


def check():
  """Checks that event files can be written.

  Raises:
    SettingError: tensorboardX is not installed.
  """
  if importlib.util.find_spec('tensorboardX') is None:
    how = "needs tensorboardX: pip install 'ga_jax[tensorboard]'"
    raise settings_lib.SettingError('tensorboard', True, how)


class Events:
  """Writes a run's rows to event files, as they come.

  The steps are server updates. What an earlier process wrote of the updates
  that are made again is not shown any more.
  """

  def __init__(
    self,
    workdir: str,
    settings: settings_lib.Settings,
    layers: tuple[str, ...],
  ):
    """Writes nothing yet.

    Args:
      workdir: of the run.
      settings: of the run.
      layers: names of the model's layers.
    """
    self._folder = os.path.join(workdir, setup.EVENTS)
    self._settings = settings
    self._layers = layers
    self._writer = None

  def write(self, row: dict[str, Any], arrivals: dict[str, np.ndarray]):
    """Writes a row and histograms of its arrivals, see `watch.Progress`."""
    step = row['updates']
    if self._writer is None:
      self._begin(step)
    for name, tag in SCALARS.items():
      if row.get(name) is not None:
        self._writer.add_scalar(tag, row[name], step)
    for name, tag in HISTOGRAMS.items():
      self._histogram(tag, arrivals[name], step)
    for name, tag in LAYERS.items():
      for layer, values in zip(
        self._layers, arrivals.get(name, np.empty((0, 0))).T, strict=False
      ):
        self._histogram(f'{tag}/{layer}', values, step)

  def close(self):
    """Closes the file."""
    if self._writer is not None:
      self._writer.close()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def _begin(self, step: int):
    import tensorboardX  # an extra, and slow to import
    from tensorboardX import summary

    goes_on = os.path.isdir(self._folder)
    self._writer = tensorboardX.SummaryWriter(
      self._folder,
      purge_step=step if goes_on else None,
      flush_secs=1,
      filename_suffix=f'.{time.time_ns()}',  # a file of its own, in order
    )
    if goes_on:  # the settings are there
      return
    fields = dataclasses.asdict(self._settings)
    rows = [f'| {name} | {value} |' for name, value in fields.items()]
    table = '\n'.join(['| setting | value |', '|---|---|', *rows])
    self._writer.add_text('settings', table, 0)
    judged = 'train/loss', f'test/{tasks.task_of(self._settings).metric.name}'
    for one in summary.hparams(hparams(self._settings), dict.fromkeys(judged)):
      self._writer.file_writer.add_summary(one)

  def _histogram(self, tag, values, step):
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
      return
    bins = 'tensorflow'  # its widths grow with the values
    if tag == HISTOGRAMS['staleness']:
      bins = np.arange(values.max() + 2) - 0.5  # one for every staleness
    self._writer.add_histogram(tag, values, step, bins)


def hparams(settings: settings_lib.Settings) -> dict[str, Any]:
  """A run in TensorBoard's table of runs: `MAIN`, and what is no default."""
  defaults = dataclasses.asdict(settings_lib.Settings())
  fields = dataclasses.asdict(settings)
  chosen = {
    name: value
    for name, value in fields.items()
    if name in MAIN or value != defaults[name]
  }
  chosen.update(chosen.pop('parameters', ()))
  return {
    name: value if isinstance(value, (bool, int, float)) else str(value)
    for name, value in chosen.items()
  }
