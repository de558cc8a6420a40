"""LWP: linear weight prediction, a look-ahead along one shared velocity.

Momentum SGD, v ← γ v + g and θ ← θ − η v, whose workers are sent θ − τ̂ η v,
where the parameters will be after τ̂ more updates if the velocity stays, with η
that of the last update. The paper predicts over a pipeline's known delay (its
velocity form); our reading is that of a parameter server, where the delay to
expect with N equally fast workers is τ̂ = N − 1.

References:
  Kosson, Chiley, Venigalla, Hestness, Köster, `Pipelined Backpropagation at
  Scale: Training Large Models without Batches
  <https://arxiv.org/abs/2003.11666>`_, MLSys 2021.
"""

import optax

from ga_jax.guards import checks
from ga_jax.rules.parts import arguments, links, numbers, optimizer


def lwp(
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
  horizon: float | None = None,
) -> optimizer.AsyncOptimizer:
  """Momentum SGD whose workers are sent a linear prediction.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: N, for the default horizon.
    momentum: γ in [0, 1).
    weight_decay: L2 coefficient, added to the gradient before momentum.
    weight_decay_mask: as in `optax.add_decayed_weights`.
    horizon: τ̂ >= 0, the staleness to expect, in server updates; None for N − 1,
      right where every gradient is an update of its own.

  Returns:
    An `AsyncOptimizer`; workers must be sent `lookahead(params, state)`. One
    worker is momentum SGD.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  arguments.check_number('momentum', momentum, low=0.0, below=1.0)
  if horizon is None:
    horizon = num_workers - 1
  arguments.check_number('horizon', horizon, low=0.0)

  def lookahead(params, state):
    *_, velocity, rate = state
    step = rate.learning_rate * numbers.float_scalar(horizon)
    return links.descend(params, step, velocity.trace)  # θ − τ̂ η v

  rule = optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    optax.trace(momentum),  # with γ = 0 too: the prediction needs v
    links.scale_by_learning_rate(learning_rate),
  )
  return optimizer.with_lookahead(rule, lookahead)
