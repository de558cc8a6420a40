"""A model on a data set: loss, batches, evaluation; cached in the process."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import settings as settings_lib
from ga_jax import data, models

EVAL_BATCH = 1000


class Task(NamedTuple):
  """What is trained.

  Attributes:
    dataset: in host memory.
    model: a pair of pure functions.
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.
    evaluate: `evaluate(params, model_state, split) -> (error, mean loss)`.
    predict: `predict(params, model_state, inputs) -> logits`, for inputs as
      they are stored.
  """

  dataset: data.Dataset
  model: models.Model
  loss_fn: Callable[..., Any]
  evaluate: Callable[..., tuple[float, float]]
  predict: Callable[..., Any]


def task_of(settings: settings_lib.Settings) -> Task:
  """The task of a run; runs that share it share its compiled code."""
  return _task(
    settings.dataset, settings.data_path, settings.holdout, settings.model
  )


def source_of(settings: settings_lib.Settings) -> data.base.Source:
  """The training batches of a run; the data is on the device only once."""
  dataset = task_of(settings).dataset
  if settings.augment and dataset.train.inputs.ndim != 4:
    raise settings_lib.SettingError(
      'augment', True, f'needs images, {settings.dataset} has vectors'
    )
  try:
    source = data.training_source(
      dataset, settings.batch_size, settings.seed, augment=settings.augment
    )
  except data.DataError as error:
    raise settings_lib.SettingError(
      'batch_size', settings.batch_size, str(error)
    ) from error
  resident = _on_device(settings.dataset, settings.data_path, settings.holdout)
  return source._replace(resident=resident)


def batches_per_epoch(settings: settings_lib.Settings) -> int:
  """Whole batches in the training split."""
  return len(task_of(settings).dataset.train.labels) // settings.batch_size


@functools.lru_cache(maxsize=2)
def _dataset(name: str, path: str, holdout: int) -> data.Dataset:
  try:
    dataset = data.DATASETS[name](path or None)
  except data.DataError as error:
    raise settings_lib.SettingError('data_path', path, str(error)) from error
  try:
    return data.hold_out(dataset, holdout)
  except data.DataError as error:
    raise settings_lib.SettingError('holdout', holdout, str(error)) from error


@functools.lru_cache(maxsize=2)
def _on_device(name: str, path: str, holdout: int):
  dataset = _dataset(name, path, holdout)
  return jax.tree.map(jnp.asarray, (*dataset.train, dataset.mean, dataset.std))


@functools.lru_cache(maxsize=8)
def _task(name: str, path: str, holdout: int, model_name: str) -> Task:
  dataset = _dataset(name, path, holdout)
  model = models.MODELS[model_name](dataset.num_classes)
  if model_name.startswith('cnn') and dataset.train.inputs.ndim != 4:
    raise settings_lib.SettingError(
      'model', model_name, f'needs images, {name} has vectors'
    )

  def loss_fn(params, model_state, batch, key):
    del key
    inputs, labels = batch
    logits, model_state = model.apply(params, model_state, inputs, True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), model_state

  @jax.jit
  def predict(params, model_state, inputs):
    inputs = data.to_float(jnp.asarray(inputs), dataset.mean, dataset.std)
    return model.apply(params, model_state, inputs, False)[0]

  @jax.jit
  def count(params, model_state, inputs, labels, valid):
    logits = predict(params, model_state, inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    wrong = logits.argmax(-1) != labels
    return jnp.sum(wrong & valid), jnp.sum(jnp.where(valid, losses, 0.0))

  def evaluate(params, model_state, split):
    wrong, loss, n = 0, 0.0, len(split.labels)
    size = min(EVAL_BATCH, n)
    for start in range(0, n, size):
      rows = np.arange(start, start + size)
      valid = rows < n  # the last batch is filled up, so one shape is compiled
      rows = np.minimum(rows, n - 1)
      w, l = count(
        params, model_state, split.inputs[rows], split.labels[rows], valid
      )
      wrong, loss = wrong + int(w), loss + float(l)
    return wrong / n, loss / n

  return Task(dataset, model, loss_fn, evaluate, predict)
