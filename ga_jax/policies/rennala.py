"""Rennala SGD: mini-batches of gradients that are all fresh.

Workers compute gradients at the current version without a pause. The server
collects K of them, ignores those of earlier versions, and updates. Our reading:
the mini-batch of an ignored gradient is issued again.

References:
  Tyurin, Richtárik, `Optimal Time Complexities of Parallel Stochastic
  Optimization Methods Under a Fixed Computation Model
  <https://arxiv.org/abs/2305.12387>`_, NeurIPS 2023.
"""

from ga_jax.guards import checks
from ga_jax.policies.parts import base, buffer


def rennala(
  num_workers: int, batch_gradients: int | None = None
) -> base.Policy:
  """Averages K gradients of the current version per update.

  Args:
    num_workers: N, for the default only.
    batch_gradients: K, at least 1; by default N, which is our choice.

  Returns:
    A `Policy`.

  Raises:
    ValueError: an argument is out of its range.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  if batch_gradients is None:
    batch_gradients = num_workers
  batch_gradients = checks.integer('batch_gradients', batch_gradients, 1)
  return buffer.buffer(batch_gradients, max_staleness=0)
