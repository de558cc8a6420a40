"""Ringmaster ASGD: asynchronous, but gradients that are too stale are ignored.

A gradient with a delay of R updates or more is discarded and its worker starts
again at the current version; every other one is applied at once. Our reading:
the mini-batch of an ignored gradient is issued again. The paper sets R from the
noise and the accuracy that is aimed at; the default here is our choice.

References:
  Maranjyan, Tyurin, Richtárik, `Ringmaster ASGD: The First Asynchronous SGD
  with Optimal Time Complexity <https://arxiv.org/abs/2501.16168>`_, ICML 2025.
"""

from ga_jax.guards import checks
from ga_jax.policies.parts import base, buffer


def ringmaster(num_workers: int, max_delay: int | None = None) -> base.Policy:
  """Applies each gradient whose staleness is below R as it arrives.

  Args:
    num_workers: N, for the default only.
    max_delay: R, in updates, at least 1; by default N.

  Returns:
    A `Policy` whose rounds hold one gradient.

  Raises:
    ValueError: an argument is out of its range.
  """
  return buffer.buffer(1, delay(num_workers, max_delay) - 1)


def delay(num_workers: int, max_delay: int | None) -> int:
  """R, as asked for or by default.

  Raises:
    ValueError: `num_workers` or `max_delay` is out of its range.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  if max_delay is None:
    return num_workers
  max_delay = checks.integer('max_delay', max_delay, 1)
  return max_delay
