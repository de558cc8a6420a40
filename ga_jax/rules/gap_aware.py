r"""GA: Gap-Aware, the penalty that is linear in how far the parameters moved.

Element-wise, per parameter, with u the direction the wrapped optimiser emits:

.. math::

  C &= η_{max} (\sqrt{s / (1 - Γ^n)} + ε) \\
  G &= 1 + |θ - θ_s| / C \\
  g &← (g + wd θ) / G \\
  s &← Γ s + (1 - Γ) u^2, \quad θ ← θ - η u

C is the distance that one update moves the parameter at the peak learning rate.
As η decays the gap shrinks and C does not, so G → 1 late in training. G = 1
exactly where the gradient is fresh, where the gap is 0 and where no direction
has been seen: one worker is the wrapped optimiser bit for bit.

ε = 1e-8 is the authors' own, and has the unit of the direction: with gradients
that small the penalty fades. Where all gradients are c times as large, η / c
and c ε make the same path; with Adam's directions, which have no unit, its own
epsilon is what scales.

Our choices where the paper leaves room: the moment is corrected for bias by the
number of directions seen, and with Adam the direction is the whole step,
decoupled decay included (divided by G like the gradient and counted in s).

References:
  Barkai, Hakimi, Schuster, `Gap-Aware Mitigation of Gradient Staleness
  <https://arxiv.org/abs/1909.10802>`_, ICLR 2020.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import (
  arguments,
  gap,
  global_sums,
  layer_penalties,
  links,
  numbers,
  optimizer,
)

GRANULARITIES = ('parameter', 'global')


class ScaleByGapState(NamedTuple):
  """State of `scale_by_gap`."""

  count: jax.typing.ArrayLike  # n, directions seen, shape=(), dtype=int32.
  max_learning_rate: jax.typing.ArrayLike  # η_max so far, shape=().
  second_moment: Any  # s, like params (or shape=() for 'global'), >= float32.
  direction: optax.OptState  # state of the wrapped transformation.
  metrics: gap.GapMetrics


class GradAndDecay(NamedTuple):
  """A penalised gradient and a penalised decoupled decay, both like params."""

  grads: Any
  decay: Any


def scale_by_gap(
  direction: optax.GradientTransformation,
  *,
  max_learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.999,
  eps: float = 1e-8,
  granularity: str = 'parameter',
) -> optimizer.AsyncOptimizer:
  """Wraps a learning-rate-free transformation with the Gap-Aware penalty.

  Args:
    direction: what turns gradients into a direction, without learning rate:
      `optax.trace(0.9)`, `optax.scale_by_adam()`, ...
    max_learning_rate: the largest learning rate that will follow, or the
      schedule itself, whose running maximum is then tracked.
    decay: Γ in (0, 1), of the moving average of squared directions.
    eps: ε > 0, in units of the direction: well below a usual one.
    granularity: 'parameter' for a penalty per parameter, 'global' for one
      scalar from the root mean squares over all parameters.

  Returns:
    An `AsyncOptimizer` that emits directions; a learning rate must follow
    (`ga_jax.rules.scale_by_learning_rate` counts what `max_learning_rate`
    counts). `update` requires `stale_params=`, the parameters the gradient was
    computed at (TypeError without; ValueError where their tree differs). Where
    `staleness=` is passed and 0 there is no penalty.

  Examples:
    >>> import ga_jax, optax
    >>> rule = ga_jax.chain(
    ...     optax.clip(1.0),
    ...     ga_jax.scale_by_gap(optax.scale_by_adam(), max_learning_rate=1e-3),
    ...     ga_jax.rules.scale_by_learning_rate(1e-3))
  """
  return _scale_by_gap(
    direction, max_learning_rate, decay, eps, granularity, None, None
  )


def _scale_by_gap(
  direction,
  max_learning_rate,
  decay,
  eps,
  granularity,
  decoupled_decay,
  decay_mask,
) -> optimizer.AsyncOptimizer:
  """`scale_by_gap`, with a decoupled decay that is penalised too."""
  if granularity not in GRANULARITIES:
    raise ValueError(
      f"granularity must be 'parameter' or 'global', got {granularity!r}"
    )
  arguments.check_number('decay', decay, above=0.0, below=1.0)
  arguments.check_number('eps', eps, above=0.0)
  arguments.check_number(
    'max_learning_rate', max_learning_rate, low=0.0, schedule=True
  )
  direction = optimizer.lift(direction)
  log_decay = jnp.log if isinstance(decay, jax.Array) else math.log
  per_parameter = granularity == 'parameter'

  def init(params):
    if per_parameter:
      moment = jax.tree.map(
        lambda p: jnp.zeros(jnp.shape(p), numbers.float_dtype(p)), params
      )
    else:
      moment = numbers.float_scalar(0.0)
    return ScaleByGapState(
      count=jnp.zeros([], jnp.int32),
      max_learning_rate=numbers.float_scalar(0.0),
      second_moment=moment,
      direction=direction.init(params),
      metrics=gap.no_gap_metrics(params),
    )

  def penalties_of(state, params, stale_params, peak, staleness):
    bias = -jnp.expm1(numbers.float_scalar(state.count) * log_decay(decay))
    active = (bias > 0) & (peak > 0)  # 1 − Γ^n, so n > 0
    if staleness is not None:
      active &= jnp.asarray(staleness) != 0
    top = jnp.where(active, peak, 1.0)
    slope = top / jnp.sqrt(jnp.where(active, bias, 1.0))

    def scale(s):  # C = η_max (sqrt(s / (1 − Γ^n)) + ε)
      least = jnp.maximum(top.astype(s.dtype) * eps, jnp.finfo(s.dtype).tiny)
      return slope.astype(s.dtype) * jnp.sqrt(s) + least

    if per_parameter:
      return gap.penalties_of(
        params, stale_params, state.second_moment, scale, active
      )
    distance = gap.global_gap_rms(params, stale_params)
    g = gap.penalty(distance, scale(state.second_moment), active)
    penalties = jax.tree.map(
      lambda p: jnp.broadcast_to(
        g.astype(numbers.float_dtype(p)), jnp.shape(p)
      ),
      params,
    )
    layer_penalties.tell(penalties)
    return penalties, state.metrics._replace(
      mean_gap=gap.gap_rms(params, stale_params),
      penalty=state.metrics.penalty._replace(mean=g, max=g),
    )

  def correct(
    grads,
    state,
    params=None,
    *,
    stale_params=None,
    staleness=None,
    count=None,
    **extra,
  ):
    del extra
    gap.check_stale_params('scale_by_gap', stale_params, params)
    count = state.count if count is None else count
    peak = jnp.maximum(
      state.max_learning_rate,
      numbers.float_scalar(links.rate_at(max_learning_rate, count)),
    )
    penalties, metrics = penalties_of(
      state, params, stale_params, peak, staleness
    )
    corrected = gap.penalize(grads, penalties)
    if decoupled_decay is not None:
      link = links.decayed_weights(decoupled_decay, decay_mask)
      zeros = jax.tree.map(jnp.zeros_like, grads)
      decayed, _ = link.update(zeros, link.init(params), params)
      corrected = GradAndDecay(corrected, gap.penalize(decayed, penalties))
    return corrected, state._replace(max_learning_rate=peak, metrics=metrics)

  def step(corrected, state, params=None, **extra):
    grads, decayed = corrected, None
    if decoupled_decay is not None:
      grads, decayed = corrected
    updates, inner = direction.update(grads, state.direction, params, **extra)
    if decayed is not None:
      updates = jax.tree.map(jnp.add, updates, decayed)

    def moment(s, square):  # s ← Γ s + (1 − Γ) u²
      return (decay * s + (1 - decay) * square).astype(s.dtype)

    if per_parameter:
      second = jax.tree.map(
        lambda s, u: moment(s, numbers.abs_sq(u)), state.second_moment, updates
      )
    else:
      squares = [jnp.sum(numbers.abs_sq(u)) for u in jax.tree.leaves(updates)]
      mean = global_sums.global_mean(
        numbers.tree_sum(squares), numbers.tree_size(updates)
      )
      second = moment(state.second_moment, mean)
    state = state._replace(
      count=optax.safe_increment(state.count),
      second_moment=second,
      direction=inner,
    )
    return updates, state

  return optimizer.AsyncOptimizer(
    init, correct, step, num_workers=direction.num_workers
  )


def gap_aware(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  weight_decay_mask=None,
  decay: float = 0.999,
  eps: float = 1e-8,
  granularity: str = 'parameter',
) -> optimizer.AsyncOptimizer:
  """SGD with momentum and the Gap-Aware penalty: the complete optimiser.

  Args:
    learning_rate: η, a number or a schedule of batches applied; its running
      maximum is η_max.
    momentum: γ in [0, 1); 0 keeps no buffer.
    nesterov: whether to use Nesterov's form.
    weight_decay: L2 coefficient, added to the gradient before the penalty.
    weight_decay_mask: as in `optax.add_decayed_weights`.
    decay: Γ in (0, 1).
    eps: ε > 0, in units of the direction: well below a usual one.
    granularity: 'parameter' or 'global', see `scale_by_gap`.

  Returns:
    An `AsyncOptimizer`; `update` requires `stale_params=`. With one worker it
    is `optax.sgd` bit for bit.

  Examples:
    >>> import jax.numpy as jnp
    >>> import ga_jax, optax
    >>> opt = ga_jax.gap_aware(0.1, momentum=0.9)
    >>> params = stale_params = jnp.ones(3)
    >>> state = opt.init(params)
    >>> updates, state = opt.update(
    ...     jnp.ones(3), state, params, stale_params=stale_params)
    >>> params = optax.apply_updates(params, updates)
  """
  rate = links.scale_by_learning_rate(learning_rate)
  return optimizer.chain(
    links.decayed_weights(weight_decay, weight_decay_mask),
    scale_by_gap(
      links.momentum_trace(momentum, nesterov),
      max_learning_rate=learning_rate,
      decay=decay,
      eps=eps,
      granularity=granularity,
    ),
    rate,
  )


def gap_aware_adam(
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
  return optimizer.chain(
    _scale_by_gap(
      optax.scale_by_adam(b1=b1, b2=b2, eps=adam_eps),
      learning_rate,
      decay,
      eps,
      granularity,
      # None, not 0: a decay of nothing would be penalised and added too.
      None if numbers.is_zero(weight_decay) else weight_decay,
      weight_decay_mask,
    ),
    rate,
  )
