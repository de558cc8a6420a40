"""What the server computes: pure functions from one state to the next.

They are compiled once and shared by every runtime, so that no update
mathematics exists twice. A gradient arrives with what its worker was sent; it
is corrected, joins the open round, and the closed round makes one update.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ga_jax.kernels import fused
from ga_jax.rules.parts import gap as gap_lib
from ga_jax.rules.parts import (
  global_sums,
  layer_penalties,
  numbers,
  optimizer,
  penalties,
)
from ga_jax.server import statistics


class Snapshot(NamedTuple):
  """What a worker is sent."""

  params: Any
  model_state: Any  # model statistics (BatchNorm averages); () without


class Round(NamedTuple):
  """The open round of a policy that averages."""

  total: Any  # Σ weight · corrected gradient, float32 or wider
  weight: jax.Array  # Σ weight, shape=()
  batches: jax.Array  # batches in the round, shape=(), int32


class ServerState(NamedTuple):
  """Everything the server knows, a pytree."""

  params: Any
  opt_state: Any
  model_state: Any
  version: jax.Array  # updates made, shape=(), int32
  count: jax.Array  # batches applied, shape=(), int32
  round: Round | None  # None where a round holds one gradient


class Arrival(NamedTuple):
  """A submission as these functions see it."""

  grads: Any
  model_state: Any  # as the worker's step returned it
  sent: Snapshot  # what the worker was sent
  staleness: jax.Array  # int32
  worker_id: jax.Array  # int32
  weight: jax.Array  # in its round's weighted mean
  num_batches: jax.Array  # int32


class Metrics(NamedTuple):
  """What one arrival did; device scalars of the default float type."""

  gap: jax.Array  # RMS of θ − θs before the update, the paper's Gap
  mean_penalty: jax.Array  # mean divisor of the gradient; 1 = none
  max_penalty: jax.Array


class LayerMetrics(NamedTuple):
  """What one arrival did to each layer, a leaf of the parameters; [layers]."""

  layer_gap: jax.Array  # RMS of θ − θs before the update
  layer_mean_penalty: jax.Array  # mean divisor of the gradient; 1 = none


def init(
  rule: optimizer.AsyncOptimizer, params, model_state=(), *, accumulates=False
) -> ServerState:
  """The server before the first gradient.

  Args:
    rule: the server rule.
    params: pytree of arrays; copied, so that donation never frees the caller's.
    model_state: pytree of statistics; copied too.
    accumulates: whether a round may hold several gradients.

  Returns:
    A `ServerState`.

  Raises:
    ValueError: a rule that cannot average under a policy that does, or whose
      look-ahead is hidden by a wrapper.
  """
  check_rule(rule, accumulates, params=params)
  params, model_state = jax.tree.map(
    lambda x: jnp.array(x, copy=True), (params, model_state)
  )
  # Copied too: a rule may begin with the parameters themselves.
  opt_state = jax.tree.map(lambda x: jnp.array(x, copy=True), rule.init(params))
  if _holds_lookahead(opt_state) and not rule.looks_ahead:
    raise ValueError(
      'this chain hides the look-ahead of a rule (DANA, LWP, SMEGA2 ...), so '
      'workers would be sent the wrong parameters: build it with ga_jax.chain '
      'instead of optax.chain, inject_hyperparams or another wrapper'
    )
  state = ServerState(
    params=params,
    opt_state=opt_state,
    model_state=model_state,
    version=jnp.zeros([], jnp.int32),
    count=jnp.zeros([], jnp.int32),
    round=None,
  )
  return (
    state._replace(round=_empty_round(rule, state)) if accumulates else state
  )


@jax.jit
def finite(tree) -> jax.Array:
  """Whether every number of a tree is finite."""
  leaves = [
    jnp.all(jnp.isfinite(leaf))
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  ]
  return jnp.all(jnp.stack([jnp.array(True), *leaves]))


def owned(tree):
  """The same arrays, those of NumPy copied now.

  JAX reads NumPy's memory in place where it is aligned, and later than it was
  told to: a caller who writes to it again would change what is computed.
  """
  return jax.tree.map(
    lambda x: x.copy() if isinstance(x, np.ndarray) else x, tree
  )


def check_params(params: Any):
  """Refuses parameters that nothing can be trained from; names the leaf.

  Args:
    params: pytree of arrays.

  Raises:
    TypeError: there is none, or one is no floating-point number.
    ValueError: one is not finite.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  if not leaves:
    raise TypeError(f'params must be a pytree of arrays, got {params!r}')
  for path, leaf in leaves:
    name = f'params{jax.tree_util.keystr(path)}'
    dtype = getattr(leaf, 'dtype', type(leaf))
    if dtype not in (float, complex) and not jnp.issubdtype(dtype, jnp.inexact):
      held = getattr(dtype, 'name', getattr(dtype, '__name__', dtype))
      raise TypeError(
        f'{name} must hold floating-point numbers, got {held}: what is counted '
        'belongs into model_state'
      )
    unknown = isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct))
    if not unknown and not np.isfinite(np.asarray(leaf)).all():
      raise ValueError(f'{name} must be finite at the start of a run')


def check_rule(
  rule: optimizer.AsyncOptimizer,
  accumulates: bool,
  num_workers: int | None = None,
  params: Any = None,
):
  """Raises a ValueError where a rule does not fit a policy or a run.

  Args:
    rule: the server rule.
    accumulates: whether a round may hold several gradients.
    num_workers: workers of the run, where they are known.
    params: pytree of arrays or shapes; with it buffers are found that a wrapper
      of optax hides.
  """
  buffers, averages = rule.num_workers, rule.averages
  if buffers is None and params is not None:
    hidden = optimizer.per_worker(jax.eval_shape(rule.init, params))
    buffers = min((one.num_workers for one in hidden), default=None)
    averages &= not hidden
  if accumulates and not averages:
    raise ValueError(
      'this rule keeps a momentum buffer per worker, so the gradients of '
      'several workers cannot be averaged into one round: choose a policy that '
      'applies each gradient (asynchronous), or another rule'
    )
  if None not in (num_workers, buffers) and num_workers > buffers:
    raise ValueError(
      f'this rule keeps {buffers} momentum buffers, one per worker, '
      f'but the run has num_workers={num_workers}'
    )


def check_layer_metrics(
  rule: optimizer.AsyncOptimizer, params, model_state, accumulates: bool
):
  """Raises a ValueError where a rule's penalties are not known by layer."""

  def measure(params, model_state):
    state = init(rule, params, model_state, accumulates=accumulates)
    return layer_metrics(rule, state, any_arrival(state))

  traced = jax.make_jaxpr(measure)(params, model_state)
  if any(isinstance(value, jax.core.Tracer) for value in traced.consts):
    raise ValueError(
      'this rule computes its penalty inside lax.cond, lax.scan or jax.jit '
      '(optax.MultiSteps and optax.apply_if_finite do that), where it cannot '
      'be told by layer: no layer_metrics'
    )


def any_arrival(state: ServerState) -> Arrival:
  """An arrival of the right shapes."""
  zero = jnp.zeros([], jnp.int32)
  return Arrival(
    grads=state.params,
    model_state=state.model_state,
    sent=Snapshot(state.params, state.model_state),
    staleness=zero,
    worker_id=zero,
    weight=jnp.ones([], jnp.float32),
    num_batches=zero + 1,
  )


def _holds_lookahead(opt_state) -> bool:
  """Whether a state is, or wraps, that of a rule that looks ahead."""

  def is_ahead(node):
    return isinstance(node, optimizer.LookaheadState)

  return any(map(is_ahead, jax.tree.leaves(opt_state, is_leaf=is_ahead)))


def snapshot(rule: optimizer.AsyncOptimizer, state: ServerState) -> Snapshot:
  """What a worker that starts now is sent."""
  return Snapshot(
    rule.lookahead(state.params, state.opt_state), state.model_state
  )


def apply(
  rule: optimizer.AsyncOptimizer,
  state: ServerState,
  arrival: Arrival,
  fold_fn: statistics.FoldFn,
  *,
  in_place: bool = True,
) -> tuple[ServerState, Metrics]:
  """One gradient is a whole round: correct, step, new version.

  Args:
    rule: the server rule.
    state: with the optimiser state that will be overwritten.
    arrival: the gradient.
    fold_fn: how model statistics are folded.
    in_place: whether the parameters will be overwritten too.

  Returns:
    The next state and what it did.
  """

  def new(opt_state, params, state, arrival):
    state = state._replace(params=params, opt_state=opt_state)
    updates, opt_state = rule.update(
      arrival.grads, opt_state, params, **_extra(state, arrival)
    )
    metrics = _metrics(state, arrival, opt_state)
    return opt_state, optax.apply_updates(params, updates), metrics

  opt_state, params, metrics = fused.fused(
    new,
    *(state.opt_state, state.params, state._replace(params=(), opt_state=())),
    arrival,
    overwrites=1 + in_place,
  )
  state = state._replace(
    params=params,
    opt_state=opt_state,
    model_state=_fold(state, arrival, fold_fn),
    version=state.version + 1,
    count=state.count + arrival.num_batches,
  )
  return state, metrics


def accumulate(
  rule: optimizer.AsyncOptimizer,
  state: ServerState,
  arrival: Arrival,
  fold_fn: statistics.FoldFn,
  *,
  in_place: bool = True,
) -> tuple[ServerState, Metrics]:
  """One gradient is corrected and joins the open round.

  Args:
    rule: the server rule.
    state: after the last arrival.
    arrival: the gradient.
    fold_fn: how model statistics are folded.
    in_place: whether the optimiser state and the round will be overwritten.

  Returns:
    The next state and what it did.
  """

  def new(opt_state, total, state, arrival):
    state = state._replace(opt_state=opt_state)
    corrected, opt_state = rule.correct(
      arrival.grads, opt_state, state.params, **_extra(state, arrival)
    )
    total = jax.tree.map(
      lambda t, c: t + arrival.weight.astype(t.dtype) * c.astype(t.dtype),
      total,
      corrected,
    )
    return opt_state, total, _metrics(state, arrival, opt_state)

  total, weight, batches = state.round
  opt_state, total, metrics = fused.fused(
    new,
    *(state.opt_state, total, state._replace(round=None, opt_state=())),
    arrival,
    overwrites=2 * in_place,
  )
  state = state._replace(
    opt_state=opt_state,
    model_state=_fold(state, arrival, fold_fn),
    round=Round(
      total,
      weight + arrival.weight.astype(weight.dtype),
      batches + arrival.num_batches,
    ),
  )
  return state, metrics


def layer_metrics(
  rule: optimizer.AsyncOptimizer, state: ServerState, arrival: Arrival
) -> LayerMetrics:
  """What `apply` or `accumulate` will do, by layer; nothing is changed.

  It is computed apart from them, so that their bits are the same whether it is
  computed or not. `check_layer_metrics` says whether it can be.
  """
  enter = rule.update if state.round is None else rule.correct
  with layer_penalties.asked() as told:
    _, opt_state = enter(
      arrival.grads, state.opt_state, state.params, **_extra(state, arrival)
    )
  if len(told) != len(penalties.penalties_in(opt_state)):
    raise ValueError(
      'this rule keeps a Penalty in its state that it does not tell by layer: '
      'call ga_jax.rules.parts.layer_penalties.tell where it is made'
    )
  gaps = jax.tree.map(gap_lib.gap_rms, state.params, arrival.sent.params)
  return LayerMetrics(
    layer_gap=jnp.stack(jax.tree.leaves(gaps)),
    layer_mean_penalty=layer_penalties.mean_penalties(state.params, told),
  )


def close(rule: optimizer.AsyncOptimizer, state: ServerState) -> ServerState:
  """The weighted mean of the open round makes one update.

  A round whose weights are all zero makes an update with a gradient of zero.
  """
  total, weight, batches = state.round
  weight = jnp.where(weight > 0, weight, 1.0)
  mean = jax.tree.map(
    lambda t, c: (t / weight.astype(t.dtype)).astype(c.dtype),
    total,
    _corrected_like(rule, state),
  )
  updates, opt_state = rule.step(
    mean, state.opt_state, state.params, count=state.count
  )
  state = state._replace(
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
    version=state.version + 1,
    count=state.count + batches,
  )
  return state._replace(round=_empty_round(rule, state))


def _extra(state: ServerState, arrival: Arrival):
  return {
    'stale_params': arrival.sent.params,
    'staleness': arrival.staleness,
    'worker_id': arrival.worker_id,
    'count': state.count,
  }


def _fold(state: ServerState, arrival: Arrival, fold_fn: statistics.FoldFn):
  """The model statistics after an arrival."""
  statistics.check_returned(arrival.model_state, state.model_state)
  return fold_fn(
    arrival.model_state,
    state.model_state,
    arrival.sent.model_state,
    arrival.num_batches,
  )


def _metrics(state: ServerState, arrival: Arrival, opt_state) -> Metrics:
  penalty = penalties.total_penalty(opt_state, state.params)
  return Metrics(
    gap=gap_lib.gap_rms(state.params, arrival.sent.params),
    mean_penalty=penalty.mean,
    max_penalty=penalty.max,
  )


def _corrected_like(rule: optimizer.AsyncOptimizer, state: ServerState):
  """Shapes and dtypes of what `correct` makes of a gradient."""
  with global_sums.known(None):  # shapes only: these ask for nothing
    return optimizer.corrected_like(rule, state.params, state.opt_state)


def _empty_round(rule: optimizer.AsyncOptimizer, state: ServerState) -> Round:
  total = numbers.accumulators(_corrected_like(rule, state))
  return Round(total, numbers.float_scalar(0.0), jnp.zeros([], jnp.int32))
