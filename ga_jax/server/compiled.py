"""The server's functions compiled for one rule, shared by all who run it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import global_sums, optimizer
from ga_jax.server import statistics, update

leave = jax.jit(optimizer.leave)  # (opt_state, worker_id); nothing is donated


class Fixed(NamedTuple):
  """A function of hyper-parameters that ignores them, equal where `of` is."""

  of: Any  # a rule, or a worker program

  def __call__(self, hparams):
    del hparams
    return self.of


def fixed(rule: optax.GradientTransformation) -> Fixed:
  """A rule as a function of hyper-parameters."""
  return Fixed(optimizer.lift(rule))


class Compiled(NamedTuple):
  """`update` compiled for one rule; every function takes `hparams` first.

  A server may be one shard of several. `totals` is then a tuple of the sums
  over all shards that the rule asks for, in its order; None where the server is
  whole. A part is the shard's own of the sum that comes after `totals`.
  """

  rule: Callable[..., optimizer.AsyncOptimizer]  # (hparams), not compiled
  init: Callable[..., update.ServerState]  # (hparams, params, model_state)
  snapshot: Callable[..., update.Snapshot]  # (hparams, state)
  layer_metrics: Callable[..., update.LayerMetrics]  # (hparams, state, arrival)
  # (hparams, state, arrival, totals=None)
  apply: Callable[..., tuple[update.ServerState, update.Metrics]]
  accumulate: Callable[..., tuple[update.ServerState, update.Metrics]]
  close: Callable[..., update.ServerState]  # (hparams, state, totals=None)
  enter_part: Callable[..., jax.Array]  # (hparams, state, arrival, totals)
  close_part: Callable[..., jax.Array]  # (hparams, state, totals)
  # (hparams, state) -> sums per arrival and per close; not compiled
  sums: Callable[..., tuple[int, int]]


@functools.lru_cache(maxsize=128)
def compiled(
  rule_fn: Callable[[Any], optimizer.AsyncOptimizer],
  fold_fn: statistics.FoldFn,
  accumulates: bool,
) -> Compiled:
  """Compiles `update` for a rule.

  Parameters and statistics are never donated: snapshots may alias them. The
  optimiser state that `apply` is given is, and must not be used again.

  Args:
    rule_fn: `rule_fn(hparams) -> rule`, hashable; the same function gives the
      same compiled code, whatever the hyper-parameters.
    fold_fn: how model statistics are folded, hashable; see `statistics`.
    accumulates: whether a round may hold several gradients.

  Returns:
    The compiled functions.
  """

  def snap(hparams, state):
    return update.snapshot(rule_fn(hparams), state)

  def one(hparams, state, arrival):
    rule = rule_fn(hparams)
    return update.apply(rule, state, arrival, fold_fn, in_place=False)

  def add(hparams, state, arrival):
    rule = rule_fn(hparams)
    return update.accumulate(rule, state, arrival, fold_fn, in_place=False)

  def measure(hparams, state, arrival):
    return update.layer_metrics(rule_fn(hparams), state, arrival)

  def end(hparams, state):
    return update.close(rule_fn(hparams), state)

  def start(hparams, params, model_state):
    rule = rule_fn(hparams)
    return update.init(rule, params, model_state, accumulates=accumulates)

  enter = add if accumulates else one

  def sums(hparams, state):
    arrival = update.any_arrival(state)
    at_close = global_sums.count_sums(end, hparams, state) if accumulates else 0
    return global_sums.count_sums(enter, hparams, state, arrival), at_close

  return Compiled(
    rule=rule_fn,
    init=start,
    snapshot=jax.jit(snap),
    layer_metrics=jax.jit(measure),
    apply=_donating(global_sums.with_totals(one)),
    accumulate=jax.jit(global_sums.with_totals(add)),
    close=jax.jit(global_sums.with_totals(end)),
    enter_part=jax.jit(global_sums.part(enter)),
    close_part=jax.jit(global_sums.part(end)),
    sums=sums,
  )


def _donating(fn):
  """`fn(hparams, state, arrival, totals=None)` compiled, as `Compiled.apply`.

  The new optimiser state is written over the old one. What a rule keeps of its
  other arguments (the parameters, say) is copied, or the next call would give
  away what a snapshot aliases.
  """

  @functools.partial(jax.jit, donate_argnames='opt_state')
  def run(hparams, opt_state, state, arrival, totals):
    others = {id(leaf) for leaf in jax.tree.leaves((hparams, state, arrival))}
    state, metrics = fn(
      hparams, state._replace(opt_state=opt_state), arrival, totals=totals
    )
    own = jax.tree.map(
      lambda x: jnp.array(x, copy=True) if id(x) in others else x,
      state.opt_state,
    )
    # First, or XLA's CPU compiler copies what is overwritten.
    return own, state._replace(opt_state=()), metrics

  def call(hparams, state, arrival, totals=None):
    rest = state._replace(opt_state=())
    opt_state, state, metrics = run(
      hparams, state.opt_state, rest, arrival, totals
    )
    return state._replace(opt_state=opt_state), metrics

  call.jitted = run
  return call
