"""What is told of a finished run."""

from typing import Any

import numpy as np

from experiments import tasks
from experiments.running import environment, watch
from ga_jax.policies.parts.base import Kind
from ga_jax.rules.parts import layer_penalties
from ga_jax.server import update

PENALTY_EDGES = np.concatenate([[0.0], 2.0 ** np.arange(11.0)])
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)  # least, quartiles, largest


def finite(state) -> bool:
  """Whether every parameter and model statistic is a number."""
  return bool(update.finite((state.params, state.model_state)))


def of(settings, the_task, result, messages) -> dict[str, Any]:
  """The summary of a result, as every runtime gives one."""
  arrivals = result.trace.applied()
  seen = {k: v[np.isfinite(v)] for k, v in result.metrics.items()}
  losses = result.metrics['loss']
  diverged = not (np.isfinite(losses).all() and finite(result.state))
  name = the_task.metric.name
  judged = {f'test_{name}': None, f'validation_{name}': None}
  if not diverged:
    judged = watch.evaluate(the_task, result.state)
    diverged = not np.isfinite(judged[f'test_{name}'])  # a perplexity may be
  batches = int(result.metrics['num_batches'].sum())
  per_epoch = tasks.batches_per_epoch(settings)
  last_epoch = max(1, per_epoch * result.executed // batches)  # in arrivals
  return {
    **judged,
    'train_loss': None if diverged else _mean(seen['loss'][-last_epoch:]),
    'updates': int(result.state.version),
    'batches': batches,
    'epochs': batches / per_epoch,
    'mean_staleness': float(arrivals['staleness'].mean()),
    'max_staleness': int(arrivals['staleness'].max()),
    'mean_gap': _mean(seen['gap']),
    'mean_penalty': _mean(seen['mean_penalty']),
    'max_penalty': float(seen['max_penalty'].max(initial=1.0)),
    'staleness_histogram': np.bincount(arrivals['staleness']).tolist(),
    'gap_histogram': histogram(seen['gap'], decades(seen['gap'])),
    'penalty_histogram': histogram(seen['mean_penalty'], PENALTY_EDGES),
    **_by_layer(layer_penalties.names(result.state.params), result.metrics),
    'wasted_work': result.trace.wasted(),
    'messages': result.trace.number_of(Kind.ISSUE)
    + result.trace.number_of(Kind.ARRIVE),
    'bytes_pulled': messages.pull * result.trace.number_of(Kind.ISSUE),
    'bytes_pushed': messages.push * result.trace.number_of(Kind.ARRIVE),
    'diverged': diverged,
    'method': settings.method,
    'workers': settings.workers,
    'learning_rate': settings.learning_rate,
    'seed': settings.seed,
    'device': environment.device_name(),
  }


def of_workers(result) -> dict[str, Any]:
  """What only a live run has: its workers, and whether it was stopped."""
  return {
    'stopped': result.stopped,
    'refused': result.refused,
    'worker_seconds': {
      str(worker): {**one._asdict(), 'utilisation': one.utilisation}
      for worker, one in sorted(result.workers.items())
    },
  }


def decades(values) -> np.ndarray:
  """Edges for numbers in any unit: 0, and the powers of ten that they span."""
  positive = values[values > 0]
  if not len(positive):
    return np.array([0.0])
  low, high = np.floor(np.log10([positive.min(), positive.max()])).astype(int)
  return np.array([0.0, *(float(f'1e{k}') for k in range(low, high + 1))])


def histogram(values, edges: np.ndarray) -> dict[str, list[float]]:
  """Counts from each edge to the next; the last has no upper one."""
  counts, _ = np.histogram(values, [*edges, np.inf])
  return {'edges': edges.tolist(), 'counts': counts.tolist()}


def _by_layer(names: tuple[str, ...], seen) -> dict[str, Any]:
  """Quantiles of gap and penalty by layer, where they were measured."""
  if 'layer_gap' not in seen:
    return {}

  def quantiles(values):
    finite = values[np.isfinite(values)]
    return np.quantile(finite, QUANTILES).tolist() if len(finite) else None

  return {
    'layers': {
      name: {
        'gap_quantiles': quantiles(seen['layer_gap'][:, i]),
        'penalty_quantiles': quantiles(seen['layer_mean_penalty'][:, i]),
      }
      for i, name in enumerate(names)
    }
  }


def _mean(values) -> float | None:
  return float(values.mean()) if len(values) else None
