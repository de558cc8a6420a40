"""Passes as Mosaic kernels, for TPUs.

A leaf is computed where it lies. XLA lays two of its axes out in tiles, those
that leave the least of them empty, so a kernel that asked for other ones would
be given a copy. The steps of a kernel are made one after the other, and what
its sums come to is kept between them.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from ga_jax.kernels import bodies, passes

SMALL, TOGETHER = 0, 1  # every leaf is laid out in its own way
_BLOCK = 65536  # numbers; twice all blocks of a kernel fit into 16 MB
_SUBLANES, _LANES = 16, 128  # of half precision, which single fits into


class View(NamedTuple):
  """How a leaf is seen: its axes in another order, the first ones as one."""

  axes: tuple[int, ...]  # their order
  shape: tuple[int, ...]  # [n], or [rest, rows, columns]
  block: tuple[int, ...]

  @property
  def grid(self) -> tuple[int, ...]:
    return tuple(map(pl.cdiv, self.shape, self.block))


def fits(one: passes.Pass) -> bool:
  """Not rows of vectors, of which a tile holds several; one row per buffer."""
  if one.buffers and len(one.shape) == 1:
    return False
  rows = {(node.inputs[0], node.index) for node in one.rows}
  return len(rows) == len(one.buffers)


def run(program, group: passes.Group, given, *, interpret: bool = False):
  """What a group of one pass makes; see `passes.run`."""
  (one,) = group.members
  view = view_of(one.shape)
  rank = len(view.shape)

  def body(*refs):
    steps = [pl.program_id(axis) for axis in range(rank)]
    inside = None
    for axis, step in enumerate(steps):
      if view.shape[axis] % view.block[axis]:
        at = jax.lax.broadcasted_iota(jnp.int32, view.block, axis)
        found = step * view.block[axis] + at < view.shape[axis]
        inside = found if inside is None else inside & found

    def read(refs, row=None):
      return refs[0][...]

    def write(refs, x, row=None):
      refs[0][...] = x

    own, partial = (refs[:-1], refs[-1]) if one.sums else (refs, None)
    sums = bodies.body(
      program,
      group,
      own,
      shape=view.block,
      read=read,
      write=write,
      inside=inside,
    )
    if not sums:
      return

    @pl.when(functools.reduce(jnp.logical_and, [s == 0 for s in steps]))
    def _():
      for i, node in enumerate(one.sums):
        partial[i] = passes.REDUCTIONS[node.primitive.name].nothing

    for i, (node, x) in enumerate(zip(one.sums, sums, strict=True)):
      add = passes.REDUCTIONS[node.primitive.name].add
      partial[i] = add(partial[i], x)

  index = {node.inputs[0]: node.index for node in one.rows}

  def spec(buffer=None):
    """Of a leaf, or of the row of a buffer."""
    if buffer is None:
      return pl.BlockSpec(view.block, lambda *at: at[:rank])

    def where(*at):
      at, vectors = at[:rank], at[rank:]
      if index[buffer] in program.constants:
        row = program.constants[index[buffer]]
      else:
        which, number = bodies.place(program, one, index[buffer])
        row = vectors[which][number]
      return bodies.in_range(row, program.avals[buffer].shape[0]), *at

    return pl.BlockSpec((None, *view.block), where)

  rest = given[len(one.scalars) :]
  operands = [_seen(jnp.asarray(x), one.shape, view) for x in rest]
  avals = bodies.made(program, one)
  shapes = [
    jax.eval_shape(lambda x: _seen(x, one.shape, view), aval) for aval in avals
  ]
  out_specs = [spec()] * len(one.outputs)
  out_specs += [spec(node.inputs[0]) for node in one.writes]
  if one.sums:
    shapes.append(jax.ShapeDtypeStruct((len(one.sums),), jnp.float32))
    out_specs.append(pl.BlockSpec(memory_space=tpu.SMEM))
  moved = [*one.arrays, *one.outputs, *one.buffers, *one.writes]
  results = pl.pallas_call(
    body,
    out_shape=shapes,
    grid_spec=tpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=bodies.SCALARS,
      grid=view.grid,
      in_specs=[spec()] * len(one.arrays) + list(map(spec, one.buffers)),
      out_specs=out_specs,
    ),
    input_output_aliases=bodies.aliases(program, group),
    cost_estimate=pl.CostEstimate(
      flops=one.size * len(one.nodes),
      transcendentals=0,
      bytes_accessed=one.size * 4 * len(moved),
    ),
    interpret=interpret,
  )(*bodies.scalars(program, group, given), *operands)
  results = list(results)
  sums = results.pop().reshape(-1, 1) if one.sums else []
  results = [
    _as_it_was(x, aval, one.shape, view)
    for x, aval in zip(results, avals, strict=True)
  ]
  return bodies.gathered(program, group, results, [sums])


def _padded(shape, sublanes=_SUBLANES) -> int:
  """Numbers of a block in memory, of its last two axes in tiles."""
  *rest, rows, columns = shape
  rows = pl.cdiv(rows, sublanes) * sublanes
  return math.prod(rest) * rows * pl.cdiv(columns, _LANES) * _LANES


def view_of(shape: tuple[int, ...]) -> View:
  """How XLA lays a leaf out, and blocks of it."""
  if len(shape) == 1:
    whole = shape[0] <= _BLOCK
    return View((0,), shape, shape if whole else (_BLOCK,))

  def empty(pair):
    rows = shape[pair[0]]
    sublanes = 8 if rows > 4 else pl.next_power_of_2(rows)
    return _padded([shape[i] for i in pair], sublanes) / math.prod(
      shape[i] for i in pair
    )

  last = len(shape) - 1
  pairs = [(i, j) for j in range(last, -1, -1) for i in range(last, -1, -1)]
  rows, columns = min((pair for pair in pairs if pair[0] != pair[1]), key=empty)
  rest = tuple(i for i in range(len(shape)) if i not in (rows, columns))
  seen = (math.prod(shape[i] for i in rest), shape[rows], shape[columns])
  return View((*rest, rows, columns), seen, _block(seen))


def _block(shape: tuple[int, int, int]) -> tuple[int, int, int]:
  """A block of at most `_BLOCK` numbers."""
  rest, rows, columns = shape
  some = min(columns, _BLOCK // _SUBLANES)  # a multiple of _LANES, or all
  left = _BLOCK // _padded((1, _SUBLANES, some)) * _SUBLANES
  few = min(rows, max(left, _SUBLANES))
  return min(rest, max(1, _BLOCK // _padded((1, few, some)))), few, some


def _seen(x, shape, view: View):
  """A leaf, or a buffer of rows like it, as its view."""
  number = x.size // math.prod(shape)
  if number == 1:
    x = x.reshape(shape).transpose(view.axes)
    return x.reshape(view.shape)
  x = x.reshape(number, *shape).transpose(0, *(1 + i for i in view.axes))
  return x.reshape(number, *view.shape)


def _as_it_was(x, aval, shape, view: View):
  """What `_seen` was made of."""
  number = [aval.size // math.prod(shape)]
  order = [0, *(1 + i for i in view.axes)]
  x = x.reshape(*number, *(shape[i] for i in view.axes))
  back = sorted(range(len(order)), key=order.__getitem__)
  return x.transpose(back).reshape(aval.shape)
