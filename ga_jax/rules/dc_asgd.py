"""DC-ASGD-c: delay compensation with a constant coefficient.

g ← g + λ g ⊙ g ⊙ (θ − θs): a first-order expansion of the gradient from the
parameters the worker was sent to those of the server, with the diagonal of the
outer product of gradients in place of the Hessian. Weight decay is known at the
server's parameters exactly, needs no compensation and is added after it.

References:
  Zheng et al., `Asynchronous Stochastic Gradient Descent with Delay
  Compensation <https://arxiv.org/abs/1609.08326>`_, ICML 2017, equation 10.
"""

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import arguments, links, optimizer


def compensated(g, dc_lambda, p, ps) -> jax.Array:
  """g + λ g ⊙ g ⊙ (θ − θs), of one leaf; of complex ones g ⊙ conj g.

  Args:
    g: the gradient.
    dc_lambda: λ, a scalar or like `g`.
    p: θ, like `g`.
    ps: θs, like `g`.

  Returns:
    The compensated gradient, in the dtype of `g`.
  """
  moved = (jnp.asarray(p) - jnp.asarray(ps)).astype(g.dtype)
  scale = jnp.asarray(dc_lambda, g.dtype)
  return g + scale * g * jnp.conj(g) * moved  # eq. 10


def compensate_delay(dc_lambda: float) -> optimizer.AsyncOptimizer:
  """Adds λ g ⊙ g ⊙ (θ − θs) to an arriving gradient.

  Args:
    dc_lambda: λ >= 0; 0.04 in the paper's CIFAR-10 runs.

  Returns:
    An `AsyncOptimizer`; `update` requires `stale_params=`.
  """
  arguments.check_number('dc_lambda', dc_lambda, low=0.0)

  def init(params):
    del params
    return optax.EmptyState()

  def correct(grads, state, params=None, *, stale_params=None, **extra):
    del extra
    arguments.check_stale_params('compensate_delay', stale_params, params)

    grads = jax.tree.map(
      lambda g, p, ps: compensated(g, dc_lambda, p, ps),
      grads,
      params,
      stale_params,
    )
    return grads, state

  return optimizer.correction(init, correct)


def dc_asgd(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
  dc_lambda: float = 0.04,
) -> optimizer.AsyncOptimizer:
  """Delay-compensated asynchronous SGD with a constant λ.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    momentum: γ in [0, 1); 0 keeps no buffer.
    nesterov: whether to use Nesterov's form.
    weight_decay: L2 coefficient, added after the compensation.
    weight_decay_mask: as in `optax.add_decayed_weights`.
    dc_lambda: λ >= 0.

  Returns:
    An `AsyncOptimizer`; `update` requires `stale_params=`.
  """
  return optimizer.chain(
    compensate_delay(dc_lambda),
    links.decayed_weights(weight_decay, weight_decay_mask),
    links.momentum_trace(momentum, nesterov),
    links.scale_by_learning_rate(learning_rate),
  )
