"""Clocks: when a worker finishes. One clock family, one file."""

from ga_jax.clocks.base import Clock, Fault, task_times
from ga_jax.clocks.communication import with_communication
from ga_jax.clocks.constant import constant
from ga_jax.clocks.exponential import exponential
from ga_jax.clocks.faults import finish_time, with_fault
from ga_jax.clocks.gamma import heterogeneous, homogeneous
from ga_jax.clocks.pareto import pareto
from ga_jax.clocks.recorded import recorded, recorded_times

CLOCKS = {
  'homogeneous': homogeneous,
  'heterogeneous': heterogeneous,
  'constant': constant,
  'exponential': exponential,
  'pareto': pareto,
}

__all__ = [
  'CLOCKS',
  'Clock',
  'Fault',
  'constant',
  'exponential',
  'finish_time',
  'heterogeneous',
  'homogeneous',
  'pareto',
  'recorded',
  'recorded_times',
  'task_times',
  'with_communication',
  'with_fault',
]
