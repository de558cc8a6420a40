"""ASGD: asynchronous SGD, with one momentum buffer shared by all workers.

Every gradient is applied as if it were fresh, v ← γ v + g, θ ← θ − η v (with
Nesterov's form θ ← θ − η (γ v + g), NAG-ASGD). It is plain optax; what makes it
asynchronous is only that the gradients it is given are late.

References:
  Recht et al., `Hogwild! <https://arxiv.org/abs/1106.5730>`_, 2011;
  Dean et al., Large Scale Distributed Deep Networks, 2012.
"""

import optax

from ga_jax.rules.parts import links, optimizer


def asgd(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """Asynchronous SGD: `optax.sgd` with L2 decay, lifted to a rule.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    momentum: γ in [0, 1); 0 keeps no buffer.
    nesterov: whether to use Nesterov's form.
    weight_decay: L2 coefficient, added to the gradient before momentum.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`; with one worker `optax.sgd` bit for bit.

  Examples:
    >>> import ga_jax
    >>> rule = ga_jax.rules.asgd(0.1, momentum=0.9)
  """
  return optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    links.momentum_trace(momentum, nesterov),
    links.scale_by_learning_rate(learning_rate),
  )
