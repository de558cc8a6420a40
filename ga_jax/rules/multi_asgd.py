"""Multi-ASGD: one momentum buffer per worker.

v_w ← γ v_w + g; θ ← θ − η v_w, with w the worker the gradient came from. The
look-ahead of DANA needs Σ_j v_j, so the running sum is kept beside the buffers:
S ← S + v_w(new) − v_w(old) costs O(k) for k parameters, not O(N k).

References:
  Hakimi, Barkai, Gabel, Schuster, `Taming Momentum in a Distributed
  Asynchronous Environment <https://arxiv.org/abs/1907.11612>`_, 2019.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.guards import checks
from ga_jax.kernels import one_row
from ga_jax.rules.parts import arguments, links, numbers, optimizer


class TracePerWorkerState(NamedTuple):
  """State of `trace_per_worker`."""

  traces: optax.Updates  # v, each leaf [num_workers, *shape of the parameter].
  total: optax.Updates | None  # S = Σ_j v_j, like params, float32 or wider.

  @property
  def num_workers(self) -> int:
    """How many buffers there are."""
    return min((len(v) for v in jax.tree.leaves(self.traces)), default=0)

  def leave(self, worker_id) -> 'TracePerWorkerState':
    """v_w ← 0 of a worker that left, and S without it.

    Else S would point for ever where its last gradients did.
    """

    def cleared(v):
      row = jnp.zeros_like(v[:1])
      return jax.lax.dynamic_update_slice_in_dim(v, row, worker_id, 0)

    traces, total = jax.tree.map(cleared, self.traces), self.total
    if total is not None:
      total = jax.tree.map(
        lambda s, v: jnp.sum(v, axis=0, dtype=s.dtype), total, traces
      )
    return TracePerWorkerState(traces, total)


def trace_per_worker(
  momentum: float, num_workers: int, *, keep_total: bool = False
) -> optimizer.AsyncOptimizer:
  """Momentum with a buffer per worker, as a direction (no learning rate).

  Args:
    momentum: γ in [0, 1).
    num_workers: buffers to keep; `worker_id` must be below it.
    keep_total: whether to keep the running sum of all buffers.

  Returns:
    An `AsyncOptimizer`; `update` requires `worker_id=`.
  """
  arguments.check_number('momentum', momentum, low=0.0, below=1.0)
  num_workers = checks.integer('num_workers', num_workers, 1)

  def init(params):
    def buffers(p):
      one = jnp.zeros_like(p, jnp.result_type(p))
      # Through an axis more, so that every buffer is laid out like it.
      return jnp.broadcast_to(one[None], (num_workers, *one.shape))

    return TracePerWorkerState(
      traces=jax.tree.map(buffers, params),
      total=numbers.accumulators(params) if keep_total else None,
    )

  def step(grads, state, params=None, *, worker_id=None, **extra):
    del params, extra
    arguments.require(
      'trace_per_worker',
      'worker_id',
      worker_id,
      'the worker the gradient came from',
    )

    def fold(v, g):  # v_w ← γ v_w + g
      return g + momentum * v

    new, traces, total = one_row.replace(  # and S ← S + v_w(new) − v_w(old)
      fold, state.traces, worker_id, grads, state.total
    )
    return new, TracePerWorkerState(traces=traces, total=total)

  rule = optimizer.lift(optax.GradientTransformationExtraArgs(init, step))
  return optimizer.AsyncOptimizer(
    rule.init, rule.correct, rule.step, num_workers=num_workers
  )


def multi_asgd(
  learning_rate: optax.ScalarOrSchedule,
  num_workers: int,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
) -> optimizer.AsyncOptimizer:
  """Asynchronous SGD with a momentum buffer per worker.

  Args:
    learning_rate: η, a number or a schedule of batches applied.
    num_workers: number of workers, one buffer each.
    momentum: γ in [0, 1).
    weight_decay: L2 coefficient, added to the gradient before momentum.
    weight_decay_mask: as in `optax.add_decayed_weights`.

  Returns:
    An `AsyncOptimizer`; `update` requires `worker_id=`. It cannot average a
    round.
  """
  return optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    trace_per_worker(momentum, num_workers),
    links.scale_by_learning_rate(learning_rate),
  )
