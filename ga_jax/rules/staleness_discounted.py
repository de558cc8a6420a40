"""Staleness discount: gradients weigh a power of their staleness.

g ← g / (1 + τ)^a, the polynomial weight of FedAsync, which FedBuff takes with
a = 1/2. FedAsync mixes a worker's model into the server's with that weight; our
reading puts it on the gradient, as FedBuff does with what a worker moved, with
weight decay part of it and momentum after it, as in SA.

References:
  Xie, Koyejo, Gupta, `Asynchronous Federated Optimization
  <https://arxiv.org/abs/1903.03934>`_, 2019;
  Nguyen et al., `Federated Learning with Buffered Asynchronous Aggregation
  <https://arxiv.org/abs/2106.06639>`_, AISTATS 2022.
"""

import optax

from ga_jax.rules.parts import arguments, links, numbers, optimizer
from ga_jax.rules.sa import scale_by_staleness


def staleness_discounted(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
  staleness_exponent: float = 0.5,
) -> optimizer.AsyncOptimizer:
  """SGD whose gradients are divided by a power of their staleness plus one.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    momentum: γ in [0, 1); 0 keeps no buffer.
    nesterov: whether to use Nesterov's form.
    weight_decay: L2 coefficient, added before the division.
    weight_decay_mask: as in `optax.add_decayed_weights`.
    staleness_exponent: a >= 0; 0 is ASGD, 1 DynSGD.

  Returns:
    An `AsyncOptimizer`; `update` requires `staleness=`.
  """
  arguments.check_number('staleness_exponent', staleness_exponent, low=0.0)

  def divisor(tau):
    return (1.0 + tau) ** numbers.float_scalar(staleness_exponent)

  return optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    scale_by_staleness(divisor),
    links.momentum_trace(momentum, nesterov),
    links.scale_by_learning_rate(learning_rate),
  )
