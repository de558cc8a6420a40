"""The record of a run: what it leaves in its folder, and what reads it.

A finished run has config.json (its settings), environment.json and
versions.json (what its bits depend on), began.json (settings and what the data
are known by, see `began`), metrics.jsonl (a row per epoch, `rows`), trace.npz
(everything that happened), arrivals.npz (what every gradient did), params/
(Orbax), summary.json and digests.json (see `digests`). docs/metrics.md explains
every name in them.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import ga_jax
from experiments import tasks
from experiments.records import contents
from experiments.running import environment, setup
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax.guards import forms
from ga_jax.record import files
from ga_jax.record import params as params_lib
from ga_jax.rules.parts import layer_penalties

METRICS = 'metrics.jsonl'  # of a run and of a grid
BEGINNING = ('config.json', 'versions.json', 'environment.json')
_ARRIVALS = ('loss', 'staleness', 'num_batches')  # what every version kept
_PARAMETER = forms.any_of(
  forms.flag, forms.integer(), forms.number(), forms.text
)


def save_config(workdir: str, settings: settings_lib.Settings):
  """Writes config.json, versions.json and environment.json."""
  config = dataclasses.asdict(settings)
  if math.isinf(config['bandwidth']):
    del config['bandwidth']  # JSON knows no infinity; it is the default
  found = config, environment.versions(), environment.environment()
  for name, value in zip(BEGINNING, found, strict=True):
    files.write_json(os.path.join(workdir, name), value)


def save(workdir: str, done: setup.Run):
  """Writes what came out; summary.json comes last: `digests` follow it."""
  result = done.result
  result.trace.save(os.path.join(workdir, 'trace.npz'))
  save_arrivals(workdir, result.metrics, result.state.params)
  params_lib.save_params(
    os.path.join(workdir, 'params'),
    result.state.params,
    result.state.model_state,
  )
  files.write_json(os.path.join(workdir, 'summary.json'), done.summary)


def save_arrivals(workdir: str, seen: dict[str, np.ndarray], params: Any):
  """Writes arrivals.npz: what every gradient did that entered a round.

  Args:
    workdir: of the run.
    seen: metrics by name, see `ga_jax.Result`.
    params: of the model, for the names of its layers.
  """
  arrays = {
    name: values.astype(np.int32) if values.dtype.kind == 'i' else values
    for name, values in seen.items()
  }
  if 'layer_gap' in arrays:
    arrays['layers'] = np.array(layer_penalties.names(params))
  files.write_arrays(os.path.join(workdir, 'arrivals.npz'), arrays)


def load_arrivals(workdir: str) -> dict[str, np.ndarray]:
  """What every gradient did that entered a round, as `save_arrivals` wrote it.

  Raises:
    SettingError: it is not there, or is damaged.
  """
  try:
    return arrivals_of(os.path.join(workdir, 'arrivals.npz'))
  except OSError as error:
    raise _missing(workdir, 'arrivals.npz') from error
  except ValueError as error:
    raise _damaged(workdir, error) from error


def arrivals_of(path: str) -> dict[str, np.ndarray]:
  """Metrics by name, as `save_arrivals` wrote them to a file.

  Raises:
    OSError: it is not there.
    ValueError: it is damaged.
  """
  arrays = files.read_arrays(path)
  seen = [array for name, array in arrays.items() if name != 'layers']
  lengths = {array.shape[0] if array.ndim else -1 for array in seen}
  numbers = all(array.dtype.kind in 'biuf' for array in seen)
  whole = all(np.ndim(arrays.get(name, 0)) == 1 for name in _ARRIVALS)
  if not (numbers and whole and len(lengths) == 1):
    raise files.DamagedError(f'{path} is damaged: it holds no arrivals')
  return arrays


def how_to_load(workdir: str) -> str:
  """The line of Python that loads a trained model."""
  return (
    'from experiments.records import record; '
    f'predict = record.load({workdir!r}); classes = predict(inputs)'
  )


def load(workdir: str) -> Callable[[Any], np.ndarray]:
  """Loads a trained model for inference.

  Args:
    workdir: of a finished run.

  Returns:
    `predict(inputs) -> classes [n]`, for inputs as the data set stores them.

  Raises:
    SettingError: there is no finished run.
  """
  settings = load_settings(workdir)
  the_task = tasks.task_of(settings)
  params, model_state = load_params(workdir, settings)

  def predict(inputs):
    return np.asarray(the_task.predict(params, model_state, inputs).argmax(-1))

  return predict


def load_params(workdir: str, settings: settings_lib.Settings):
  """The parameters and model statistics of a finished run.

  Raises:
    SettingError: they are not there, are damaged, or are of another model.
  """
  path = os.path.join(workdir, 'params')
  like = jax.eval_shape(lambda: setup.initial(settings))
  try:
    return params_lib.load_params(path, like)
  except FileNotFoundError as error:
    raise _missing(workdir, 'params') from error
  except ValueError as error:  # of another model, or damaged
    raise settings_lib.SettingError('workdir', workdir, str(error)) from error


def load_settings(workdir: str) -> settings_lib.Settings:
  """The settings that `save_config` wrote.

  Raises:
    SettingError: they are not there, or are no settings of this version.
  """
  return settings_of(workdir, load_json(workdir, 'config.json'))


def settings_of(workdir: str, config: dict[str, Any]) -> settings_lib.Settings:
  """Settings from JSON; what is not given is the default.

  Raises:
    SettingError: they are no settings of this version.
  """
  known = {
    name: row.stored() for name, row in settings_lib.Settings.rows().items()
  }
  known['parameters'] = forms.listed(forms.row(forms.text, _PARAMETER))
  try:
    forms.fields(known, needed=())(config, '')
    given = {name: _tuples(value) for name, value in config.items()}
    return check.check_record(settings_lib.Settings(**given))
  except (forms.FormError, settings_lib.SettingError) as error:
    raise settings_lib.SettingError(
      'workdir',
      workdir,
      f'its settings are of another version, or damaged: {error}',
    ) from error


def load_trace(workdir: str) -> ga_jax.Trace:
  """The trace of a run.

  Raises:
    SettingError: it is not there.
    TraceError: it is no trace.
  """
  try:
    return ga_jax.Trace.load(os.path.join(workdir, 'trace.npz'))
  except OSError as error:
    raise _missing(workdir, 'trace.npz') from error


def load_json(workdir: str, name: str) -> dict[str, Any]:
  """One of the JSON files of a run.

  Raises:
    SettingError: it is not there, or is damaged.
  """
  try:
    return read_json(os.path.join(workdir, name))
  except OSError as error:
    raise _missing(workdir, name) from error
  except ValueError as error:
    raise _damaged(workdir, error) from error


def read_json(path: str) -> dict[str, Any]:
  """One of the JSON files of a run, of the form that its name asks for.

  Raises:
    OSError: it is not there.
    DamagedError: it holds something else.
  """
  form = contents.BY_NAME.get(os.path.basename(path), forms.anything)
  return files.read_json(path, form)


def batches_per_epoch(summary: dict[str, Any]) -> int:
  """Batches of an epoch, from what a summary says of both."""
  return round(summary['batches'] / summary['epochs'])


def environment_of(workdir: str):
  """What differs of the environment that a run began in.

  Returns:
    As `environment.restorable`: what another start can undo, and what remains.

  Raises:
    SettingError: the record is not there.
  """
  recorded = load_json(workdir, 'environment.json')
  found = environment.differences(recorded, environment.environment())
  return environment.restorable(found)


def _tuples(value):
  """Lists, which is what JSON makes of tuples, as tuples again."""
  if isinstance(value, list):
    return tuple(map(_tuples, value))
  return value


def _damaged(workdir: str, error: ValueError) -> settings_lib.SettingError:
  said = str(error).replace(os.path.join(workdir, ''), '')
  return settings_lib.SettingError('workdir', workdir, said)


def _missing(workdir: str, name: str) -> settings_lib.SettingError:
  if not workdir:
    why = 'must name the folder of a run (experiments.train --workdir=)'
    return settings_lib.SettingError('workdir', workdir, why)
  return settings_lib.SettingError(
    'workdir', workdir, f'holds no finished run: no {name} there'
  )
