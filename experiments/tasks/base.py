"""What a task is: a model on a data set, and how it is judged."""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.settings import table as settings_lib
from ga_jax import data, models
from ga_jax.job import source as source_lib


class Metric(NamedTuple):
  """What a task is judged by; less is better.

  Attributes:
    name: summaries hold it as test_NAME and validation_NAME.
    unit: of the numbers that are shown, '' for none.
    scale: what they are multiplied by to be shown.
    worst: what a run counts as that diverged.
  """

  name: str
  unit: str
  scale: float
  worst: float

  @property
  def label(self) -> str:
    """For captions and axes: 'test error, %'."""
    return f'test {self.name}' + (f', {self.unit}' if self.unit else '')

  def text(self, value: float) -> str:
    """A value as it is shown, with its unit."""
    return f'{self.scale * value:.2f} {self.unit}'.strip()


ERROR = Metric('error', '%', 100.0, 1.0)
PERPLEXITY = Metric('perplexity', '', 1.0, float('inf'))
METRICS = {metric.name: metric for metric in (ERROR, PERPLEXITY)}


def judgements(row: dict[str, Any]) -> list[tuple[str, str]]:
  """What a row or a summary says of the task's metric: (name, value)."""
  return [
    (f'{split} {name}', metric.text(row[f'{split}_{name}']))
    for name, metric in METRICS.items()
    for split in ('test', 'validation')
    if row.get(f'{split}_{name}') is not None
  ]


def judged(row: dict[str, Any]) -> list[str]:
  """The same as texts: 'test error 2.50 %'."""
  return [f'{name} {value}' for name, value in judgements(row)]


class Task(NamedTuple):
  """What is trained.

  Attributes:
    dataset: what it is trained and judged on.
    model: a pair of pure functions.
    metric: what it is judged by.
    init: `init(key) -> (params, model_state)`.
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.
    splits: what it can be judged on: 'test', and 'validation' where held out.
    evaluate: `evaluate(params, model_state, split) -> (metric, mean loss)`.
    predict: `predict(params, model_state, inputs) -> logits`, for inputs as
      they are stored.
    batches_per_epoch: `batches_per_epoch(settings) -> int`.
    source: `source(settings) -> Source`, its resident arrays on the host;
      raises a SettingError.
    memory: `memory(settings) -> (() -> empty memory)` of a worker, hashable;
      None for a model that remembers nothing. `loss_fn` is then that of
      `programs.recurrent`.
  """

  dataset: Any
  model: models.Model
  metric: Metric
  init: Callable[..., tuple[Any, Any]]
  loss_fn: Callable[..., Any]
  splits: tuple[str, ...]
  evaluate: Callable[..., tuple[float, float]]
  predict: Callable[..., Any]
  batches_per_epoch: Callable[..., int]
  source: Callable[..., Any]
  memory: Callable[..., Any] | None = None


def made_source(
  settings: settings_lib.Settings, make: Callable[[], source_lib.Source]
) -> source_lib.Source:
  """The training batches of a run.

  Args:
    settings: of the run.
    make: makes them.

  Raises:
    SettingError: the data has no batches of that size.
  """
  try:
    return make()
  except data.DataError as error:
    raise settings_lib.SettingError(
      'batch_size', settings.batch_size, str(error)
    ) from error
