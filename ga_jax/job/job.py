"""What is trained, whoever trains it."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax import programs
from ga_jax.guards import checks
from ga_jax.job import program as program_lib
from ga_jax.job import source as source_lib
from ga_jax.policies.parts import base as policies
from ga_jax.policies.parts.base import Policy
from ga_jax.rules.parts import optimizer
from ga_jax.server import compiled, ledger, statistics, update

# Of what is larger JAX takes 32 bits: two seeds would be one.
_LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Job:
  """What is trained: a loss, parameters, batches, a rule and a policy.

  Checked when it is made, and never changed: `dataclasses.replace` makes
  another one. Arrays of NumPy are copied. A job can be pickled where its
  functions can: its parameters go as NumPy arrays, and it is made again, with
  all checks, where it comes.

  Attributes:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`;
      what `programs.recurrent` says where that is the program.
    params: initial parameters, a pytree of arrays.
    batches: `batch_fn(batch_id) -> batch` of NumPy arrays, or a `Source`; it is
      called by every worker, whose threads or processes these are.
    rule: a rule, a plain optax transformation, or, with `hparams`, a function
      `rule(hparams) -> rule`.
    policy: whom the server waits for.
    model_state: initial running statistics, () without: moving averages
      (floating-point leaves) and counters (integers).
    stats_momentum: momentum m of the averages (0.99 in Flax's BatchNorm by
      default); required where there are any.
    fold_fn: instead, for statistics of another kind: `fold_fn(returned, now,
      sent, num_batches) -> model_state`, see `statistics.Averages`.
    program: what a worker does, `program(loss_fn) -> Program`, or, with
      `hparams`, `program(hparams)(loss_fn)`; by default `programs.gradient`.
    hparams: pytree of numbers for `rule` and `program`; other numbers compile
      nothing again. Kept as JAX's arrays; None without.
    seed: of the keys that batches and losses are given, 0 to 2³² − 1.
    layer_metrics: whether to measure gap and penalty of every layer (a leaf of
      the parameters, in their order: `layer_penalties.names`) at every arrival.

  Raises:
    ValueError: a number is out of its range, a parameter is not finite, the
      program remembers other
      streams than the batches have, or the rule's penalties are not known by
      layer where they are asked for.
    TypeError: an argument is something else than it should be.

  Examples:
    >>> import ga_jax, jax.numpy as jnp, numpy as np
    >>> loss = lambda p, s, x, key: (jnp.mean((x - p) ** 2), s)
    >>> job = ga_jax.Job(
    ...     loss, jnp.zeros(()), lambda i: np.ones(4, np.float32),
    ...     ga_jax.gap_aware(0.01), ga_jax.policies.asynchronous(), seed=1)
    >>> job.worker_program.num_batches
    1
  """

  loss_fn: Callable[..., Any]
  params: Any
  batches: source_lib.Source | Callable[[int], Any]
  rule: Any
  policy: Policy
  _: dataclasses.KW_ONLY
  model_state: Any = ()
  stats_momentum: float | None = None
  fold_fn: statistics.FoldFn | None = None
  program: Callable[..., Any] | None = None
  hparams: Any = None
  seed: int = 0
  layer_metrics: bool = False

  def __post_init__(self):
    policies.check(self.policy)
    update.check_params(self.params)
    batches = source_lib.source_of(self.batches)
    params, model_state, resident, hparams = update.owned(
      (self.params, self.model_state, batches.resident, self.hparams)
    )
    kept = {
      'rule': optimizer.lift(self.rule) if hparams is None else self.rule,
      'params': params,
      'model_state': model_state,
      'batches': batches._replace(resident=resident),
      # Arrays, so that a momentum of 0 means the same inside and outside jit.
      'hparams': jax.tree.map(jnp.asarray, hparams),
      'seed': checks.integer('seed', self.seed, 0, _LARGEST_SEED),
    }
    for name, value in kept.items():
      object.__setattr__(self, name, value)
    self._check()

  def _check(self):
    """Raises where parts do not fit."""
    _ = self.fold  # which is checked where it is made
    if self.layer_metrics:
      update.check_layer_metrics(
        self.rule_fn(self.hparams),
        self.params,
        self.model_state,
        self.accumulates,
      )
    streams = self.program_fn(self.hparams)(self.loss_fn).streams
    if streams not in (0, self.batches.streams):
      raise ValueError(
        f'the worker program remembers {streams} streams, the source of the '
        f'batches has streams={self.batches.streams}'
      )

  def __reduce__(self):
    given = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    for name in ('params', 'model_state'):
      given[name] = jax.tree.map(np.asarray, given[name])
    return functools.partial(Job, **given), ()

  def check_workers(self, num_workers: int) -> int:
    """How many workers there are, as a Python int.

    Raises:
      ValueError: it is no integer of at least 1, or the rule does not fit so
        many.
      TooLargeError: there is no memory for so many.
    """
    num_workers = checks.integer('num_workers', num_workers, 1)
    ledger.check_record(num_workers)
    update.check_rule(
      self.rule_fn(self.hparams), self.accumulates, num_workers, self.params
    )
    return num_workers

  # What is derived, for those who compute it.

  @property
  def accumulates(self) -> bool:
    """Whether the policy averages rounds."""
    return self.policy.accumulates

  @functools.cached_property
  def source(self) -> source_lib.Source:
    """Where batches come from, `resident` on JAX's default device.

    It is moved when it is asked for first: who only sends a job elsewhere has
    no use for it.
    """
    resident = jax.tree.map(jnp.asarray, self.batches.resident)
    return self.batches._replace(resident=resident)

  @functools.cached_property
  def rule_fn(self) -> Callable[[Any], optimizer.AsyncOptimizer]:
    """`rule_fn(hparams) -> rule`, hashable; by it compiled code is known."""
    return compiled.Fixed(self.rule) if self.hparams is None else self.rule

  @functools.cached_property
  def program_fn(self) -> Callable[[Any], Callable[..., programs.Program]]:
    """`program_fn(hparams)(loss_fn) -> Program`, hashable."""
    if self.hparams is None or self.program is None:
      return compiled.Fixed(self.program or programs.gradient)
    return self.program

  @functools.cached_property
  def fold(self) -> statistics.FoldFn:
    """How model statistics are folded, hashable; see `statistics`."""
    return statistics.fold_of(
      self.model_state, self.stats_momentum, self.fold_fn
    )

  @property
  def worker_program(self) -> programs.Program:
    """What a worker does with host batches, not compiled."""
    return program_lib.over_host_batches(
      self.program_fn,
      self.hparams,
      self.loss_fn,
      self.source.load_fn,
      self.source.resident,
    )


def takes_a_job(verb: Callable) -> Callable:
  """Of a function whose first argument is a `Job`, or `jobs`: checks it.

  Args:
    verb: the function.

  Returns:
    The function, which raises a TypeError that says how it is called where it
    is given something else, as version 0.1 took.
  """
  first, *_ = parameters = inspect.signature(verb).parameters
  required = ', '.join(
    f'{name}=...' if parameter.kind == parameter.KEYWORD_ONLY else name
    for name, parameter in parameters.items()
    if parameter.default is parameter.empty
  )

  @functools.wraps(verb)
  def checked(*args, **kwargs):
    given = args[0] if args else kwargs.get(first)
    several = first == 'jobs' and isinstance(given, Sequence)
    for job in given if several else [given]:
      if not isinstance(job, Job):
        raise TypeError(
          f'{verb.__name__} is called as {verb.__name__}({required}), where a '
          'job is ga_jax.Job(loss_fn, params, batches, rule, policy, ...); got '
          f'a {type(job).__name__}'
        )
    return verb(*args, **kwargs)

  return checked
