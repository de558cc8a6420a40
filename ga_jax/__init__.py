"""Asynchronous training in JAX: Gap-Aware and what it is compared with."""

from ga_jax import clocks, compression, policies, programs, rules
from ga_jax.kernel import ServerState, Snapshot
from ga_jax.ledger import Ledger, Receipt, Ticket
from ga_jax.rules import (
  AsyncOptimizer,
  GapMetrics,
  chain,
  gap_aware,
  gap_aware_adam,
  gap_metrics,
  gap_metrics_by_group,
  lift,
  multi_steps,
  penalize_gap,
  scale_by_gap,
)
from ga_jax.runtimes.cluster import schedule
from ga_jax.runtimes.job import Source
from ga_jax.runtimes.many import simulate_many
from ga_jax.runtimes.memory import Resident, resident
from ga_jax.runtimes.simulate import Result, simulate
from ga_jax.runtimes.threads import run_on_threads
from ga_jax.server import Server
from ga_jax.trace import Trace, TraceError

__version__ = '0.1.0'

__all__ = [
  'AsyncOptimizer',
  'GapMetrics',
  'Ledger',
  'Receipt',
  'Resident',
  'Result',
  'Server',
  'ServerState',
  'Snapshot',
  'Source',
  'Ticket',
  'Trace',
  'TraceError',
  'chain',
  'clocks',
  'compression',
  'gap_aware',
  'gap_aware_adam',
  'gap_metrics',
  'gap_metrics_by_group',
  'lift',
  'multi_steps',
  'penalize_gap',
  'policies',
  'programs',
  'resident',
  'rules',
  'run_on_ray',
  'run_on_threads',
  'scale_by_gap',
  'schedule',
  'simulate',
  'simulate_many',
]


def __getattr__(name: str):
  if name == 'run_on_ray':  # Ray is an extra, and takes its time to import
    from ga_jax.runtimes import ray

    return ray.run_on_ray
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
