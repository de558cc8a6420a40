"""Delay-adaptive SGD: full steps up to the usual delay, shorter ones beyond.

The step of a gradient is η N / max(N, τ): the paper's step sizes, constant
while the delay is below a bound and inversely proportional to it above, with
the number of workers N, which bounds the mean delay, as the bound. It is the
gradient that is divided here, by max(N, τ) / N, before momentum (our reading:
the paper's is plain SGD), with weight decay part of it as in SA.

References:
  Mishchenko, Bach, Even, Woodworth, `Asynchronous SGD Beats Minibatch SGD Under
  Arbitrary Delays <https://arxiv.org/abs/2206.07638>`_, NeurIPS 2022.
"""

import jax.numpy as jnp
import optax

from ga_jax.guards import checks
from ga_jax.rules.parts import links, optimizer
from ga_jax.rules.sa import scale_by_staleness


def delay_adaptive(
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """SGD whose gradients are divided where they are later than N updates.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: N, the staleness up to which nothing is divided.
    momentum: γ in [0, 1); 0 keeps no buffer.
    nesterov: whether to use Nesterov's form.
    weight_decay: L2 coefficient, added before the division.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`; `update` requires `staleness=`.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)

  def divisor(tau):
    return jnp.maximum(tau, num_workers) / num_workers  # η_τ = η N / max(N, τ)

  return optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    scale_by_staleness(divisor),
    links.momentum_trace(momentum, nesterov),
    links.scale_by_learning_rate(learning_rate),
  )
