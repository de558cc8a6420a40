"""GA with one penalty for all parameters together.

The gap is the paper's, ‖θ − θs‖₂ / sqrt(k) for k parameters, C comes from the
mean of u² over all of them, and G is one number.

References:
  Barkai, Hakimi, Schuster, `Gap-Aware Mitigation of Gradient Staleness
  <https://arxiv.org/abs/1909.10802>`_, ICLR 2020.
"""

import optax

from ga_jax.rules.ga import ga
from ga_jax.rules.parts import optimizer


def ga_global(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
  decay: float = 0.999,
  eps: float = 1e-8,
) -> optimizer.AsyncOptimizer:
  """SGD with momentum whose gradients are all divided by the same penalty.

  Args:
    learning_rate: η, a number or a schedule of batches applied; its running
      maximum is η_max.
    momentum: γ in [0, 1); 0 keeps no buffer.
    nesterov: whether to use Nesterov's form.
    weight_decay: L2 coefficient, added to the gradient before the penalty.
    weight_decay_mask: as in `optax.add_decayed_weights`.
    decay: Γ in (0, 1).
    eps: ε > 0, in units of the direction: well below a usual one.

  Returns:
    An `AsyncOptimizer`, `ga` with `granularity='global'`.
  """
  return ga(
    learning_rate,
    momentum,
    nesterov,
    weight_decay,
    weight_decay_mask,
    decay,
    eps,
    granularity='global',
  )
