"""What a worker asks the cluster for: a part of a node's devices."""

import math
import os
from typing import NamedTuple

from ga_jax.guards import checks

ACCELERATORS = ('cpu', 'gpu', 'tpu')
_LEAST = 1e4  # Ray counts resources in steps of 1 / 10,000
_FRACTION = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
_JAX_TAKES = 0.75  # of a GPU's memory, where that variable says nothing


class Share(NamedTuple):
  """What one worker computes with.

  Attributes:
    accelerator: one of `ACCELERATORS`.
    devices_per_worker: how many of them it holds.
    workers_per_device: how many workers share one.
  """

  accelerator: str = 'cpu'
  devices_per_worker: int = 1
  workers_per_device: int = 1

  def checked(self) -> 'Share':
    """The same with Python's integers.

    Raises:
      ValueError: something is out of its range, or does not go together.
    """
    if self.accelerator not in ACCELERATORS:
      raise ValueError(
        f'accelerator must be one of {ACCELERATORS}, got {self.accelerator!r}'
      )
    devices, workers = (
      checks.integer(name, getattr(self, name), 1)
      for name in ('devices_per_worker', 'workers_per_device')
    )
    if workers > 1 and devices > 1:
      raise ValueError(
        f'workers_per_device must be 1 where devices_per_worker is {devices}'
      )
    if workers > 1 and self.accelerator == 'tpu':
      raise ValueError(
        'workers_per_device must be 1 on TPUs: a chip is of one process'
      )
    return Share(self.accelerator, devices, workers)

  def resources(self) -> dict[str, float]:
    """What Ray reserves for one worker, by Ray's names."""
    part = math.floor(_LEAST / self.workers_per_device) / _LEAST
    number = part if self.workers_per_device > 1 else self.devices_per_worker
    if self.accelerator == 'cpu':
      return {'CPU': number}
    return {'CPU': part, self.accelerator.upper(): number}

  def environment(self) -> dict[str, str]:
    """Environment variables of a worker: its platform, its part of a GPU."""
    if self.accelerator == 'cpu':
      return {'JAX_PLATFORMS': 'cpu'}
    if self.workers_per_device == 1:
      return {}
    whole = float(os.environ.get(_FRACTION, _JAX_TAKES))
    return {_FRACTION: f'{whole / self.workers_per_device:.4f}'}


CPU = Share()  # one for every worker
