"""Server rules: what an arriving gradient does to the parameters.

One method, one file; one line in `RULES`.
"""

from ga_jax.rules.asgd import asgd
from ga_jax.rules.base import (
  AsyncOptimizer,
  chain,
  lift,
  scale_by_learning_rate,
)
from ga_jax.rules.dana_ga import dana_ga
from ga_jax.rules.dana_zero import dana_zero
from ga_jax.rules.dc_asgd import dc_asgd
from ga_jax.rules.gap import GapMetrics, gap_metrics
from ga_jax.rules.gap_aware import gap_aware, gap_aware_adam, scale_by_gap
from ga_jax.rules.multi_asgd import multi_asgd
from ga_jax.rules.multi_steps import multi_steps
from ga_jax.rules.penalize_gap import penalize_gap
from ga_jax.rules.staleness_aware import scale_by_staleness, staleness_aware

RULES = {
  'asgd': asgd,
  'sa': staleness_aware,
  'ga': gap_aware,
  'ga_adam': gap_aware_adam,
  'multi_asgd': multi_asgd,
  'dana_zero': dana_zero,
  'dana_ga': dana_ga,
  'dc_asgd': dc_asgd,
}

__all__ = [
  'RULES',
  'AsyncOptimizer',
  'GapMetrics',
  'asgd',
  'chain',
  'dana_ga',
  'dana_zero',
  'dc_asgd',
  'gap_aware',
  'gap_aware_adam',
  'gap_metrics',
  'lift',
  'multi_asgd',
  'multi_steps',
  'penalize_gap',
  'scale_by_gap',
  'scale_by_learning_rate',
  'scale_by_staleness',
  'staleness_aware',
]
