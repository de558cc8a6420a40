"""DANA-Slim: momentum per worker before the server, which keeps nothing.

v_w ← γ v_w + g and u = γ v_w + g, with w the worker the gradient came from; the
server only descends, θ ← θ − η u, and sends θ itself. At a constant η that is
what DANA-Zero sends; after a change of η the two differ.

In the paper the buffers are the workers' own. Here, as a rule, the server holds
them and works them off as gradients arrive, which gives the same numbers as
long as no submission is lost. They belong to the gradient, not to the update,
so rounds can be averaged. Weight decay is added before the momentum, at the
server's parameters (our reading; a worker would add it at those it was sent).

References:
  Hakimi, Barkai, Gabel, Schuster, `Taming Momentum in a Distributed
  Asynchronous Environment <https://arxiv.org/abs/1907.11612>`_, 2019.
"""

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.multi_asgd import trace_per_worker
from ga_jax.rules.parts import links, optimizer


def worker_momentum(
  momentum: float, num_workers: int
) -> optimizer.AsyncOptimizer:
  """What a DANA-Slim worker makes of its gradient, γ v_w + g.

  Args:
    momentum: γ in [0, 1).
    num_workers: buffers to keep; `worker_id` must be below it.

  Returns:
    An `AsyncOptimizer` that corrects arriving gradients; `update` requires
    `worker_id=`.
  """
  traces = trace_per_worker(momentum, num_workers)

  def correct(grads, state, params=None, **extra):
    new, state = traces.update(grads, state, params, **extra)
    ahead = jax.tree.map(  # u = γ v_w + g, of the new v_w
      lambda g, v: g + jnp.asarray(momentum, v.dtype) * v, grads, new
    )
    return ahead, state

  return optimizer.correction(traces.init, correct, num_workers)


def dana_slim(
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """DANA-Slim: each worker's gradients with its own Nesterov momentum.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: number of workers, one buffer each.
    momentum: γ in [0, 1).
    weight_decay: L2 coefficient, added to the gradient before momentum.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`; `update` requires `worker_id=`.
  """
  return optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    worker_momentum(momentum, num_workers),
    links.scale_by_learning_rate(learning_rate),
  )
