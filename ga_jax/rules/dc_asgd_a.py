"""DC-ASGD-a: delay compensation whose coefficient adapts to the gradients.

g ← g + λ_t g ⊙ g ⊙ (θ − θs) with, element-wise, λ_t = λ0 / sqrt(MS + 1e-7) and
MS ← m MS + (1 − m) g ⊙ g, so that the compensation is of the gradient's own
size, whatever that is. MS takes the gradient in before λ_t is made of it (our
reading; from MS = 0 the first λ would be 6,300). Weight decay is added after
the compensation, as in DC-ASGD-c. The 1e-7 is the paper's, in units of a
squared gradient: those well below 3e-4 are compensated less than others.

References:
  Zheng et al., `Asynchronous Stochastic Gradient Descent with Delay
  Compensation <https://arxiv.org/abs/1609.08326>`_, ICML 2017.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.dc_asgd import compensated
from ga_jax.rules.parts import arguments, links, numbers, optimizer

EPS = 1e-7  # of a squared gradient


class CompensateDelayAdaptivelyState(NamedTuple):
  """State of `compensate_delay_adaptively`."""

  mean_square: optax.Updates  # MS, like params, float32 or wider.


def compensate_delay_adaptively(
  dc_lambda: float = 2.0, dc_decay: float = 0.95
) -> optimizer.AsyncOptimizer:
  """Adds λ_t g ⊙ g ⊙ (θ − θs) to an arriving gradient.

  Args:
    dc_lambda: λ0 >= 0.
    dc_decay: m in [0, 1), of the moving average of squared gradients.

  Returns:
    An `AsyncOptimizer`; `update` requires `stale_params=`.
  """
  arguments.check_number('dc_lambda', dc_lambda, low=0.0)
  arguments.check_number('dc_decay', dc_decay, low=0.0, below=1.0)

  def init(params):
    return CompensateDelayAdaptivelyState(numbers.moments(params))

  def correct(grads, state, params=None, *, stale_params=None, **extra):
    del extra
    arguments.check_stale_params(
      'compensate_delay_adaptively', stale_params, params
    )

    def observe(ms, g):  # MS ← m MS + (1 − m) g ⊙ g
      m = jnp.asarray(dc_decay, ms.dtype)
      return m * ms + (1 - m) * numbers.abs_sq(g)

    def compensate(g, p, ps, ms):  # λ_t = λ0 / sqrt(MS + 1e-7)
      scale = jnp.asarray(dc_lambda, ms.dtype) / jnp.sqrt(ms + EPS)
      return compensated(g, scale, p, ps)

    mean_square = jax.tree.map(observe, state.mean_square, grads)
    grads = jax.tree.map(compensate, grads, params, stale_params, mean_square)
    return grads, CompensateDelayAdaptivelyState(mean_square)

  return optimizer.correction(init, correct)


def dc_asgd_a(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
  dc_lambda: float = 2.0,
  dc_decay: float = 0.95,
) -> optimizer.AsyncOptimizer:
  """Delay-compensated asynchronous SGD with an adaptive λ.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    momentum: γ in [0, 1); 0 keeps no buffer.
    nesterov: whether to use Nesterov's form.
    weight_decay: L2 coefficient, added after the compensation.
    weight_decay_mask: as in `optax.add_decayed_weights`.
    dc_lambda: λ0 >= 0; 2 in the paper's CIFAR-10 runs.
    dc_decay: m in [0, 1); 0.95 there.

  Returns:
    An `AsyncOptimizer`; `update` requires `stale_params=`.
  """
  return optimizer.chain(
    compensate_delay_adaptively(dc_lambda, dc_decay),
    links.decayed_weights(weight_decay, weight_decay_mask),
    links.momentum_trace(momentum, nesterov),
    links.scale_by_learning_rate(learning_rate),
  )
