"""What a server rule is: an optax transformation cut in two.

A *rule* says what arriving gradients do to the parameters. It is cut where an
asynchronous server needs the cut: `correct` runs once per arriving gradient
(penalties, compensations), `step` once per closed round on the weighted mean
of the corrected gradients (momentum, learning rate). `update` is the one after
the other, so every rule is an `optax.GradientTransformationExtraArgs`.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.kernels import fused


def pass_through(grads, state, params=None, **extra):
  """A `correct` or a `step` that changes nothing."""
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
      def new(state, grads, params, extra):
        corrected, state = correct(grads, state, params, **extra)
        updates, state = step(corrected, state, params, **extra)
        return state, updates

      state, updates = fused.fused(new, state, grads, params, extra)
      return updates, state

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
    return self.correct is not pass_through


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
    transformation.init, pass_through, transformation.update
  )


def corrected_like(rule: AsyncOptimizer, params, opt_state):
  """Shapes of what a rule's `correct` makes of a gradient.

  Args:
    rule: the rule.
    params: parameters, which gradients are like.
    opt_state: the state of the rule.

  Returns:
    A pytree of `jax.ShapeDtypeStruct`s, laid out over devices like the
    parameters where it is one tree like them, or several.
  """

  def corrected(params, opt_state):
    zero = jnp.zeros([], jnp.int32)
    told = dict.fromkeys(('staleness', 'worker_id', 'count'), zero)
    told['stale_params'] = params
    grads, _ = rule.correct(params, opt_state, params, **told)
    return grads

  def laid_out(leaf, p):
    sharding = leaf.sharding
    known = not isinstance(p, jax.core.Tracer)  # a traced one tells in `leaf`
    if known and leaf.shape == jnp.shape(p) and getattr(p, 'committed', False):
      sharding = p.sharding
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  leaves, structure = jax.tree.flatten(
    jax.eval_shape(corrected, params, opt_state)
  )
  again = itertools.cycle(jax.tree.leaves(params))
  return structure.unflatten(map(laid_out, leaves, again))


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
    init, correct, pass_through, num_workers=num_workers, averages=True
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
    correct if cut >= 0 else pass_through,
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
    correct if rule.corrects else pass_through,
    step,
    lookahead=lambda params, state: lookahead(params, state.inner),
    num_workers=rule.num_workers,
    averages=rule.averages,
  )
