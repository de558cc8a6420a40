"""The task of a run, cached: runs that share one share its compiled code."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.settings import table as settings_lib
from experiments.tasks import classification, language
from experiments.tasks.base import (
  ERROR,
  METRICS,
  PERPLEXITY,
  Metric,
  Task,
  judged,
  judgements,
)
from ga_jax import data
from ga_jax.job import source as source_lib

__all__ = [
  'ERROR',
  'METRICS',
  'PERPLEXITY',
  'Metric',
  'Task',
  'batches_per_epoch',
  'fingerprint_of',
  'forget',
  'judged',
  'judgements',
  'metric_of',
  'source_of',
  'task_of',
]


def task_of(settings: settings_lib.Settings) -> Task:
  """The task of a run.

  Raises:
    SettingError: the data cannot be read, or the model does not read it.
  """
  options = tuple(sorted(settings.model_options().items()))
  return _task(_data_key(settings), settings.model, options)


def source_of(settings: settings_lib.Settings) -> source_lib.Source:
  """The training batches of a run; the data is on the device only once.

  Raises:
    SettingError: the data has no such batches.
  """
  source = task_of(settings).source(settings)
  return source._replace(resident=_on_device(_data_key(settings)))


def batches_per_epoch(settings: settings_lib.Settings) -> int:
  """Whole batches in the training split."""
  return task_of(settings).batches_per_epoch(settings)


def fingerprint_of(settings: settings_lib.Settings) -> dict[str, str]:
  """What the data of a run are known by: {part: 'SIZE-DIGEST'}.

  Raises:
    SettingError: the data cannot be read.
  """
  return _fingerprint(_data_key(settings))


def metric_of(summaries: list[dict[str, Any]]) -> Metric:
  """What the runs of some summaries were judged by."""
  names = {
    name
    for name in METRICS
    for summary in summaries
    if f'test_{name}' in summary or f'validation_{name}' in summary
  }
  if len(names) != 1:
    raise ValueError(f'summaries of one task are needed, these have {names}')
  return METRICS[names.pop()]


def forget():
  """Forgets what was read, as a new process has not read it."""
  for cached in (_dataset, _fingerprint, _on_device, _task):
    cached.cache_clear()


def _data_key(settings) -> tuple[str, str, int]:
  return settings.dataset, settings.data_path, settings.holdout


@functools.lru_cache(maxsize=2)
def _dataset(key: tuple[str, str, int]):
  name, path, holdout = key
  try:
    dataset = data.DATASETS[name](path or None)
  except data.DataError as error:
    raise settings_lib.SettingError('data_path', path, str(error)) from error
  try:
    return dataset.hold_out(holdout)
  except data.DataError as error:
    raise settings_lib.SettingError('holdout', holdout, str(error)) from error


@functools.lru_cache(maxsize=2)
def _fingerprint(key: tuple[str, str, int]) -> dict[str, str]:
  try:
    return _dataset(key).fingerprint()
  except data.DataError as error:
    raise settings_lib.SettingError('data_path', key[1], str(error)) from error


@functools.lru_cache(maxsize=2)
def _on_device(key):
  return jax.tree.map(jnp.asarray, _dataset(key).resident)


@functools.lru_cache(maxsize=8)
def _task(key, model_name: str, options) -> Task:
  dataset = _dataset(key)
  kind = language if isinstance(dataset, data.Corpus) else classification
  return kind.task(dataset, model_name, dict(options))
