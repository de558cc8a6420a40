"""K-sync SGD: the first K gradients of a round count, the others are cancelled.

All workers start a round at the same version. When K have arrived the server
averages and updates, the other N − K drop what they are computing, and all
start at the new version. Our reading: a mini-batch that was cancelled is issued
again.

References:
  Dutta, Joshi, Ghosh, Dube, Nagpurkar, `Slow and Stale Gradients Can Win the
  Race: Error-Runtime Trade-offs in Distributed SGD
  <https://arxiv.org/abs/1803.01113>`_, AISTATS 2018.
"""

from ga_jax.policies.parts import barrier, base


def k_sync(num_workers: int, wait_for: int | None = None) -> base.Policy:
  """Averages the first K gradients of a round and restarts the others.

  Args:
    num_workers: N.
    wait_for: K, from 1 to N; by default half of N.

  Returns:
    A `Policy`; K = N is synchronous.

  Raises:
    ValueError: an argument is out of its range.
  """
  wait_for = barrier.wait_for_or_half(num_workers, wait_for)
  return barrier.barrier(wait_for, fresh=True, cancels=True)
