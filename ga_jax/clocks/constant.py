"""Every task of every worker takes the same time: round-robin order."""

import numpy as np

from ga_jax.clocks import base
from ga_jax.guards import checks


def constant(seed: int = 0, *, mean: float = 1.0) -> base.Clock:
  """A clock without noise.

  Args:
    seed: ignored; there so that all clocks are built alike.
    mean: time of one batch, in time units, positive.

  Returns:
    A `Clock`.
  """
  checks.integer('seed', seed, 0)
  mean = checks.number('mean', mean, above=0.0)
  times = np.full(base.CHUNK, mean)
  return base.Clock(draw=lambda worker_id, chunk: times, mean=mean)
