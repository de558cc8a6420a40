"""Asynchronous Adam: AdamW that takes every gradient as if it were fresh.

What GA with Adam's moments is compared with: the same without the penalty.

References:
  Kingma, Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, ICLR 2015;
  Loshchilov, Hutter, `Decoupled Weight Decay Regularization
  <https://arxiv.org/abs/1711.05101>`_, ICLR 2019.
"""

import optax

from ga_jax.rules.parts import arguments, links, optimizer


def adam(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  adam_eps: float = 1e-8,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """Asynchronous Adam: `optax.adamw`, lifted to a rule.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    b1: first decay, in [0, 1).
    b2: second decay, in [0, 1).
    adam_eps: Adam's epsilon, in units of the gradient.
    weight_decay: decoupled coefficient, multiplied by η as in `optax.adamw`.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`; with one worker `optax.adamw` bit for bit.
  """
  arguments.check_number('b1', b1, low=0.0, below=1.0)
  arguments.check_number('b2', b2, low=0.0, below=1.0)
  arguments.check_number('adam_eps', adam_eps, low=0.0)
  return optimizer.chain(
    optax.scale_by_adam(b1=b1, b2=b2, eps=adam_eps),
    links.decayed_weights(weight_decay, weight_decay_mask),
    links.scale_by_learning_rate(learning_rate),
  )
