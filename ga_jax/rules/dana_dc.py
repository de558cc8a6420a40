"""DANA-DC: delay compensation on gradients, then DANA-Zero.

g ← g + λ g ⊙ g ⊙ (θ − θs), then a momentum buffer per worker and the look-ahead
over all of them. This is the literal form: θ are the server's parameters and θs
is the look-ahead that the worker was sent, so the term is not zero for a fresh
gradient: it is brought from the look-ahead back to the server's parameters, and
one worker is not DANA-Zero (our reading; the paper names the combination). With
λ = 0 it is.

References:
  Hakimi, Barkai, Gabel, Schuster, `Taming Momentum in a Distributed
  Asynchronous Environment <https://arxiv.org/abs/1907.11612>`_, 2019;
  Zheng et al., `Asynchronous Stochastic Gradient Descent with Delay
  Compensation <https://arxiv.org/abs/1609.08326>`_, ICML 2017.
"""

import optax

from ga_jax.rules.dana_zero import dana_lookahead
from ga_jax.rules.dc_asgd import compensate_delay
from ga_jax.rules.multi_asgd import trace_per_worker
from ga_jax.rules.parts import links, optimizer


def dana_dc(
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
  dc_lambda: float = 2.0,
) -> optimizer.AsyncOptimizer:
  """DANA-Zero whose arriving gradients are compensated for their delay.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: number of workers, one buffer each.
    momentum: γ in [0, 1).
    weight_decay: L2 coefficient, added after the compensation.
    weight_decay_mask: as in `optax.add_decayed_weights`.
    dc_lambda: λ >= 0.

  Returns:
    An `AsyncOptimizer`; `update` requires `stale_params=` and `worker_id=`, and
    workers must be sent `lookahead(params, state)`. It cannot average a round.
  """
  rule = optimizer.chain(
    compensate_delay(dc_lambda),
    links.decayed_weights(weight_decay, weight_decay_mask),
    trace_per_worker(momentum, num_workers, keep_total=True),
    links.scale_by_learning_rate(learning_rate),
  )
  return optimizer.with_lookahead(rule, dana_lookahead(momentum))
