"""A server core made of shards, wherever these are.

Every shard keeps a piece of the parameters, the rule's state for it and the
snapshots of it, and is told the same things in the same order: an update is one
version of all of them. Element-wise rules need nothing else; one that looks at
all parameters together gets its sums from all shards before the update is made
(`rules.parts.global_sums`). The model statistics are with the first shard.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax.policies.parts.base import Action
from ga_jax.rules.parts import global_sums
from ga_jax.server import core as core_lib
from ga_jax.server import snapshots, update
from ga_jax.server import split as split_lib


class ShardedCore(core_lib.Core):
  """A `core.Core` made of shards."""

  def __init__(
    self,
    shards: Sequence[Any],
    split: split_lib.TreeSplit,
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
    self._store = _Store(self._join_snapshots)

  @property
  def params(self):
    return self.state.params

  @property
  def model_state(self):
    return self.state.model_state

  @property
  def state(self) -> update.ServerState:
    """See `core.Core`; the optimiser states are by shard."""
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
    saved = self._gather(self._all('save'))
    return {
      'state': tuple(one['state'] for one in saved),
      'published': tuple(one['published'] for one in saved),
      'snapshots': {
        version: tuple(one['snapshots'][version] for one in saved)
        for version in self.holders()
      },
    }

  def like(self, versions: Iterable[int]):
    pieces = tuple(self._gather(self._all('snapshot')))
    return {**self.save(), 'snapshots': dict.fromkeys(versions, pieces)}

  def restore(self, saved, holders: dict[int, int]):
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
    self._store = _Store(self._join_snapshots)
    self._store.restore(pieces, holders)

  def snapshot(self) -> update.Snapshot:
    return self._join_snapshots(self._all('snapshot'))

  def hold(self, version: int):
    self._store.hold(version, lambda: self._all('hold', version))

  def read(self, version: int) -> update.Snapshot:
    return self._store.read(version)

  def to_send(self, version: int) -> update.Snapshot | split_lib.Pieces:
    if self._gather_fn is None:
      return self.read(version)
    return split_lib.Pieces(tuple(self._store.pieces(version)))

  def release(self, version: int):
    self._store.release(version)
    if version not in self._store:
      self._all('release', version)

  def holders(self) -> dict[int, int]:
    return self._store.holders()

  def leave(self, worker_id: int):
    self._all('leave', worker_id)

  def enter(
    self, entry: core_lib.Entry, action: Action
  ) -> tuple[update.Metrics, None]:
    for i, (shard, piece) in enumerate(self._with_pieces(entry.grads)):
      shard.offer(
        entry.ticket,
        piece,
        () if i else entry.model_state,
        entry.weight,
        entry.staleness,
      )
    metrics = self._all('enter', self._totals('enter_part', self._enter_sums))
    if action == Action.APPLY:
      self.close() if self._accumulates else self._count()
    return self._metrics(metrics), None

  def warm_up(self, grads, model_state, sent=None):
    del sent  # every shard has its own
    pieces = self._with_pieces(grads)
    self._join([piece for _, piece in pieces])
    self._gather(
      [
        shard.warm_up(piece, () if i else model_state)
        for i, (shard, piece) in enumerate(pieces)
      ]
    )

  def close(self):
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

  def _with_pieces(self, tree) -> list[tuple[Any, Any]]:
    """Each shard with its piece of a tree."""
    if isinstance(tree, split_lib.Pieces):
      pieces = tree.handles
    elif _on_host(tree):
      pieces = self._split.pieces(tree)
    else:
      cut, _ = _compiled_split(self._split)
      pieces = cut(tree)
    return list(zip(self._shards, pieces, strict=True))

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
def _compiled_split(split: split_lib.TreeSplit):
  return jax.jit(split.pieces), jax.jit(split.join)


def _on_host(tree) -> bool:
  return all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
