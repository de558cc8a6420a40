"""K-async SGD: the first K gradients close a round, the others run on.

Workers that arrived wait for the round to close and start at the new version.
Those that had not arrived go on with what they are computing, and it counts, as
a stale gradient, in a later round.

References:
  Dutta, Joshi, Ghosh, Dube, Nagpurkar, `Slow and Stale Gradients Can Win the
  Race: Error-Runtime Trade-offs in Distributed SGD
  <https://arxiv.org/abs/1803.01113>`_, AISTATS 2018.
"""

from ga_jax.policies.parts import barrier, base


def k_async(num_workers: int, wait_for: int | None = None) -> base.Policy:
  """Averages K gradients per update, stale ones too.

  Args:
    num_workers: N.
    wait_for: K, from 1 to N; by default half of N.

  Returns:
    A `Policy`; K = N is synchronous, K = 1 asynchronous.

  Raises:
    ValueError: an argument is out of its range.
  """
  return barrier.barrier(barrier.wait_for_or_half(num_workers, wait_for))
