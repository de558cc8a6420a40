"""DANA-Slim as it is meant: the momentum is the worker's, the server is plain.

Each worker keeps v ← γ v + g and submits γ v + g; the server does θ ← θ − η u
without momentum and sends its own parameters. At a constant η these follow what
DANA-Zero's workers are sent, and the server has no overhead. The rule
`dana_slim` computes the same with the buffers at the server.

References:
  Hakimi, Barkai, Gabel, Schuster, `Taming Momentum in a Distributed
  Asynchronous Environment <https://arxiv.org/abs/1907.11612>`_, 2019.
"""

from collections.abc import Callable
from typing import Any

import optax

from ga_jax.programs import base
from ga_jax.programs.gradient import gradient
from ga_jax.rules.parts.arguments import check_number
from ga_jax.rules.parts.links import decayed_weights


def dana_slim(
  loss_fn: Callable[..., tuple[Any, Any]],
  momentum: float = 0.9,
  weight_decay: float = 0.0,
) -> base.Program:
  """Submits γ v + g with v ← γ v + g kept by the worker.

  Args:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.
    momentum: γ in [0, 1).
    weight_decay: L2 coefficient, added to the gradient before momentum.

  Returns:
    A `Program` whose worker state is v.
  """
  check_number('momentum', momentum, low=0.0, below=1.0)
  worker = optax.chain(
    decayed_weights(weight_decay),
    optax.trace(momentum, nesterov=True),  # v ← γ v + g; γ v + g
  )
  plain = gradient(loss_fn)

  def run(worker_state, sent, work):
    submission, _ = plain.run((), sent, work)
    direction, worker_state = worker.update(
      submission.grads, worker_state, sent.params
    )
    return submission._replace(grads=direction), worker_state

  return base.Program(init=worker.init, run=run)
