"""DANA-GA: the Gap-Aware penalty on gradients, then DANA-Zero.

The gap is measured to the look-ahead that the worker was sent, and the
direction whose moving average gives C is the worker's own momentum buffer, for
that is what one update applies (our reading; the paper names the combination).

References:
  Barkai, Hakimi, Schuster, `Gap-Aware Mitigation of Gradient Staleness
  <https://arxiv.org/abs/1909.10802>`_, ICLR 2020;
  Hakimi, Barkai, Gabel, Schuster, `Taming Momentum in a Distributed
  Asynchronous Environment <https://arxiv.org/abs/1907.11612>`_, 2019.
"""

import optax

from ga_jax.rules.dana_zero import dana_lookahead
from ga_jax.rules.ga import scale_by_gap
from ga_jax.rules.multi_asgd import trace_per_worker
from ga_jax.rules.parts import arguments, links, optimizer


def dana_ga(
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
  decay: float = 0.999,
  eps: float = 1e-8,
  granularity: str = 'parameter',
) -> optimizer.AsyncOptimizer:
  """DANA-Zero whose arriving gradients are penalised by their gap.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: number of workers, one buffer each.
    momentum: γ in [0, 1).
    weight_decay: L2 coefficient, added to the gradient before the penalty.
    weight_decay_mask: as in `optax.add_decayed_weights`.
    decay: Γ in (0, 1).
    eps: ε > 0, in units of the direction: well below a usual one.
    granularity: 'parameter' or 'global', see `scale_by_gap`.

  Returns:
    An `AsyncOptimizer`; `update` requires `stale_params=`, `staleness=` (a
    fresh gradient is at a look-ahead too and must not be penalised for it) and
    `worker_id=`. It cannot average a round.
  """
  rate = links.scale_by_learning_rate(learning_rate)
  link = scale_by_gap(
    trace_per_worker(momentum, num_workers, keep_total=True),
    max_learning_rate=learning_rate,
    decay=decay,
    eps=eps,
    granularity=granularity,
  )

  def correct(grads, state, params=None, *, staleness=None, **extra):
    arguments.require('dana_ga', 'staleness', staleness, arguments.STALENESS)
    return link.correct(grads, state, params, staleness=staleness, **extra)

  rule = optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    optimizer.AsyncOptimizer(
      link.init, correct, link.step, num_workers=num_workers
    ),
    rate,
  )
  return optimizer.with_lookahead(
    rule, dana_lookahead(momentum, link='direction')
  )
