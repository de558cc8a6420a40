"""Clocks: when a worker finishes. One clock family, one file."""

from ga_jax.clocks.base import Clock, task_times
from ga_jax.clocks.communication import with_communication
from ga_jax.clocks.constant import constant
from ga_jax.clocks.gamma import heterogeneous, homogeneous

CLOCKS = {
  'homogeneous': homogeneous,
  'heterogeneous': heterogeneous,
  'constant': constant,
}

__all__ = [
  'CLOCKS',
  'Clock',
  'constant',
  'heterogeneous',
  'homogeneous',
  'task_times',
  'with_communication',
]
