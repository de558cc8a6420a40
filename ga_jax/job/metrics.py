"""The metrics of arrivals: one by one, and joined."""

from typing import Any

import numpy as np

from ga_jax import programs
from ga_jax.server import update


def stacked(log) -> dict[str, np.ndarray]:
  """A list of metric dicts as a dict of host arrays."""
  if not log:
    return {}
  return {k: np.stack([np.asarray(m[k]) for m in log]) for k in log[0]}


def record(
  submission: programs.Submission,
  metrics: update.Metrics,
  layers: update.LayerMetrics | None,
  staleness,
  num_batches,
) -> dict[str, Any]:
  """The metrics of one applied arrival, by name."""
  return {
    'loss': submission.loss,
    'staleness': staleness,
    'num_batches': num_batches,
    **metrics._asdict(),
    **(layers._asdict() if layers else {}),
  }


def joined(blocks) -> dict[str, np.ndarray]:
  """Blocks of metrics by name, one after the other, on the host."""
  if not blocks:
    return {}
  return {
    name: np.concatenate([np.asarray(block[name]) for block in blocks])
    for name in blocks[0]
  }
