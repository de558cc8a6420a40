"""Every task of every worker takes the same time: round-robin order."""

import numpy as np

from ga_jax.clocks import base


def constant(seed: int = 0, *, mean: float = 1.0) -> base.Clock:
  """A clock without noise.

  Args:
    seed: ignored; there so that all clocks are built alike.
    mean: time of one batch, in time units, positive.

  Returns:
    A `Clock`.
  """
  del seed
  base.check_positive(mean=mean)
  times = np.full(base.CHUNK, float(mean))
  return base.Clock(draw=lambda worker_id, chunk: times, mean=mean)
