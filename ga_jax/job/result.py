"""What a run leaves behind, whoever made it."""

import dataclasses

import numpy as np

from ga_jax.record import trace as trace_lib
from ga_jax.server import update


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """What a run leaves behind.

  Attributes:
    state: the server's state, a `update.ServerState`.
    trace: what happened; of a run that was stopped, until it was.
    metrics: host arrays with an entry per executed arrival: loss, staleness,
      num_batches, gap, mean_penalty, max_penalty, time; where they were asked
      for layer_gap and layer_mean_penalty too, [arrivals, layers]. Times are
      units of the clock, or seconds since a live run began.
  """

  state: update.ServerState
  trace: trace_lib.Trace
  metrics: dict[str, np.ndarray]

  @property
  def params(self):
    """The parameters at the end."""
    return self.state.params

  @property
  def executed(self) -> int:
    """How many of the trace's applied arrivals were computed."""
    return len(self.metrics['loss']) if self.metrics else 0
