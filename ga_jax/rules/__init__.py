"""Server rules: what an arriving gradient does to the parameters.

One method, one file, one line in `RULES`; it has one name wherever it stands.
`ga_global` is not in the table: there it is `ga` with its granularity.
"""

from ga_jax.rules.adam import adam
from ga_jax.rules.asgd import asgd
from ga_jax.rules.clip_by_global_norm import clip_by_global_norm
from ga_jax.rules.dana_dc import dana_dc
from ga_jax.rules.dana_ga import dana_ga
from ga_jax.rules.dana_slim import dana_slim
from ga_jax.rules.dana_zero import dana_zero
from ga_jax.rules.dc_asgd import dc_asgd
from ga_jax.rules.dc_asgd_a import dc_asgd_a
from ga_jax.rules.delay_adaptive import delay_adaptive
from ga_jax.rules.delayed_nesterov import delayed_nesterov
from ga_jax.rules.dynsgd import dynsgd
from ga_jax.rules.ga import ga, scale_by_gap
from ga_jax.rules.ga_adam import ga_adam
from ga_jax.rules.ga_global import ga_global
from ga_jax.rules.lwp import lwp
from ga_jax.rules.multi_asgd import multi_asgd
from ga_jax.rules.multi_steps import multi_steps
from ga_jax.rules.ormo import ormo
from ga_jax.rules.parts.gap_metrics import (
  GapMetrics,
  gap_metrics,
  gap_metrics_by_group,
)
from ga_jax.rules.parts.links import scale_by_learning_rate
from ga_jax.rules.parts.optimizer import (
  AsyncOptimizer,
  chain,
  correction,
  leave,
  lift,
  with_lookahead,
)
from ga_jax.rules.penalize_gap import penalize_gap
from ga_jax.rules.sa import sa, scale_by_staleness
from ga_jax.rules.smega2 import smega2
from ga_jax.rules.staleness_discounted import staleness_discounted

RULES = {
  'asgd': asgd,
  'sa': sa,
  'dynsgd': dynsgd,
  'staleness_discounted': staleness_discounted,
  'delay_adaptive': delay_adaptive,
  'adam': adam,
  'ga': ga,
  'ga_adam': ga_adam,
  'dc_asgd': dc_asgd,
  'dc_asgd_a': dc_asgd_a,
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
# Other names of them, in Python and on the command line.
OTHER_NAMES = {
  'dc_asgd_adaptive': 'dc_asgd_a',
  'gap_aware': 'ga',
  'gap_aware_adam': 'ga_adam',
  'staleness_aware': 'sa',
}

__all__ = [
  'OTHER_NAMES',
  'RULES',
  'AsyncOptimizer',
  'GapMetrics',
  'adam',
  'asgd',
  'chain',
  'clip_by_global_norm',
  'correction',
  'dana_dc',
  'dana_ga',
  'dana_slim',
  'dana_zero',
  'dc_asgd',
  'dc_asgd_a',
  'delay_adaptive',
  'delayed_nesterov',
  'dynsgd',
  'ga',
  'ga_adam',
  'ga_global',
  'gap_metrics',
  'gap_metrics_by_group',
  'leave',
  'lift',
  'lwp',
  'multi_asgd',
  'multi_steps',
  'ormo',
  'penalize_gap',
  'sa',
  'scale_by_gap',
  'scale_by_learning_rate',
  'scale_by_staleness',
  'smega2',
  'staleness_discounted',
  'with_lookahead',
]


def __getattr__(name: str):
  if name in OTHER_NAMES:
    return RULES[OTHER_NAMES[name]]
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
