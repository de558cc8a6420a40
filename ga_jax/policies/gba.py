"""Global batch gradients aggregation (GBA).

Gradients are collected until the global batch of synchronous training, N
mini-batches, is full; workers never wait. A gradient whose token is older than
a cutoff weighs nothing.

Our reading: the age of a token is the gradient's staleness in updates. A
gradient beyond the cutoff is discarded and takes no place in the global batch,
and its mini-batch is issued again instead of lost. The default cutoff is our
choice.

References:
  Su et al., `GBA: A Tuning-free Approach to Switch between Synchronous and
  Asynchronous Training for Recommendation Models
  <https://arxiv.org/abs/2205.11048>`_, NeurIPS 2022.
"""

from ga_jax.guards import checks
from ga_jax.policies.parts import base, buffer


def gba(num_workers: int, max_staleness: int = 3) -> base.Policy:
  """Averages N gradients that are not too stale per update.

  Args:
    num_workers: N.
    max_staleness: the most that counts, in updates, at least 0.

  Returns:
    A `Policy`.

  Raises:
    ValueError: an argument is out of its range.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  max_staleness = checks.integer('max_staleness', max_staleness, 0)
  return buffer.buffer(num_workers, max_staleness)
