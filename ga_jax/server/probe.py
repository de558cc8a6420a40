"""Whether a rule computes the same on shards: found by trying it."""

import collections
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from ga_jax.rules.parts import global_sums, optimizer
from ga_jax.server import split as split_lib


def check_rule(rule: optimizer.AsyncOptimizer, params):
  """Refuses a rule that would do something else on pieces of its parameters.

  Found out by trying: on leaves of the same names and dimensions with a few
  scalars each, the rule is run on all of them and on either half of each, with
  gradients of many sizes. So is a rule that does another computation where
  leaves have another shape (factored moments).

  Args:
    rule: the server rule.
    params: pytree of arrays.

  Raises:
    ValueError: it would, or asks for a sum where a shard cannot get it.
  """
  leaves, treedef = jax.tree.flatten(params)
  dtypes = tuple(np.dtype(jnp.result_type(leaf)) for leaf in leaves)
  _check_rule(rule, treedef, split_lib.shapes_of(leaves), dtypes)


@functools.lru_cache(maxsize=64)
def _check_rule(rule, treedef, shapes, dtypes):
  def operations(shapes):
    params = treedef.unflatten(map(jax.ShapeDtypeStruct, shapes, dtypes))
    state = jax.eval_shape(rule.init, params)
    number = jax.ShapeDtypeStruct((), np.int32)
    probe = _Probe(params, params, params, number, number, number)
    traced = jax.make_jaxpr(_update(rule))(state, probe)
    return collections.Counter(_primitives(traced.jaxpr))

  lines = [split_lib.line(shape, math.prod(shape)) for shape in shapes]
  if operations(shapes) != operations(lines):
    raise ValueError(
      'this rule does not compute the same for a matrix as for its scalars in '
      'a row (it may factor moments, or treat large leaves in another way): it '
      'needs whole leaves, so it cannot run on a sharded server'
    )
  small = [tuple(min(size, 3) for size in shape) for shape in shapes]
  _compare(rule, treedef, small, dtypes)


class _Probe(NamedTuple):
  """One arrival for a rule to be tried on."""

  grads: Any
  params: Any
  stale_params: Any
  staleness: np.int32
  worker_id: np.int32
  count: np.int32


def _update(rule):
  def update(state, probe):
    grads, params, *_ = probe
    extra = probe._asdict()
    del extra['grads'], extra['params']
    updates, state = rule.update(grads, state, params, **extra)
    return updates, rule.lookahead(params, state), state

  return update


def _primitives(jaxpr):
  """Names of all primitives in a program, as often as they stand there."""
  for equation in jaxpr.eqns:
    inner = list(jax.extend.core.jaxprs_in_params(equation.params))
    if not inner:
      yield equation.primitive.name
    for sub in inner:
      yield from _primitives(sub)


def _halves(treedef, shapes) -> split_lib.TreeSplit:
  """A split that cuts every leaf in two, and shares out those of one scalar."""
  halves, left = ([], []), 0
  for shape in shapes:
    size = math.prod(shape)
    cut = -(-size // 2)
    ranges = [(0, cut), (cut, size) if cut < size else None]
    if size == 1:
      left = 1 - left
      ranges = ranges[:: 1 if left else -1]
    for half, inside in zip(halves, ranges, strict=True):
      half.append(inside)
  return split_lib.TreeSplit(treedef, tuple(shapes), tuple(map(tuple, halves)))


def _probes(treedef, shapes, dtypes, num_workers):
  """Arrivals to try a rule on; in the last two one scalar moves, or is NaN."""
  rng = np.random.default_rng(0)

  def values(scale):
    leaves = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
      most = float(jnp.finfo(dtype).max) / 10
      drawn = np.clip(scale * rng.normal(size=shape), -most, most)
      leaves.append(np.asarray(drawn).astype(dtype))
    return leaves

  def first_set(leaves, value):
    """The same leaves, but for one scalar."""
    leaves = [leaf.copy() for leaf in leaves]
    for leaf in leaves:
      if leaf.size:
        leaf.flat[0] = value
        return leaves
    return leaves

  params = values(1.0)
  for count, scale in enumerate([1e-3, 0.1, 1.0, 10.0, 1e3, 1e6, 0.0, np.nan]):
    if scale > 0:
      grads, params = values(scale), values(1.0)
    elif scale == 0:
      grads, params = first_set(values(0.0), 1.0), first_set(params, 2.0)
    else:
      grads = first_set(values(1.0), scale)
    stale = [p + d for p, d in zip(params, values(0.1), strict=True)]
    yield _Probe(
      *map(treedef.unflatten, (grads, params, stale)),
      staleness=np.int32(3 * (count % 3 > 0)),
      worker_id=np.int32(count % 2 % (num_workers or 2)),
      count=np.int32(count),
    )


def _compare(rule, treedef, shapes, dtypes):
  """Compares a rule with itself on two halves."""
  halves = _halves(treedef, shapes)
  update = _update(rule)
  whole, half, part = map(
    jax.jit, (update, global_sums.with_totals(update), global_sums.part(update))
  )
  state, states, sums = None, None, None
  for probe in _probes(treedef, shapes, dtypes, rule.num_workers):
    trees = zip(*map(halves.pieces, probe[:3]), strict=True)
    pieces = [_Probe(*three, *probe[3:]) for three in trees]
    if states is None:
      state = rule.init(probe.params)
      states = [rule.init(piece.params) for piece in pieces]
      sums = [
        global_sums.count_sums(update, *shard)
        for shard in zip(states, pieces, strict=True)
      ]
      global_sums.check_same(sums)
    totals = ()
    for _ in range(sums[0]):
      parts = [
        part(*shard, totals=totals)
        for shard in zip(states, pieces, strict=True)
      ]
      totals += (global_sums.total(parts),)
    *expected, state = whole(state, probe)
    found = [
      half(*shard, totals=totals) for shard in zip(states, pieces, strict=True)
    ]
    states = [new for *_, new in found]
    for i, tree in enumerate(expected):
      _check_close(tree, halves.join([one[i] for one in found]))


def _check_close(expected, found):
  for (path, a), b in zip(
    jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True
  ):
    a, b = np.asarray(a), np.asarray(b).reshape(np.shape(a))
    largest = np.max(np.abs(a), where=np.isfinite(a), initial=0.0)
    rtol = max(1e-3, 8 * float(jnp.finfo(a.dtype).eps))
    atol = 0.1 * rtol * float(largest)
    if not np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
      raise ValueError(
        'this rule looks at several parameters together (a norm over all, a '
        'mean over a layer, whether all are finite), which a shard cannot do '
        f'alone: at {jax.tree_util.keystr(path) or "(root)"} it gives another '
        'update on a part of the parameters. A rule may ask for a sum over '
        'all shards, as ga_jax.rules.clip_by_global_norm does instead of that '
        'of optax'
      )
