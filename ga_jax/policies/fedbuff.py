"""FedBuff: an update per K buffered submissions.

Workers never wait. The discount for staleness is the rule's
(`staleness_discounted`), not the weight of a gradient here: the mean of a round
is divided by the sum of its weights, which would take the discount away again
where all are equally stale.

References:
  Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, `Federated Learning with
  Buffered Asynchronous Aggregation <https://arxiv.org/abs/2106.06639>`_,
  AISTATS 2022.
"""

from ga_jax.guards import checks
from ga_jax.policies.parts import base, buffer


def fedbuff(num_workers: int, buffer_size: int | None = None) -> base.Policy:
  """Averages K submissions per update.

  Args:
    num_workers: N, for the default only.
    buffer_size: K, at least 1; by default half of N, which is our choice.

  Returns:
    A `Policy`.

  Raises:
    ValueError: an argument is out of its range.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  if buffer_size is None:
    buffer_size = max(1, num_workers // 2)
  buffer_size = checks.integer('buffer_size', buffer_size, 1)
  return buffer.buffer(buffer_size)
