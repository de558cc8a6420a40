"""What a server rule is: an optax transformation cut in two.

A *rule* says what arriving gradients do to the parameters. It is cut where an
asynchronous server needs the cut: `correct` runs once per arriving gradient
(penalties, compensations), `step` once per closed round on the weighted mean
of the corrected gradients (momentum, learning rate). `update` is the one after
the other, so every rule is an `optax.GradientTransformationExtraArgs`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax import checks


def _pass_through(grads, state, params=None, **extra):
  del params, extra
  return grads, state


def _same_params(params, state):
  del state
  return params


class AsyncOptimizer(optax.GradientTransformationExtraArgs):
  """An optax transformation that an asynchronous server can run in two parts.

  It unpacks into `(init, update)` as optax requires and carries the parts as
  attributes.

  Attributes:
    correct: `correct(grads, state, params, *, stale_params, staleness,
      worker_id, count, **extra) -> (corrected, state)`, once per arriving
      gradient. `corrected` is a pytree of float arrays whose weighted mean over
      a round is meaningful; nearly always it has the structure of `grads`.
    step: `step(corrected, state, params, *, count, **extra) -> (updates,
      state)`, once per closed round.
    lookahead: `lookahead(params, state) -> params`, what workers are sent.
    num_workers: number of buffers where the rule keeps one per worker, so that
      every `worker_id` must be below it; else None.
    averages: whether the gradients of several workers may be averaged before
      `step`; not where `step` itself keeps a buffer per worker.

  The extra arguments, all optional unless a rule says otherwise:

  * `stale_params`: the parameters the gradient was computed at, a pytree like
    `params`: what the worker was *sent*.
  * `staleness`: server updates since that read, int32 scalar, 0 = fresh.
  * `worker_id`: int32 scalar.
  * `count`: batches applied so far, int32 scalar. Learning-rate schedules are
    functions of it; without it a rule counts its own updates, as optax does.
  """

  correct: Callable[..., Any]
  step: Callable[..., Any]
  lookahead: Callable[..., Any]
  num_workers: int | None
  averages: bool

  def __new__(
    cls,
    init,
    correct,
    step,
    *,
    lookahead=_same_params,
    num_workers=None,
    averages=None,
  ):
    def update(grads, state, params=None, **extra):
      corrected, state = correct(grads, state, params, **extra)
      return step(corrected, state, params, **extra)

    self = super().__new__(cls, init, update)
    self.correct = correct
    self.step = step
    self.lookahead = lookahead
    self.num_workers = num_workers
    self.averages = num_workers is None if averages is None else averages
    return self

  def __reduce__(self):
    made = (self.init, self.correct, self.step)
    return functools.partial(
      AsyncOptimizer,
      lookahead=self.lookahead,
      num_workers=self.num_workers,
      averages=self.averages,
    ), made

  def leave(self, state, worker_id):
    """The state once a worker has left; see `leave`."""
    return leave(state, worker_id)

  @property
  def looks_ahead(self) -> bool:
    """Whether workers are sent anything but the server's parameters."""
    return self.lookahead is not _same_params

  @property
  def corrects(self) -> bool:
    """Whether `correct` is more than the identity."""
    return self.correct is not _pass_through


def lift(transformation: optax.GradientTransformation) -> AsyncOptimizer:
  """Makes a rule of a plain optax transformation.

  `correct` is the identity and `step` the whole update. A rule is returned as
  it is.

  Args:
    transformation: any optax transformation.

  Returns:
    An `AsyncOptimizer`.

  Raises:
    TypeError: it is none.
  """
  if isinstance(transformation, AsyncOptimizer):
    return transformation
  if not hasattr(transformation, 'init') or isinstance(transformation, type):
    raise TypeError(
      'a rule must be an optax transformation, such as ga_jax.gap_aware(0.1), '
      f'got {transformation!r}'
    )
  transformation = optax.with_extra_args_support(transformation)
  return AsyncOptimizer(
    transformation.init, _pass_through, transformation.update
  )


def correction(init, correct, num_workers=None) -> AsyncOptimizer:
  """A rule that only corrects arriving gradients: its `step` is the identity.

  Args:
    init: `init(params) -> state`.
    correct: see `AsyncOptimizer`.
    num_workers: number of buffers where `correct` keeps one per worker.

  Returns:
    An `AsyncOptimizer`, whose rounds can be averaged.
  """
  return AsyncOptimizer(
    init, correct, _pass_through, num_workers=num_workers, averages=True
  )


def chain(*links: optax.GradientTransformation) -> AsyncOptimizer:
  """`optax.chain` for rules: the same update, still cut in two.

  Links before the last one that corrects run whole on each arriving gradient;
  that one is cut at its own cut; links after it run once per round. Without a
  correcting link everything runs once per round.

  Args:
    *links: rules or plain optax transformations, applied from left to right.

  Returns:
    An `AsyncOptimizer` whose state is the tuple of the links' states.

  Examples:
    >>> import ga_jax, optax
    >>> rule = ga_jax.chain(
    ...     optax.clip_by_global_norm(1.0), ga_jax.gap_aware(0.1))
  """
  rules = tuple(lift(link) for link in links)
  cut = max((i for i, rule in enumerate(rules) if rule.corrects), default=-1)

  def init(params):
    return tuple(rule.init(params) for rule in rules)

  def correct(grads, state, params=None, **extra):
    states = list(state)
    for i in range(cut):
      grads, states[i] = rules[i].update(grads, states[i], params, **extra)
    grads, states[cut] = rules[cut].correct(grads, states[cut], params, **extra)
    return grads, tuple(states)

  def step(grads, state, params=None, **extra):
    states = list(state)
    for i in range(max(cut, 0), len(rules)):
      grads, states[i] = rules[i].step(grads, states[i], params, **extra)
    return grads, tuple(states)

  def lookahead(params, state):
    for rule, link_state in zip(rules, state, strict=True):
      params = rule.lookahead(params, link_state)
    return params

  buffers = [rule.num_workers for rule in rules if rule.num_workers is not None]
  ahead = any(rule.looks_ahead for rule in rules)

  return AsyncOptimizer(
    init,
    correct if cut >= 0 else _pass_through,
    step,
    lookahead=lookahead if ahead else _same_params,
    num_workers=min(buffers, default=None),
    averages=all(rule.averages for rule in rules),
  )


def _is_per_worker(node) -> bool:
  return hasattr(node, 'leave')


def per_worker(opt_state: optax.OptState) -> list[Any]:
  """The parts of a state, wherever they are in it, that know of workers."""
  nodes = jax.tree.leaves(opt_state, is_leaf=_is_per_worker)
  return [node for node in nodes if _is_per_worker(node)]


def leave(opt_state: optax.OptState, worker_id) -> optax.OptState:
  """The state of a rule once a worker has left, or was lost.

  What a rule keeps per worker stands in a NamedTuple with `num_workers`, how
  many there is room for, and a method `leave(worker_id) -> the same without
  that worker`. It is found in any state, so that no wrapper can hide it; the
  rest of a state stays as it is. The server calls this where its record says
  that a worker left. Where rounds are averaged it may change only what
  `correct` reads.

  Args:
    opt_state: of any rule.
    worker_id: who left, int32 scalar.

  Returns:
    A state of the same structure.
  """
  return jax.tree.map(
    lambda node: node.leave(worker_id) if _is_per_worker(node) else node,
    opt_state,
    is_leaf=_is_per_worker,
  )


class LookaheadState(NamedTuple):
  """State of `with_lookahead`: found in a state, it tells of a look-ahead."""

  inner: optax.OptState  # of the rule.


def with_lookahead(rule: AsyncOptimizer, lookahead) -> AsyncOptimizer:
  """The same rule, whose workers are sent a look-ahead.

  Args:
    rule: a rule that sends its parameters as they are.
    lookahead: `lookahead(params, state) -> params`, of the rule's own state.

  Returns:
    An `AsyncOptimizer` whose state is a `LookaheadState`, so that a wrapper
    that forgets the look-ahead can be told from what it holds.
  """

  def init(params):
    return LookaheadState(rule.init(params))

  def correct(grads, state, params=None, **extra):
    grads, inner = rule.correct(grads, state.inner, params, **extra)
    return grads, LookaheadState(inner)

  def step(grads, state, params=None, **extra):
    updates, inner = rule.step(grads, state.inner, params, **extra)
    return updates, LookaheadState(inner)

  return AsyncOptimizer(
    init,
    correct if rule.corrects else _pass_through,
    step,
    lookahead=lambda params, state: lookahead(params, state.inner),
    num_workers=rule.num_workers,
    averages=rule.averages,
  )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sizes:
  """Leaves by their path, and how many scalars each has; holds no array."""

  scalars: tuple[tuple[str, int], ...]


def sizes_of(params) -> Any:
  """The `Sizes` of a pytree; what `optax.masked` takes out is not in them."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  if not leaves:  # a place-holder of optax.tree_map_params stays what it is
    return params
  return Sizes(
    tuple((jax.tree_util.keystr(path), jnp.size(leaf)) for path, leaf in leaves)
  )


def sizes_by_name(sizes) -> dict[str, int]:
  """What `sizes_of` returns as a dict."""
  return dict(sizes.scalars) if isinstance(sizes, Sizes) else {}


class Penalty(NamedTuple):
  """What the last gradient was divided by; every penalising state holds one."""

  mean: jax.typing.ArrayLike  # over what is divided, shape=(), 1 = no penalty.
  max: jax.typing.ArrayLike  # the largest, shape=().
  sizes: Any = None  # `sizes_of` what is divided; None: of all parameters.


def no_penalty(params=None) -> Penalty:
  """The penalty before any gradient came.

  Args:
    params: what will be divided; None for all parameters that there are.
  """
  sizes = None if params is None else sizes_of(params)
  return Penalty(float_scalar(1.0), float_scalar(1.0), sizes)


def penalties_in(opt_state: optax.OptState) -> list[Penalty]:
  """All penalties in a state."""

  def is_penalty(node):
    return isinstance(node, Penalty)

  nodes = jax.tree.leaves(opt_state, is_leaf=is_penalty)
  return [node for node in nodes if is_penalty(node)]


def total_penalty(opt_state: optax.OptState, params) -> Penalty:
  """What all penalties in a state come to; 1 where a rule has none.

  Args:
    opt_state: the state of a rule.
    params: the parameters, or their shapes; the mean is over all of them.
  """
  sizes = sizes_by_name(sizes_of(params))
  return combined_penalty(penalties_in(opt_state), sizes)


def combined_penalty(
  penalties: list[Penalty], sizes: dict[str, int]
) -> Penalty:
  """What several penalties come to.

  Of those that divide the same leaves, one after the other, it is the product;
  over groups of leaves that are divided by different ones the mean, weighted by
  the number of parameters, and the maximum. It is 1 where nothing divides.

  Args:
    penalties: any number.
    sizes: of the leaves that the mean is over, by name.
  """
  divided = [_divided(penalty, sizes) for penalty in penalties]
  groups = {}  # numbers of the penalties that divide them -> scalars
  for name, size in sizes.items():
    by = tuple(i for i, names in enumerate(divided) if name in names)
    groups[by] = groups.get(by, 0) + size
  totals = {by: _product([penalties[i] for i in by]) for by in groups}
  if len(groups) < 2:
    return next(iter(totals.values()), no_penalty())
  scalars = max(sum(groups.values()), 1)
  mean = tree_sum([groups[by] / scalars * totals[by].mean for by in groups])
  largest = [totals[by].max for by in groups if groups[by]]
  return Penalty(mean, functools.reduce(jnp.maximum, largest))


def _divided(penalty: Penalty, sizes: dict[str, int]) -> set[str]:
  """The names of the leaves that a penalty is of."""
  if penalty.sizes is None:
    return set(sizes)
  names = set(sizes_by_name(penalty.sizes))
  # Of a tree of its own (optax.flatten) it is not known which they are.
  return names if names <= set(sizes) else set(sizes)


def _product(penalties: list[Penalty]) -> Penalty:
  """Of penalties of the same leaves."""
  mean = largest = float_scalar(1.0)
  for penalty in penalties:
    mean, largest = mean * penalty.mean, largest * penalty.max
  return Penalty(mean, largest)


class ScaleByLearningRateState(NamedTuple):
  """State of `scale_by_learning_rate`."""

  count: jax.typing.ArrayLike  # updates made, shape=(), dtype=int32.
  learning_rate: jax.typing.ArrayLike  # of the last update, shape=().


def scale_by_learning_rate(
  learning_rate: optax.ScalarOrSchedule,
) -> AsyncOptimizer:
  """optax's link of that name, with the schedule a function of `count`.

  Args:
    learning_rate: a number, or a schedule of batches applied so far (of its own
      updates where no `count` is passed).

  Returns:
    An `AsyncOptimizer` that multiplies by minus the learning rate and keeps the
    last rate in its state.
  """
  check_number('learning_rate', learning_rate, low=0.0, schedule=True)

  def init(params):
    del params
    return ScaleByLearningRateState(
      count=jnp.zeros([], jnp.int32), learning_rate=float_scalar(0.0)
    )

  def step(updates, state, params=None, *, count=None, **extra):
    del params, extra
    rate = rate_at(learning_rate, state.count if count is None else count)
    updates = jax.tree.map(
      lambda u: jnp.asarray(-rate, dtype=u.dtype) * u, updates
    )
    return updates, ScaleByLearningRateState(
      count=optax.safe_increment(state.count), learning_rate=float_scalar(rate)
    )

  return AsyncOptimizer(init, _pass_through, step)


def momentum_trace(momentum, nesterov: bool = False):
  """`optax.trace`, or the identity where momentum is the number 0 or None."""
  if momentum is None:
    return optax.identity()
  check_number('momentum', momentum, low=0.0, below=1.0)
  if is_zero(momentum):
    return optax.identity()
  return optax.trace(momentum, nesterov=nesterov)


def decayed_weights(weight_decay, mask=None):
  """L2 decay g + wd θ, or the identity where wd is the number 0."""
  check_number('weight_decay', weight_decay, low=0.0)
  if is_zero(weight_decay):
    return optax.identity()
  return optax.add_decayed_weights(weight_decay, mask)


def rate_at(learning_rate: optax.ScalarOrSchedule, count):
  """The learning rate at a count of applied batches."""
  return learning_rate(count) if callable(learning_rate) else learning_rate


def float_scalar(value) -> jax.Array:
  """A strongly typed scalar of the default float type."""
  return jnp.asarray(value, dtype=jnp.result_type(float))


def float_dtype(leaf):
  """The dtype in which to accumulate for `leaf`: float32 or wider, real."""
  dtype = jnp.finfo(jnp.result_type(leaf)).dtype
  return jnp.dtype('float32') if dtype.itemsize < 4 else dtype


def accumulator_like(leaf) -> jax.Array:
  """Zeros to sum leaves like this one in: float32 or wider, complex kept."""
  complex_leaf = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
  return jnp.zeros(
    leaf.shape, leaf.dtype if complex_leaf else float_dtype(leaf)
  )


def accumulators(params):
  """A tree of `accumulator_like` for parameters, scalars of Python too."""
  return jax.tree.map(lambda p: accumulator_like(jnp.asarray(p)), params)


def descend(params, step, direction):
  """θ − step u: a position ahead.

  Args:
    params: θ.
    step: a float scalar.
    direction: u, like params, in the dtype to compute in.

  Returns:
    A pytree like `params`, in their dtypes.
  """

  def move(p, u):
    ahead = jnp.asarray(p).astype(u.dtype) - step.astype(u.dtype) * u
    return ahead.astype(jnp.result_type(p))

  return jax.tree.map(move, params, direction)


def check_number(
  name: str,
  value: Any,
  *,
  low: float | None = None,
  above: float | None = None,
  below: float | None = None,
  schedule: bool = False,
):
  """Raises a ValueError where an argument is no number in its range.

  What is traced is one real number, of which no more can be known.

  Args:
    name: of the argument.
    value: a number of Python, NumPy or JAX.
    low: see `checks.number`.
    above: see `checks.number`.
    below: see `checks.number`.
    schedule: whether it may be a function of a count, too.
  """
  if schedule and callable(value):
    return
  if isinstance(value, jax.core.Tracer) and checks.real_scalar(value):
    return
  checks.number(name, value, low=low, above=above, below=below)


# What `staleness` is, for the message where it is missing.
STALENESS = 'the server updates since the parameters were read'


def require(name: str, argument: str, value, meaning: str):
  """Raises a TypeError where an extra argument was not passed.

  Args:
    name: the link that needs it.
    argument: the argument's name.
    value: what was passed.
    meaning: what is to be passed.
  """
  if value is None:
    raise TypeError(
      f'{name} needs {argument}: call update(grads, state, params, '
      f'{argument}=...) with {meaning}. Under a policy that averages rounds '
      'build the chain with ga_jax.chain.'
    )


def abs_sq(x) -> jax.Array:
  """|x|², real, in `float_dtype`."""
  x = jnp.asarray(x)
  if jnp.iscomplexobj(x):
    return x.real**2 + x.imag**2
  return jnp.square(x.astype(float_dtype(x)))


def tree_sum(scalars) -> jax.Array:
  """Sum of a list of scalars in the default float type; 0 for none."""
  return sum((float_scalar(s) for s in scalars), start=float_scalar(0.0))


def tree_size(tree) -> int:
  """Number of scalars in a pytree."""
  return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))


def is_zero(value) -> bool:
  """Whether it is the number 0 itself, not an array that may be."""
  return _is_number(value) and value == 0


def _is_number(value) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)
