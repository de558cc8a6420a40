"""n-softsync: an update per N / n gradients, from any workers.

.. math::
  \\theta \\leftarrow \\theta - \\frac{\\eta}{c} \\sum \\alpha(\\tau)\\, g,
  \\qquad c = \\lfloor N / n \\rfloor

Every worker goes on at once with the parameters of now, so that a fast one may
be in a round twice. The mean staleness is about n. The factor α(τ) = 1/τ is the
rule's (`sa`), which meets each gradient before the average.

References:
  Zhang, Gupta, Lian, Liu, `Staleness-aware Async-SGD for Distributed Deep
  Learning <https://arxiv.org/abs/1511.05950>`_, IJCAI 2016.
"""

from ga_jax.guards import checks
from ga_jax.policies.parts import base, buffer


def softsync(num_workers: int, softsync_n: int = 1) -> base.Policy:
  """Averages ⌊N / n⌋ gradients per update.

  Args:
    num_workers: N.
    softsync_n: n, from 1 to N; n = N is asynchronous.

  Returns:
    A `Policy`.

  Raises:
    ValueError: an argument is out of its range.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  softsync_n = checks.integer(
    'softsync_n', softsync_n, 1, num_workers, 'num_workers'
  )
  return buffer.buffer(num_workers // softsync_n)
