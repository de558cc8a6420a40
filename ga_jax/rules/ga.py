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
and c ε make the same path.

Our choice where the paper leaves room: the moment is corrected for bias by the
number of directions seen.

References:
  Barkai, Hakimi, Schuster, `Gap-Aware Mitigation of Gradient Staleness
  <https://arxiv.org/abs/1909.10802>`_, ICLR 2020.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import (
  arguments,
  averages,
  gap,
  gap_metrics,
  links,
  numbers,
  optimizer,
)


class ScaleByGapState(NamedTuple):
  """State of `scale_by_gap`."""

  count: jax.typing.ArrayLike  # n, directions seen, shape=(), dtype=int32.
  max_learning_rate: jax.typing.ArrayLike  # η_max so far, shape=().
  second_moment: Any  # s, like params (or shape=() for 'global'), >= float32.
  direction: optax.OptState  # state of the wrapped transformation.
  metrics: gap_metrics.GapMetrics


def distance_of_an_update(peak, bias, eps, active):
  """C = η_max (sqrt(s / (1 − Γ^n)) + ε), as a function of s.

  Args:
    peak: η_max, a float scalar.
    bias: 1 − Γ^n, likewise.
    eps: ε, in units of the direction.
    active: bool; where it is False, C is any number above 0.

  Returns:
    `scale(s) -> C`, element-wise and always above 0.
  """
  peak = jnp.where(active, peak, 1.0)
  slope = peak / jnp.sqrt(jnp.where(active, bias, 1.0))

  def scale(s):
    least = jnp.maximum(peak.astype(s.dtype) * eps, jnp.finfo(s.dtype).tiny)
    return slope.astype(s.dtype) * numbers.root(s) + least

  return scale


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
      `optax.trace(0.9)`, `optax.scale_by_adam()`, ... Of a rule, what its
      `correct` makes of a gradient is divided.
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
  if granularity not in gap.GRANULARITIES:
    raise ValueError(
      f"granularity must be 'parameter' or 'global', got {granularity!r}"
    )
  arguments.check_number('decay', decay, above=0.0, below=1.0)
  arguments.check_number('eps', eps, above=0.0)
  arguments.check_number(
    'max_learning_rate', max_learning_rate, low=0.0, schedule=True
  )
  direction, over = optimizer.lift(direction), gap.GRANULARITIES[granularity]

  def init(params):
    return ScaleByGapState(
      count=jnp.zeros([], jnp.int32),
      max_learning_rate=numbers.float_scalar(0.0),
      second_moment=over.init(params),
      direction=direction.init(params),
      metrics=gap_metrics.no_gap_metrics(params),
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
    arguments.check_stale_params('scale_by_gap', stale_params, params)
    rate = links.rate_at(
      max_learning_rate, state.count if count is None else count
    )
    peak = jnp.maximum(state.max_learning_rate, numbers.float_scalar(rate))
    bias = averages.bias(state.count, decay)
    active = (bias > 0) & (peak > 0)
    if staleness is not None:
      active &= jnp.asarray(staleness) != 0
    scale = distance_of_an_update(peak, bias, eps, active)
    by, metrics = over.penalties(  # G = 1 + |θ − θs| / C
      params, stale_params, state.second_moment, scale, active
    )
    extra |= {'stale_params': stale_params, 'staleness': staleness}
    grads, inner = direction.correct(
      grads, state.direction, params, count=count, **extra
    )
    return gap.penalize(grads, by), state._replace(  # g ← g / G
      max_learning_rate=peak, direction=inner, metrics=metrics
    )

  def step(corrected, state, params=None, **extra):
    u, inner = direction.step(corrected, state.direction, params, **extra)

    def fold(s, square):  # s ← Γ s + (1 − Γ) u²
      return averages.fold(s, square, decay)

    return u, state._replace(
      count=optax.safe_increment(state.count),
      second_moment=over.moment(fold, state.second_moment, u),
      direction=inner,
    )

  return optimizer.AsyncOptimizer(
    init, correct, step, num_workers=direction.num_workers
  )


def ga(
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
    >>> opt = ga_jax.ga(0.1, momentum=0.9)
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
