"""Synchronous SGD with backup workers: the slowest of a round are not awaited.

A round closes with its first N − b gradients, all of the current version. What
arrives later is of an earlier version and discarded, and its worker starts at
the current one. Our reading: the paper drops a straggler's mini-batch for good,
here it is issued again.

References:
  Chen, Pan, Monga, Bengio, Jozefowicz, `Revisiting Distributed Synchronous SGD
  <https://arxiv.org/abs/1604.00981>`_, 2016.
"""

from ga_jax.guards import checks
from ga_jax.policies.parts import barrier, base


def backup_workers(num_workers: int, backups: int | None = None) -> base.Policy:
  """Averages the first N − b gradients of every round.

  Args:
    num_workers: N.
    backups: b, from 0 (synchronous) to N − 1; by default 1, and 0 where there
      is but one worker.

  Returns:
    A `Policy`.

  Raises:
    ValueError: an argument is out of its range.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  if backups is None:
    backups = min(1, num_workers - 1)
  backups = checks.integer(
    'backups', backups, 0, num_workers - 1, 'num_workers-1'
  )
  return barrier.barrier(num_workers - backups, fresh=True)
