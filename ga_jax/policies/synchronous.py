"""Synchronous SGD (SSGD): a barrier per update.

The server waits for one gradient of every live worker, all of the same version,
averages them, updates once and sends everybody on. Where a worker leaves or its
lease expires, the barrier stands among those that are left.

References:
  Chen et al., `Revisiting Distributed Synchronous SGD
  <https://arxiv.org/abs/1604.00981>`_, 2016.
"""

from ga_jax.policies.parts import barrier, base


def synchronous() -> base.Policy:
  """Averages one gradient of every live worker per update.

  Returns:
    A `Policy` that accumulates.
  """
  return barrier.barrier(fresh=True)
