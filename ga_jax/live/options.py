"""How a live run is made, on threads as on a cluster."""

import dataclasses
import math

from ga_jax.executors.saving import Checkpoints
from ga_jax.guards import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Live:
  """What live runs have in common, wherever their workers are.

  Attributes:
    lease_seconds: how long a ticket may be out, in seconds, positive; then its
      batches are issued again.
    pipeline_depth: snapshots that a worker reads ahead, at least 0.
    allow_non_finite: whether gradients that are not finite are applied; else
      they are refused and their batches issued again.
    trace_path: file to write the rows to as they happen; None keeps them in
      memory.
    checkpoints: where to save the run, and how often; what is there already is
      gone on with (`trace_path` must be the one of then): what the record holds
      beyond it is computed again, to the same bits. Batches that were out are
      issued again.
    recover: whether to go on with the record at `trace_path` where there is no
      checkpoint yet.

  Raises:
    ValueError: a number is out of its range, or there is no `trace_path` to go
      on with.
  """

  lease_seconds: float = math.inf
  pipeline_depth: int = 0
  allow_non_finite: bool = False
  trace_path: str | None = None
  checkpoints: Checkpoints | None = None
  recover: bool = False

  def __post_init__(self):
    lease = checks.number(
      'lease_seconds', self.lease_seconds, above=0.0, finite=False
    )
    depth = checks.integer('pipeline_depth', self.pipeline_depth, 0)
    object.__setattr__(self, 'lease_seconds', lease)
    object.__setattr__(self, 'pipeline_depth', depth)
    if (self.checkpoints or self.recover) and self.trace_path is None:
      raise ValueError('a run can only go on with a record: give a trace_path')
