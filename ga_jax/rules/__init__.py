"""Server rules: what an arriving gradient does to the parameters.

One method, one file; one line in `RULES`.
"""

from ga_jax.rules.adam import adam
from ga_jax.rules.asgd import asgd
from ga_jax.rules.clip_by_global_norm import clip_by_global_norm
from ga_jax.rules.dana_dc import dana_dc
from ga_jax.rules.dana_ga import dana_ga
from ga_jax.rules.dana_slim import dana_slim
from ga_jax.rules.dana_zero import dana_zero
from ga_jax.rules.dc_asgd import dc_asgd
from ga_jax.rules.dc_asgd_a import dc_asgd_adaptive
from ga_jax.rules.delay_adaptive import delay_adaptive
from ga_jax.rules.delayed_nesterov import delayed_nesterov
from ga_jax.rules.dynsgd import dynsgd
from ga_jax.rules.gap_aware import gap_aware, gap_aware_adam, scale_by_gap
from ga_jax.rules.lwp import lwp
from ga_jax.rules.multi_asgd import multi_asgd
from ga_jax.rules.multi_steps import multi_steps
from ga_jax.rules.ormo import ormo
from ga_jax.rules.parts.gap import GapMetrics, gap_metrics, gap_metrics_by_group
from ga_jax.rules.parts.links import scale_by_learning_rate
from ga_jax.rules.parts.optimizer import AsyncOptimizer, chain, lift
from ga_jax.rules.penalize_gap import penalize_gap
from ga_jax.rules.smega2 import smega2
from ga_jax.rules.staleness_aware import scale_by_staleness, staleness_aware
from ga_jax.rules.staleness_discounted import staleness_discounted

RULES = {
  'asgd': asgd,
  'sa': staleness_aware,
  'dynsgd': dynsgd,
  'staleness_discounted': staleness_discounted,
  'delay_adaptive': delay_adaptive,
  'adam': adam,
  'ga': gap_aware,
  'ga_adam': gap_aware_adam,
  'dc_asgd': dc_asgd,
  'dc_asgd_a': dc_asgd_adaptive,
  'multi_asgd': multi_asgd,
  'dana_zero': dana_zero,
  'dana_slim': dana_slim,
  'dana_dc': dana_dc,
  'dana_ga': dana_ga,
  'lwp': lwp,
  'smega2': smega2,
  'ormo': ormo,
  'delayed_nesterov': delayed_nesterov,
}

__all__ = [
  'RULES',
  'AsyncOptimizer',
  'GapMetrics',
  'adam',
  'asgd',
  'chain',
  'clip_by_global_norm',
  'dana_dc',
  'dana_ga',
  'dana_slim',
  'dana_zero',
  'dc_asgd',
  'dc_asgd_adaptive',
  'delay_adaptive',
  'delayed_nesterov',
  'dynsgd',
  'gap_aware',
  'gap_aware_adam',
  'gap_metrics',
  'gap_metrics_by_group',
  'lift',
  'lwp',
  'multi_asgd',
  'multi_steps',
  'ormo',
  'penalize_gap',
  'scale_by_gap',
  'scale_by_learning_rate',
  'scale_by_staleness',
  'smega2',
  'staleness_aware',
  'staleness_discounted',
]
