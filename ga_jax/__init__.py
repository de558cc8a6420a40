"""Asynchronous training in JAX: Gap-Aware and what it is compared with."""

from ga_jax import clocks, compression, policies, programs, rules
from ga_jax.job.job import Job
from ga_jax.job.memory import Resident, resident
from ga_jax.job.result import Result
from ga_jax.job.source import Source
from ga_jax.live.options import Live
from ga_jax.live.result import LiveResult
from ga_jax.live.threads import run_on_threads
from ga_jax.record.trace import Trace, TraceError
from ga_jax.rules import (
  AsyncOptimizer,
  GapMetrics,
  chain,
  ga,
  ga_adam,
  gap_metrics,
  gap_metrics_by_group,
  lift,
  multi_steps,
  penalize_gap,
  scale_by_gap,
)
from ga_jax.server.ledger import Ledger, Receipt, Ticket
from ga_jax.server.server import Server
from ga_jax.server.update import ServerState, Snapshot
from ga_jax.simulation.many import simulate_many
from ga_jax.simulation.simulate import simulate
from ga_jax.simulation.virtual_cluster import schedule

__version__ = '0.1.0'

__all__ = [
  'AsyncOptimizer',
  'GapMetrics',
  'Job',
  'Ledger',
  'Live',
  'LiveResult',
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
  'ga',
  'ga_adam',
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
    from ga_jax.live.ray import run

    return run.run_on_ray
  if rules.OTHER_NAMES.get(name) in __all__:  # gap_aware is ga
    return getattr(rules, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
