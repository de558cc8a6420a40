"""Exponential execution times: what a worker has done says nothing of the rest.

The memoryless model that the analyses of K-sync and K-async SGD work with.

References:
  Dutta, Joshi, Ghosh, Dube, Nagpurkar, `Slow and Stale Gradients Can Win the
  Race: Error-Runtime Trade-offs in Distributed SGD
  <https://arxiv.org/abs/1803.01113>`_, AISTATS 2018.
"""

from ga_jax.clocks import base
from ga_jax.guards import checks


def exponential(seed: int = 0, *, mean: float = 1.0) -> base.Clock:
  """Equal machines with exponential times.

  Args:
    seed: of the draws.
    mean: time of one batch, in time units, positive.

  Returns:
    A `Clock`; the standard deviation is the mean.
  """
  seed = checks.integer('seed', seed, 0)
  mean = checks.number('mean', mean, above=0.0)

  def draw(worker_id, chunk):
    return base.generator(seed, worker_id, chunk).exponential(mean, base.CHUNK)

  return base.Clock(draw=draw, mean=mean)
