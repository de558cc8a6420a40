"""Images or vectors into classes: cross-entropy, judged by the test error."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.settings import table as settings_lib
from experiments.tasks import base
from ga_jax import data, models
from ga_jax.data import scaling

EVAL_BATCH = 1000


def cross_entropy(model: models.Model):
  """A model's loss, `(params, model_state, (inputs, labels), key)`.

  Args:
    model: of inputs [B, ...] into logits [B, classes].

  Returns:
    A function that returns the mean cross-entropy, in nats, and the new model
    statistics.
  """

  def loss_fn(params, model_state, batch, key):
    del key
    inputs, labels = batch
    logits, model_state = model.apply(params, model_state, inputs, True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), model_state

  return loss_fn


def task(
  dataset: data.Dataset, model_name: str, options: dict[str, object]
) -> base.Task:
  """A model on a data set of classes.

  Args:
    dataset: what is classified.
    model_name: a name in `models.MODELS`.
    options: keyword arguments of the model.

  Returns:
    A `Task`.

  Raises:
    SettingError: the model does not read such inputs.
  """
  is_image = len(dataset.input_shape) == 3
  model = models.MODELS[model_name](dataset.num_classes, **options)
  if model.reads == 'tokens' or (model.reads == 'images' and not is_image):
    raise settings_lib.SettingError(
      'model',
      model_name,
      f'needs {model.reads}, --dataset has '
      f'{"images" if is_image else "vectors"}',
    )

  def init(key):
    return model.init(key, jnp.zeros((1, *dataset.input_shape)))

  def source(settings):
    if settings.augment and not is_image:
      raise settings_lib.SettingError(
        'augment', True, f'needs images, {settings.dataset} has vectors'
      )
    return base.made_source(
      settings,
      lambda: dataset.source(
        settings.batch_size, settings.seed, augment=settings.augment
      ),
    )

  return base.Task(
    dataset=dataset,
    model=model,
    metric=base.ERROR,
    init=jax.jit(init),
    loss_fn=cross_entropy(model),
    splits=tuple(s for s in ('validation', 'test') if dataset.size(s)),
    **_judging(dataset, model),
    batches_per_epoch=lambda settings: (
      dataset.size('train') // settings.batch_size
    ),
    source=source,
  )


def _judging(dataset: data.Dataset, model: models.Model):
  """{'predict': ..., 'evaluate': ...} of a `Task`."""

  def stage(inputs):
    return scaling.stage(np.asarray(inputs), dataset.mean, dataset.std)

  @jax.jit
  def logits_of(params, model_state, staged):
    inputs = scaling.normalise(staged, dataset.mean, dataset.std)
    return model.apply(params, model_state, inputs, False)[0]

  def predict(params, model_state, inputs):
    return logits_of(params, model_state, stage(inputs))

  @jax.jit
  def count(params, model_state, staged, labels, valid):
    logits = logits_of(params, model_state, staged)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    wrong = logits.argmax(-1) != labels
    return jnp.sum(wrong & valid), jnp.sum(jnp.where(valid, losses, 0.0))

  def evaluate(params, model_state, split):
    wrong, loss, n = 0, 0.0, dataset.size(split)
    for batch in dataset.batches(split, EVAL_BATCH):
      staged = stage(batch.inputs)
      w, l = count(params, model_state, staged, batch.labels, batch.valid)
      wrong, loss = wrong + int(w), loss + float(l)
    return wrong / n, loss / n

  return {'predict': predict, 'evaluate': evaluate}
