"""GA with Adam: gradient and decoupled decay are divided by the same penalty.

Our choice where the paper leaves room: the direction u is the whole step of
AdamW, decoupled decay included, so that the decay is divided by G like the
gradient and counted in s. Directions have no unit here: where gradients are c
times as large, c times Adam's own epsilon makes the same path.

References:
  Barkai, Hakimi, Schuster, `Gap-Aware Mitigation of Gradient Staleness
  <https://arxiv.org/abs/1909.10802>`_, ICLR 2020.
"""

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.ga import scale_by_gap
from ga_jax.rules.parts import arguments, gap, links, numbers, optimizer


def beside_decay(
  direction: optax.GradientTransformation, weight_decay, mask=None
) -> optimizer.AsyncOptimizer:
  """A direction plus wd θ, where both are to be divided before.

  Args:
    direction: a transformation without learning rate, `optax.scale_by_adam()`.
    weight_decay: wd, above 0.
    mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer` whose `correct` makes a `GradAndDecay`.
  """
  link = links.decayed_weights(weight_decay, mask)

  def correct(grads, state, params=None, **extra):
    del extra
    zeros = jax.tree.map(jnp.zeros_like, grads)
    decay, _ = link.update(zeros, link.init(params), params)
    return gap.GradAndDecay(grads, decay), state

  def step(corrected, state, params=None, **extra):
    del extra
    u, state = direction.update(corrected.grads, state, params)
    return jax.tree.map(jnp.add, u, corrected.decay), state

  return optimizer.AsyncOptimizer(direction.init, correct, step)


def ga_adam(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  adam_eps: float = 1e-8,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
  decay: float = 0.999,
  eps: float = 1e-8,
  granularity: str = 'parameter',
) -> optimizer.AsyncOptimizer:
  """AdamW with the Gap-Aware penalty.

  The gradient is divided by G before Adam's moments, the decoupled decay wd θ
  by the same G; the direction is their sum, and all of it counts in s.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    b1: Adam's first decay, in [0, 1).
    b2: Adam's second decay, in [0, 1).
    adam_eps: Adam's epsilon, in units of the gradient.
    weight_decay: decoupled coefficient, multiplied by η as in `optax.adamw`.
    weight_decay_mask: as in `optax.add_decayed_weights`.
    decay: Γ in (0, 1).
    eps: ε > 0, in units of the direction: well below a usual one.
    granularity: 'parameter' or 'global', see `scale_by_gap`.

  Returns:
    An `AsyncOptimizer`; `update` requires `stale_params=`.
  """
  arguments.check_number('b1', b1, low=0.0, below=1.0)
  arguments.check_number('b2', b2, low=0.0, below=1.0)
  arguments.check_number('adam_eps', adam_eps, low=0.0)
  arguments.check_number('weight_decay', weight_decay, low=0.0)
  rate = links.scale_by_learning_rate(learning_rate)
  direction = optax.scale_by_adam(b1=b1, b2=b2, eps=adam_eps)
  if not numbers.is_zero(weight_decay):  # of 0 nothing is divided or added
    direction = beside_decay(direction, weight_decay, weight_decay_mask)
  return optimizer.chain(
    scale_by_gap(
      direction,
      max_learning_rate=learning_rate,
      decay=decay,
      eps=eps,
      granularity=granularity,
    ),
    rate,
  )
