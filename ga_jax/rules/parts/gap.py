"""Measuring the gap, and dividing by the penalty that follows from it.

The pieces that gap-aware rules share; no rule stands here.

References:
  Barkai, Hakimi, Schuster, `Gap-Aware Mitigation of Gradient Staleness
  <https://arxiv.org/abs/1909.10802>`_, ICLR 2020.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ga_jax.rules.parts import global_sums, layer_penalties, numbers
from ga_jax.rules.parts import penalties as penalties_lib


class GapMetrics(NamedTuple):
  """What the last correction saw; device scalars of the default float type."""

  mean_gap: jax.typing.ArrayLike  # ‖θ − θs‖₂ / sqrt(k), the paper's Gap.
  penalty: penalties_lib.Penalty  # of G over all parameters.

  @property
  def mean_penalty(self):
    return self.penalty.mean

  @property
  def max_penalty(self):
    return self.penalty.max


def check_stale_params(name: str, stale_params, params):
  """Checks the two trees a gap is measured between.

  Args:
    name: the link that needs them, for the message.
    stale_params: what the worker was sent.
    params: the parameters now.

  Raises:
    TypeError: one of them was not passed.
    ValueError: they differ in structure or shape; the leaf is named.
  """
  if params is None or stale_params is None:
    missing = 'params' if params is None else 'stale_params'
    raise TypeError(
      f'{name} needs {missing}: call update(grads, state, params, '
      'stale_params=...) with the parameters the gradient was computed at. '
      'Under a policy that averages rounds build the chain with ga_jax.chain, '
      'under gradient accumulation use ga_jax.multi_steps.'
    )
  now, _ = jax.tree_util.tree_flatten_with_path(params)
  stale, _ = jax.tree_util.tree_flatten_with_path(stale_params)
  now = {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in now}
  stale = {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in stale}
  for path in {**now, **stale}:
    if now.get(path) != stale.get(path):
      raise ValueError(
        f'{name}: params and stale_params differ at leaf {path or "(root)"}: '
        f'{_describe(now, path)} in params, {_describe(stale, path)} in '
        'stale_params (inside optax.masked or optax.partition pass '
        'mask_compatible_extra_args=True)'
      )
  if jax.tree.structure(params) != jax.tree.structure(stale_params):
    raise ValueError(
      f'{name}: params are {jax.tree.structure(params)}, stale_params are '
      f'{jax.tree.structure(stale_params)}'
    )


def gap_rms(params, stale_params) -> jax.Array:
  """The Gap of the paper: ‖θ − θs‖₂ / sqrt(k), k parameters; a scalar.

  On a shard that of the parameters at hand.
  """
  squares = _sum_of_squares(params, stale_params)
  return jnp.sqrt(squares / float(max(numbers.tree_size(params), 1)))


def global_gap_rms(params, stale_params) -> jax.Array:
  """`gap_rms` over the parameters of all shards."""
  squares = _sum_of_squares(params, stale_params)
  return jnp.sqrt(global_sums.global_mean(squares, numbers.tree_size(params)))


def _sum_of_squares(params, stale_params) -> jax.Array:
  def anywhere(leaves, stale):
    return numbers.tree_sum(
      [
        jnp.sum(numbers.abs_sq(distance(p, ps)))
        for p, ps in zip(leaves, stale, strict=True)
      ]
    )

  def on_cpu(leaves, stale):  # in a shape that nothing is shared with: `_sums`
    leaves, stale = jax.lax.optimization_barrier((leaves, stale))
    return anywhere(*(_as_pairs(tree) for tree in (leaves, stale)))

  leaves = jax.tree.leaves(params), jax.tree.leaves(stale_params)
  return jax.lax.platform_dependent(*leaves, cpu=on_cpu, default=anywhere)


def distance(leaf, stale_leaf) -> jax.Array:
  """|θ − θs| of one leaf, in `numbers.float_dtype`."""
  leaf, stale_leaf = jnp.asarray(leaf), jnp.asarray(stale_leaf)
  if jnp.iscomplexobj(leaf):
    return jnp.abs(leaf - stale_leaf)
  dtype = numbers.float_dtype(leaf)
  return jnp.abs(leaf.astype(dtype) - stale_leaf.astype(dtype))


def no_gap_metrics(params) -> GapMetrics:
  """The metrics before any gradient came: no gap, no penalty."""
  return GapMetrics(numbers.float_scalar(0.0), penalties_lib.no_penalty(params))


def gap_metrics(opt_state: optax.OptState) -> GapMetrics:
  """The gap and penalty of the last correction, found anywhere in a state.

  Where several links are gap-aware (the groups of `optax.partition`, say), it
  is that of all the parameters that they penalise: gap and mean penalty are
  weighted by the number of parameters, see `gap_metrics_by_group` for each.

  Args:
    opt_state: the state of a rule, or of a chain that holds one.

  Returns:
    `GapMetrics` of device scalars; nothing is copied to the host.

  Raises:
    ValueError: the state holds no gap-aware link, or several of which one does
      not say what it penalises.
  """
  found = list(gap_metrics_by_group(opt_state).values())
  if len(found) == 1:
    return found[0]
  if any(one.penalty.sizes is None for one in found):
    raise ValueError(
      'this state holds several gap-aware links, one of which does not say in '
      'its penalty what it divides (base.sizes_of): ask gap_metrics_by_group'
    )
  groups = [penalties_lib.sizes_by_name(one.penalty.sizes) for one in found]
  sizes = [sum(group.values()) for group in groups]
  squares = [
    size / max(sum(sizes), 1) * one.mean_gap**2
    for size, one in zip(sizes, found, strict=True)
  ]
  return GapMetrics(
    mean_gap=jnp.sqrt(numbers.tree_sum(squares)),
    penalty=penalties_lib.combined_penalty(
      [one.penalty for one in found],
      dict(itertools.chain(*(group.items() for group in groups))),
    ),
  )


def gap_metrics_by_group(opt_state: optax.OptState) -> dict[str, GapMetrics]:
  """The gap and penalty of every gap-aware link in a state.

  Args:
    opt_state: see `gap_metrics`.

  Returns:
    `GapMetrics` by name: the label of the link's group in `optax.partition`,
    labels of groups within groups joined by '/'. Links without a label, and
    those of the same label, are numbered in the order of the chain: '0', '1',
    'head/0', 'head/1'.

  Raises:
    ValueError: the state holds no gap-aware link.
  """

  def is_metrics(node):
    return isinstance(node, GapMetrics)

  leaves = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=is_metrics)
  labelled = {}
  for path, node in leaves:
    if is_metrics(node):
      keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
      labelled.setdefault('/'.join(map(str, keys)), []).append(node)
  if not labelled:
    raise ValueError('this optimiser state holds no gap-aware link')
  named = {}
  for label, nodes in labelled.items():
    for i, node in enumerate(nodes):
      number = [str(i)] if len(nodes) > 1 or not label else []
      named['/'.join([label] * bool(label) + number)] = node
  return named


def penalize(tree, penalties):
  """tree / G, computed in G's dtype and returned in the tree's own.

  Args:
    tree: gradients or decay, a pytree of arrays.
    penalties: G, a pytree like `tree`.

  Returns:
    A pytree like `tree`.
  """

  def divide(x, g):
    wide = x.dtype if jnp.iscomplexobj(x) else g.dtype
    return (x.astype(wide) / g.astype(wide)).astype(x.dtype)

  return jax.tree.map(divide, tree, penalties)


def penalty(gap, scale, active) -> jax.Array:
  """G = 1 + gap / C where it is active and C > 0, else exactly 1.

  Args:
    gap: |θ − θs|, any shape.
    scale: C, same shape or a scalar.
    active: bool, whether a penalty is due at all.

  Returns:
    G, shape and dtype of `gap`. The division is guarded before it is made, so
    that no NaN or infinity arises on the way.
  """
  active = active & (scale > 0)
  return jnp.where(active, 1.0 + gap / jnp.where(active, scale, 1.0), 1.0)


def penalties_of(params, stale_params, moments, scale, active):
  """G of every parameter, and what the penalties come to.

  Args:
    params: θ.
    stale_params: θs, like params.
    moments: what C is made of, like params.
    scale: `scale(moment) -> C`, element-wise and always above 0.
    active: bool, whether a penalty is due at all.

  Returns:
    (G, like params; `GapMetrics`).
  """

  leaves, structure = jax.tree.flatten(params)
  rows = zip(
    leaves,
    jax.tree.leaves(stale_params),
    jax.tree.leaves(moments),
    strict=True,
  )
  rows = [tuple(map(jnp.asarray, row)) for row in rows]
  penalties, sums = [None] * len(rows), []
  for group in _groups(rows):
    sums.append(_sums(*_joined([rows[i] for i in group]), scale))
    due = active & sums[-1].moved
    for i in group:
      p, ps, s = rows[i]
      penalties[i] = penalty(distance(p, ps), scale(s), due)
  size = float(max(numbers.tree_size(params), 1))
  squares = numbers.tree_sum([one.squares for one in sums])
  mean = 1.0 + numbers.tree_sum([one.ratios for one in sums]) / size
  largest = numbers.float_scalar(0.0)
  for one in sums:
    largest = jnp.maximum(largest, numbers.float_scalar(one.largest))
  metrics = GapMetrics(
    mean_gap=jnp.sqrt(squares / size),
    penalty=penalties_lib.Penalty(
      mean=jnp.where(active, mean, 1.0),
      max=jnp.where(active, 1.0 + largest, 1.0),
      sizes=penalties_lib.sizes_of(params),
    ),
  )
  penalties = structure.unflatten(penalties)
  layer_penalties.tell(penalties)
  return penalties, metrics


def _groups(rows) -> list[list[int]]:
  """Indices of leaves: large ones alone, small ones of a kind together.

  A network has many small leaves, and each reduction is code to be compiled.
  """
  groups, small = [], {}
  for i, row in enumerate(rows):
    if row[0].size >= _SMALL:
      groups.append([i])
    else:
      small.setdefault(tuple(x.dtype for x in row), []).append(i)
  return groups + list(small.values())


def _joined(rows):
  """(θ, θs, s) of several leaves as if they were one."""
  if len(rows) == 1:
    return rows[0]
  return tuple(
    jnp.concatenate([x.ravel() for x in same])
    for same in zip(*rows, strict=True)
  )


class _Sums(NamedTuple):
  """Of one leaf, in `numbers.float_dtype`."""

  squares: jax.Array  # Σ gap²
  ratios: jax.Array  # Σ gap / C
  largest: jax.Array  # max gap / C
  moved: jax.Array  # bool; False only where every gap / C is 0


def _sums(p, ps, s, scale) -> _Sums:
  """What the metrics need of one leaf.

  XLA's CPU compiler fuses no reduction with what else is made of its operands:
  it would write gap and G to memory, which costs more than all the rest. There
  they are computed twice instead, in one pass of their own. The update waits
  for it through `moved`: without an order between the passes XLA would copy
  what one reads and the other overwrites.
  """

  def anywhere(p, ps, s):
    ratios, gap = _ratios(p, ps, s, scale)
    return _Sums(
      jnp.sum(gap * gap),
      jnp.sum(ratios),
      jnp.max(ratios, initial=0.0),
      jnp.ones([], bool),
    )

  def on_cpu(p, ps, s):
    sums = _passed(*jax.lax.optimization_barrier((p, ps, s)), scale)
    unknown = jnp.isnan(sums.squares + sums.ratios)
    return sums._replace(moved=(sums.largest != 0) | unknown)

  return jax.lax.platform_dependent(p, ps, s, cpu=on_cpu, default=anywhere)


# Rows that are added up, and their length. XLA and LLVM unroll the sum over so
# few rows and then vectorise along them; a longer one is computed number by
# number, ten times slower.
_ROWS, _WIDTH = 16, 128
_SMALL = 8 * _ROWS * _WIDTH


def _passed(p, ps, s, scale) -> _Sums:
  """The sums of one leaf in one pass over it on the CPU."""
  parts = []
  for block in zip(*map(_blocks, (p, ps, s)), strict=True):
    ratios, gap = _ratios(*block, scale)
    part = gap * gap, ratios, ratios
    if ratios.ndim == 3:
      zero = jnp.zeros([], ratios.dtype)
      part = jax.lax.reduce(part, (zero,) * 3, _added, dimensions=(1,))
    parts.append(part)
  squares, ratios, largest = zip(*parts, strict=True)
  total = sum(map(jnp.sum, ratios))
  most = functools.reduce(
    jnp.maximum, [jnp.max(x, initial=0.0) for x in largest]
  )
  return _Sums(
    sum(map(jnp.sum, squares)),
    total,
    jnp.where(jnp.isnan(total), total, most),  # `_added` may lose a NaN
    jnp.ones([], bool),
  )


def _blocks(leaf) -> list[jax.Array]:
  """[blocks of rows, the rest]; either may be empty, but is always there."""
  flat = jnp.ravel(leaf)
  whole = flat.size - flat.size % (_ROWS * _WIDTH)
  blocks = flat[:whole].reshape(-1, _ROWS, _WIDTH)
  return [blocks, flat[whole:]]


def _as_pairs(leaves) -> list[jax.Array]:
  """The same numbers, two in a row and what is left."""
  flat = [jnp.ravel(leaf) for leaf in leaves]
  ends = [x.size - x.size % 2 for x in flat]
  pairs = [x[:end].reshape(-1, 2) for x, end in zip(flat, ends, strict=True)]
  rest = [x[end:] for x, end in zip(flat, ends, strict=True) if end < x.size]
  return pairs + rest


def _added(one, other):
  """Adds, adds, and takes the larger: shorter than `maximum` without NaN."""
  return (
    one[0] + other[0],
    one[1] + other[1],
    jnp.where(one[2] > other[2], one[2], other[2]),
  )


def _ratios(p, ps, s, scale):
  """(gap / C, gap) of a leaf or a part of it."""
  gap = distance(p, ps)
  return gap / scale(s), gap


def _describe(shapes, path) -> str:
  return f'shape {shapes[path]}' if path in shapes else 'absent'
