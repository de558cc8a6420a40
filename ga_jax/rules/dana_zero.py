"""DANA-Zero: Multi-ASGD whose workers compute at an estimated future position.

Workers are sent θ̂ = θ − η γ Σ_j v_j, where the parameters will be once every
worker's momentum has been applied, with η that of the last update. One worker
at a constant η is sent Nesterov's trajectory; the server's own parameters are
not on it.

References:
  Hakimi, Barkai, Gabel, Schuster, `Taming Momentum in a Distributed
  Asynchronous Environment <https://arxiv.org/abs/1907.11612>`_, 2019.
"""

import optax

from ga_jax.rules.multi_asgd import trace_per_worker
from ga_jax.rules.parts import links, optimizer


def dana_lookahead(momentum: float, link: str | None = None):
  """θ − η γ Σ_j v_j for a chain that ends in (direction, learning rate).

  Args:
    momentum: γ.
    link: the field of the direction's state that holds the per-worker buffers,
      where the direction is wrapped; None where it is not.

  Returns:
    `lookahead(params, state) -> params`.
  """

  def lookahead(params, state):
    *_, direction, rate = state
    traces = direction if link is None else getattr(direction, link)
    step = rate.learning_rate * momentum
    return links.descend(params, step, traces.total)  # θ − η γ Σ_j v_j

  return lookahead


def dana_zero(
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """DANA-Zero: a buffer per worker and a look-ahead over all of them.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: number of workers, one buffer each.
    momentum: γ in [0, 1).
    weight_decay: L2 coefficient, added to the gradient before momentum.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`; `update` requires `worker_id=`, and workers must be
    sent `lookahead(params, state)`. It cannot average a round.
  """
  rule = optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    trace_per_worker(momentum, num_workers, keep_total=True),
    links.scale_by_learning_rate(learning_rate),
  )
  return optimizer.with_lookahead(rule, dana_lookahead(momentum))
