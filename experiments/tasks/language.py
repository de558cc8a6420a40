"""The next token of a text: a model with a memory, judged by perplexity.

Every worker reads a stream of the text and remembers the segment before; it is
told so by `memory`, see `assembly.remembering`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.settings import table as settings_lib
from experiments.tasks import base
from ga_jax import data, models

EVAL_ROWS = 16  # readers that begin at equal distances in a split


class EmptyMemory(NamedTuple):
  """Makes a worker's empty memory; equal ones share compiled code."""

  memory: Callable[[int], Any]
  batch_size: int

  def __call__(self):
    return self.memory(self.batch_size)


def task(
  corpus: data.Corpus, model_name: str, options: dict[str, object]
) -> base.Task:
  """A language model on a corpus.

  Args:
    corpus: what is read.
    model_name: a name in `models.MODELS`.
    options: keyword arguments of the model.

  Returns:
    A `Task`; its `predict` takes rows of classes [n, t] and returns log p
    [n, num_classes] of the next one.

  Raises:
    SettingError: the model does not read tokens, or refuses an option.
  """
  try:
    model = models.MODELS[model_name](corpus.num_classes, **options)
  except ValueError as error:
    name = str(error).split(' ', 1)[0]
    raise settings_lib.SettingError(
      name, options.get(name), str(error)
    ) from error
  if model.reads != 'tokens':
    raise settings_lib.SettingError(
      'model', model_name, 'reads no tokens, which --dataset has'
    )
  length = model.segment_length

  def loss_fn(params, remembered, batch, key):
    model_state, memory = remembered
    tokens, targets = batch
    losses, memory = model.losses(params, memory, tokens, targets, key)
    return losses.mean(), (model_state, memory)

  def source(settings):
    check(settings)
    return base.made_source(
      settings,
      lambda: corpus.source(
        settings.batch_size, length, settings.workers, settings.seed
      ),
    )

  return base.Task(
    dataset=corpus,
    model=model,
    metric=base.PERPLEXITY,
    init=jax.jit(lambda key: (model.init(key), ())),
    loss_fn=loss_fn,
    splits=('validation', 'test'),
    evaluate=evaluation(corpus, model),
    predict=prediction(model),
    batches_per_epoch=lambda settings: (
      corpus.size('train') // (settings.batch_size * length)
    ),
    source=source,
    memory=lambda settings: EmptyMemory(model.memory, settings.batch_size),
  )


def check(settings: settings_lib.Settings):
  """Raises a SettingError where a setting has no meaning for text."""
  if settings.augment:
    raise settings_lib.SettingError('augment', True, 'needs images')
  if settings.pipeline_depth:
    raise settings_lib.SettingError(
      'pipeline_depth',
      settings.pipeline_depth,
      'must be 0 with a model that remembers the batch before',
    )
  program = settings.parts().program
  if program != 'gradient':
    flag = 'program' if settings.program else 'method'
    raise settings_lib.SettingError(
      flag,
      getattr(settings, flag),
      f'its worker program {program} knows no memory, which --model='
      f'{settings.model} needs: choose one with the program gradient',
    )


def evaluation(corpus: data.Corpus, model: models.LanguageModel):
  """`evaluate(params, model_state, split) -> (perplexity, mean loss)`.

  The split is read in order by up to `EVAL_ROWS` readers, segment after
  segment, the memory carried over; every token but the first is predicted once.
  """

  @jax.jit
  def step(params, memory, tokens, targets, valid):
    losses, memory = model.losses(params, memory, tokens, targets)
    return jnp.sum(jnp.where(valid, losses, 0.0)), memory

  def evaluate(params, model_state, split):
    del model_state
    classes, length = getattr(corpus, split), model.segment_length
    n = len(classes) - 1  # targets
    readers = min(EVAL_ROWS, max(1, n // length))
    own = -(-n // readers)  # targets of a reader
    memory, found = model.memory(readers), []
    for begin in range(0, own, length):
      steps = begin + np.arange(length)[None]
      places = own * np.arange(readers)[:, None] + steps
      valid = (steps < own) & (places < n)
      places = np.minimum(places, n - 1)
      loss, memory = step(
        params, memory, classes[places], classes[places + 1], valid
      )
      found.append(loss)
    loss = float(np.sum(np.asarray(found, np.float64))) / n
    return math.exp(loss) if loss < 700.0 else math.inf, loss

  return evaluate


def prediction(model: models.LanguageModel):
  """`predict(params, model_state, rows of classes [n, t]) -> log p [n, V]`."""

  @jax.jit
  def predict(params, model_state, inputs):
    del model_state
    rows = jnp.asarray(inputs, jnp.int32)
    memory, width = model.memory(len(rows)), rows.shape[1]
    # The segment that may be shorter comes first.
    ends = range(width % model.segment_length, width + 1, model.segment_length)
    for begin, end in zip((0, *ends), ends, strict=False):
      if end > begin:
        found, memory = model.log_probs(params, memory, rows[:, begin:end])
    return found

  return predict
