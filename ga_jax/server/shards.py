"""A server whose parameters are split over several shards.

Every shard keeps a piece of the parameters, the rule's state for it and the
snapshots of it, and is told the same things in the same order: an update is one
version of all of them. Element-wise rules need nothing else; one that looks at
all parameters together gets its sums from all shards before the update is made
(`rules/reductions.py`). The model statistics are with the first shard.

The shards may be in this process or anywhere else; the bits are the same.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ga_jax.policies.parts.base import Action
from ga_jax.rules.parts import global_sums, optimizer
from ga_jax.server import compiled as compiled_lib
from ga_jax.server import core as core_lib
from ga_jax.server import ledger, probe, snapshots, statistics, update
from ga_jax.server import split as split_lib


class Shard:
  """One piece of a server.

  All that goes in and out are pytrees of arrays and plain values, and nothing
  is asked but by a call, so that it can live in a process of its own.
  """

  def __init__(
    self,
    rule_fn: Callable[[Any], optimizer.AsyncOptimizer],
    fold_fn: statistics.FoldFn,
    accumulates: bool,
    hparams,
    params,
    model_state=(),
    device=None,
  ):
    """Starts a shard; the arguments are those of `core`, `params` its piece."""
    self._compiled = compiled_lib.compiled(rule_fn, fold_fn, accumulates)
    self._hparams = hparams
    self._accumulates = accumulates
    self._core = core_lib.ServerCore(
      self._compiled, hparams, params, model_state, accumulates, device
    )
    self._arguments = None  # of the gradient that is offered

  def sums(self) -> tuple[int, int]:
    """Sums over all shards per gradient that enters, and per round's end."""
    return self._compiled.sums(self._hparams, self._core.state)

  def state(self) -> update.ServerState:
    """All it knows."""
    return self._core.state

  def snapshot(self) -> update.Snapshot:
    """Its piece of what is sent at the version that was published last."""
    return self._core.snapshot()

  def hold(self, version: int) -> update.Snapshot:
    """Keeps its piece of a snapshot until `release`, and returns it.

    Raises:
      ValueError: the shard is not at this version.
    """
    if version != self._core.version:
      raise ValueError(
        f'a shard is at version {self._core.version} where version {version} '
        'is asked for: the shards of a server must be told the same'
      )
    return self._core.hold(version)

  def read(self, version: int) -> update.Snapshot:
    """Its piece of a snapshot that is held."""
    return self._core.store.read(version)

  def release(self, version: int):
    """Nobody needs that snapshot any more."""
    self._core.release(version)

  def leave(self, worker_id: int):
    """A worker has left."""
    self._core.leave(worker_id)

  def offer(self, ticket: ledger.Ticket, grads, model_state, weight, staleness):
    """Brings its piece of a gradient; `enter` must follow."""
    self._arguments = ticket, grads, model_state, weight, staleness

  def enter_part(self, totals) -> jax.Array:
    """Its part of the sum after `totals` that the offered gradient needs."""
    return self._compiled.enter_part(
      self._hparams,
      self._core.state,
      self._core.arrival(*self._arguments),
      totals=totals,
    )

  def enter(self, totals) -> update.Metrics:
    """The offered gradient enters the round; without rounds it is applied."""
    ticket, grads, model_state, weight, staleness = self._arguments
    self._arguments = None
    return self._core.enter(
      ticket,
      grads,
      model_state,
      action=Action.ACCUMULATE if self._accumulates else Action.APPLY,
      weight=weight,
      staleness=staleness,
      totals=totals,
    )

  def close_part(self, totals) -> jax.Array:
    """Its part of the sum after `totals` that closing the round needs."""
    return self._compiled.close_part(
      self._hparams, self._core.state, totals=totals
    )

  def close(self, totals):
    """Closes the open round."""
    self._core.close(totals)

  def warm_up(self, grads, model_state):
    """Compiles everything, with any gradient; nothing is changed."""
    sent, ticket = self.snapshot(), ledger.Ticket(0, 0, 0, 0, 1, 0)
    arrival = self._core.arrival(ticket, grads, model_state, 1.0, 0, sent)
    entering, closing = self.sums()
    totals, close_totals = (), ()
    for _ in range(entering):
      totals += self._as_total(
        self._compiled.enter_part, arrival, totals=totals
      )
    for _ in range(closing):
      close_totals += self._as_total(
        self._compiled.close_part, totals=close_totals
      )
    self._core.warm_up(grads, model_state, sent, totals, close_totals)

  def _as_total(self, part, *args, totals):
    part = part(self._hparams, self._core.state, *args, totals=totals)
    return (global_sums.total([part]),)

  def save(self):
    """All arrays, a pytree."""
    return self._core.save()

  def restore(self, saved):
    """Goes on where `save` was called."""
    self._core.restore(saved, dict.fromkeys(saved['snapshots'], 1))


class ShardedCore:
  """What `core.ServerCore` is, made of shards.

  Attributes:
    version: updates made.
    store: the snapshots that tickets hold, whole when they are read.
  """

  def __init__(
    self,
    shards: Sequence[Any],
    split: split_lib.Split,
    accumulates: bool,
    gather_fn: Callable[[list[Any]], list[Any]] | None = None,
  ):
    """Joins shards that have been started.

    Args:
      shards: `Shard`s, or what has their methods and may return handles of the
        values; the methods of one shard must take effect in the order in which
        they were called.
      split: how the parameters are split over them.
      accumulates: whether a round may hold several gradients.
      gather_fn: from handles to values, waits for them; None where the methods
        return the values.

    Raises:
      ValueError: the rule does not ask for the same sums on every shard.
    """
    self._shards = list(shards)
    self._split = split
    self._accumulates = accumulates
    self._gather_fn = gather_fn
    sums = self._gather(self._all('sums'))
    global_sums.check_same(sums)
    self._enter_sums, self._close_sums = sums[0]
    self.version = 0
    self.store = _Store(self._join_snapshots)

  @property
  def params(self):
    """The whole parameters now."""
    return self.state.params

  @property
  def state(self) -> update.ServerState:
    """Everything, with whole parameters and the optimiser states by shard."""
    states = self._gather(self._all('state'))
    return update.ServerState(
      params=self._join([state.params for state in states]),
      opt_state=tuple(state.opt_state for state in states),
      model_state=states[0].model_state,
      version=states[0].version,
      count=states[0].count,
      round=tuple(s.round for s in states) if self._accumulates else None,
    )

  def save(self):
    """All arrays, by shard; a pytree."""
    saved = self._gather(self._all('save'))
    return {
      'state': tuple(one['state'] for one in saved),
      'published': tuple(one['published'] for one in saved),
      'snapshots': {
        version: tuple(one['snapshots'][version] for one in saved)
        for version in self.store.holders()
      },
    }

  def like(self, versions: Iterable[int]):
    """What `save` returns where these versions are held: shapes to load."""
    pieces = tuple(self._gather(self._all('snapshot')))
    return {**self.save(), 'snapshots': dict.fromkeys(versions, pieces)}

  def restore(self, saved, holders: dict[int, int]):
    """Goes on where `save` was called; `holders` are tickets by version."""
    for i, shard in enumerate(self._shards):
      held = {version: saved['snapshots'][version][i] for version in holders}
      shard.restore(
        {
          'state': saved['state'][i],
          'published': saved['published'][i],
          'snapshots': held,
        }
      )
    self.version = int(saved['state'][0].version)
    pieces = {version: self._all('read', version) for version in holders}
    self.store = _Store(self._join_snapshots)
    self.store.restore(pieces, holders)

  def hold(self, version: int) -> update.Snapshot:
    """What a worker that starts at the current version is sent."""
    self.keep(version)
    return self.store.read(version)

  def keep(self, version: int):
    """`hold`, where nobody looks at it now: nothing is joined."""
    self.store.hold(version, lambda: self._all('hold', version))

  def pieces(self, version: int) -> list[Any]:
    """The shards' own (handles of) pieces of a snapshot that is held."""
    return self.store.pieces(version)

  def snapshot(self) -> update.Snapshot:
    """What is sent at the version that was published last."""
    return self._join_snapshots(self._all('snapshot'))

  def release(self, version: int):
    """A ticket of that version has ended."""
    self.store.release(version)
    if version not in self.store:
      self._all('release', version)

  def leave(self, worker_id: int):
    """A worker has left; see `core.ServerCore.leave`."""
    self._all('leave', worker_id)

  def enter(
    self,
    ticket,
    grads,
    model_state,
    *,
    action,
    weight,
    staleness,
    sent=None,
  ) -> update.Metrics:
    """A gradient enters the open round; see `core.ServerCore.enter`."""
    del sent  # every shard has it in its store
    return self.enter_pieces(
      ticket,
      self._pieces(grads),
      model_state,
      action=action,
      weight=weight,
      staleness=staleness,
    )

  def enter_pieces(
    self,
    ticket,
    pieces: Sequence[Any],
    model_state,
    *,
    action,
    weight,
    staleness,
  ) -> update.Metrics:
    """`enter`, of a gradient that is in pieces (or their handles) already."""
    for i, (shard, piece) in enumerate(zip(self._shards, pieces, strict=True)):
      stats = () if i else model_state
      shard.offer(ticket, piece, stats, weight, staleness)
    metrics = self._all('enter', self._totals('enter_part', self._enter_sums))
    if action == Action.APPLY:
      self.close() if self._accumulates else self._count()
    return self._metrics(metrics)

  def warm_up(self, grads, model_state, sent=None):
    """Compiles everything, with any gradient; nothing is changed."""
    del sent
    pieces = self._pieces(grads)
    self._join(pieces)
    self._gather(
      [
        shard.warm_up(piece, () if i else model_state)
        for i, (shard, piece) in enumerate(
          zip(self._shards, pieces, strict=True)
        )
      ]
    )

  def close(self):
    """Closes the open round."""
    self._all('close', self._totals('close_part', self._close_sums))
    self._count()

  def _count(self):
    self.version += 1

  def _all(self, method: str, *args) -> list[Any]:
    return [getattr(shard, method)(*args) for shard in self._shards]

  def _gather(self, handles: list[Any]) -> list[Any]:
    return handles if self._gather_fn is None else self._gather_fn(handles)

  def _totals(self, method: str, number: int) -> tuple[np.ndarray, ...]:
    """The sums that an update needs, each from one round of messages."""
    totals = ()
    for _ in range(number):
      parts = self._gather(self._all(method, totals))
      totals += (global_sums.total(parts),)
    return totals

  def _metrics(self, handles) -> update.Metrics:
    sizes = self._split.sizes
    if self._gather_fn is None:
      return combined(tuple(handles), sizes)
    fetch = functools.cache(
      lambda: combined(tuple(self._gather(handles)), sizes)
    )
    return update.Metrics(
      *(Later(fetch, name) for name in update.Metrics._fields)
    )

  def _pieces(self, tree) -> list[Any]:
    if _on_host(tree):
      return self._split.pieces(tree)
    pieces, _ = _compiled_split(self._split)
    return pieces(tree)

  def _join(self, pieces) -> Any:
    if _on_host(pieces):
      return self._split.join(pieces)
    _, join = _compiled_split(self._split)
    return join(pieces)

  def _join_snapshots(self, handles) -> update.Snapshot:
    sent = self._gather(handles)
    params = self._join([snapshot.params for snapshot in sent])
    return update.Snapshot(params, sent[0].model_state)


class Later:
  """A number that is fetched when somebody looks at it."""

  def __init__(self, fetch: Callable[[], Any], name: str):
    self._fetch = fetch
    self._name = name

  def __array__(self, dtype=None, copy=None):
    return np.array(getattr(self._fetch(), self._name), dtype)

  def __float__(self):
    return float(np.asarray(self))


class _Store(snapshots.SnapshotStore):
  """Keeps pieces, or their handles, and joins those that are read.

  The last that was read is kept whole.
  """

  def __init__(self, join_fn):
    super().__init__()
    self._join_fn = join_fn
    self._last = None, None  # version, snapshot

  def pieces(self, version: int) -> list[Any]:
    return super().read(version)

  def read(self, version: int) -> update.Snapshot:
    if self._last[0] != version:
      self._last = version, self._join_fn(self.pieces(version))
    return self._last[1]

  def release(self, version: int):
    super().release(version)
    if self._last[0] == version and version not in self:
      self._last = None, None


@functools.partial(jax.jit, static_argnums=1)
def combined(
  metrics: tuple[update.Metrics, ...], sizes: tuple[int, ...]
) -> update.Metrics:
  """The metrics of the whole from those of its shards.

  The mean penalty is exact where one link penalises a parameter: of several in
  a row it is the product of their means on every shard.

  Args:
    metrics: of every shard.
    sizes: parameters of every shard.

  Returns:
    Gap and penalty as device scalars.
  """
  weights = [size / sum(sizes) for size in sizes]

  def mean(values):
    return sum(w * value for w, value in zip(weights, values, strict=True))

  return update.Metrics(
    gap=jnp.sqrt(mean([one.gap**2 for one in metrics])),
    mean_penalty=mean([one.mean_penalty for one in metrics]),
    max_penalty=functools.reduce(
      jnp.maximum, [one.max_penalty for one in metrics]
    ),
  )


@functools.lru_cache(maxsize=64)
def _compiled_split(split: split_lib.Split):
  return jax.jit(split.pieces), jax.jit(split.join)


def _on_host(tree) -> bool:
  return all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))


def check(
  shards: int, rule: optax.GradientTransformation, params, program: Any = None
):
  """Refuses what cannot run on so many shards.

  Args:
    shards: number of shards.
    rule: the server rule, or a plain optax transformation.
    params: pytree of arrays.
    program: the worker program, a `programs.Program`, where it is known.

  Raises:
    ValueError: says why.
  """
  split_lib.split(params, shards)
  if shards == 1:
    return
  if getattr(program, 'exchange', None) is not None:
    raise ValueError(
      "this worker program exchanges with the whole of the server's "
      'parameters at arrival (EASGD, EAMSGD), which no shard has: take one '
      'server shard, or another program'
    )
  probe.check_rule(optimizer.lift(rule), params)


def core(
  rule_fn: Callable[[Any], optimizer.AsyncOptimizer],
  fold_fn: statistics.FoldFn,
  accumulates: bool,
  hparams,
  params,
  model_state=(),
  *,
  shards: int = 1,
  device=None,
  shard_fn: Callable[..., Any] = Shard,
  gather_fn: Callable[[list[Any]], list[Any]] | None = None,
) -> core_lib.ServerCore | ShardedCore:
  """A server's core on any number of shards.

  Args:
    rule_fn: see `compiled.compiled`, as the next two.
    fold_fn: how model statistics are folded.
    accumulates: whether a round may hold several gradients.
    hparams: given to `rule_fn`.
    params: initial parameters.
    model_state: initial model statistics.
    shards: number of shards; 1 gives a plain `ServerCore`.
    device: where the arrays are; by default JAX's default device.
    shard_fn: starts a shard from the arguments of `Shard`.
    gather_fn: see `ShardedCore`.

  Returns:
    A core; the same number of shards gives the same bits, wherever they are.

  Raises:
    ValueError: the rule cannot run on so many shards.
  """
  compiled = compiled_lib.compiled(rule_fn, fold_fn, accumulates)
  if shards == 1:
    return core_lib.ServerCore(
      compiled, hparams, params, model_state, accumulates, device
    )
  check(shards, compiled.rule(hparams), params)
  split = split_lib.split(params, shards)
  made = [
    shard_fn(
      rule_fn,
      statistics.NOTHING if i else fold_fn,
      accumulates,
      hparams,
      piece,
      () if i else model_state,
      device,
    )
    for i, piece in enumerate(split.pieces(params))
  ]
  return ShardedCore(made, split, accumulates, gather_fn)
