"""DynSGD: the learning rate of a gradient falls with its staleness.

g ← g / (τ + 1), per gradient and before any averaging. Unlike SA a gradient one
update late is halved already. Weight decay is part of the gradient, and a
momentum buffer may follow (our reading: the paper's is plain SGD).

References:
  Jiang, Cui, Zhang, Yu, `Heterogeneity-aware Distributed Parameter Servers
  <https://doi.org/10.1145/3035918.3035933>`_, SIGMOD 2017.
"""

import optax

from ga_jax.rules.parts import links, optimizer
from ga_jax.rules.sa import scale_by_staleness


def dynsgd(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """SGD whose gradients are divided by their staleness plus one.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    momentum: γ in [0, 1); 0 keeps no buffer.
    nesterov: whether to use Nesterov's form.
    weight_decay: L2 coefficient, added before the division.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`; `update` requires `staleness=`.
  """

  def divisor(tau):
    return tau + 1.0  # η_τ = η / (τ + 1)

  return optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    scale_by_staleness(divisor),
    links.momentum_trace(momentum, nesterov),
    links.scale_by_learning_rate(learning_rate),
  )
