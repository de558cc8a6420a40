"""Passes as Triton kernels, for NVIDIA's GPUs.

A program computes a block of one leaf. Small leaves share a kernel: each of its
programs asks all of them for the block, and one has it.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ga_jax.kernels import bodies, passes

BLOCK, WARPS = 1024, 4
SMALL, TOGETHER = 4096, 8  # numbers in a small leaf, leaves in a kernel


def fits(one: passes.Pass) -> bool:
  """Any pass."""
  del one
  return True


def run(program, group: passes.Group, given, *, interpret: bool = False):
  """What a group of passes makes; see `passes.run`."""
  sizes = [one.size for one in group.members]
  block = pl.next_power_of_2(max(sizes))
  if len(sizes) == 1:
    block = min(BLOCK, block)
  blocks = pl.cdiv(max(sizes), block)
  sums = len(group.members[0].sums)

  def body(*refs):
    leaf, step = pl.program_id(0), pl.program_id(1)
    where = pl.ds(step * block, block)
    size = sizes[0]
    for i in range(1, len(sizes)):
      size += (leaf == i).astype(jnp.int32) * (sizes[i] - sizes[0])
    inside = None
    if len(sizes) > 1 or size % block:
      inside = step * block + jnp.arange(block) < size

    def at(ref, row):
      return ref.at[where] if row is None else ref.at[row, where]

    def of(i):  # whether a number is there, and of this leaf
      return inside if len(sizes) == 1 else inside & (leaf == i)

    def read(refs, row=None):
      found = None
      for i, ref in enumerate(refs):
        other = None if inside is None else jnp.zeros([], ref.dtype)
        x = triton.load(at(ref, row), mask=of(i), other=other)
        x = x.astype(ref.dtype)
        found = x if found is None else jnp.where(leaf == i, x, found)
      return found

    def write(refs, x, row=None):
      for i, ref in enumerate(refs):
        triton.store(at(ref, row), x, mask=of(i))

    own, partial = (refs[:-1], refs[-1]) if sums else (refs, None)
    for i, x in enumerate(
      bodies.body(
        program,
        group,
        own,
        shape=(block,),
        read=read,
        write=write,
        inside=inside,
      )
    ):
      partial[leaf, i, step] = x

  operands, rest = [], iter(given[len(group.members[0].scalars) :])
  for one in group.members:
    for _ in one.arrays + one.buffers:
      x = jnp.asarray(next(rest))
      operands.append(x.reshape(_flat(x, one.size)))
  shapes = [
    jax.ShapeDtypeStruct(_flat(aval, one.size), aval.dtype)
    for one in group.members
    for aval in bodies.made(program, one)
  ]
  if sums:
    shape = len(sizes), sums, blocks
    shapes.append(jax.ShapeDtypeStruct(shape, jnp.float32))
  results = pl.pallas_call(
    body,
    out_shape=shapes,
    grid=(len(sizes), blocks),
    input_output_aliases=bodies.aliases(program, group),
    compiler_params=triton.CompilerParams(num_warps=WARPS),
    interpret=interpret,
  )(*bodies.scalars(program, group, given), *operands)
  results = list(results)
  partial = results.pop() if sums else [()] * len(sizes)
  return bodies.gathered(program, group, results, partial)


def _flat(x, size: int) -> tuple[int, ...]:
  """The shape of an array, or of a buffer of rows."""
  return (size,) if x.size == size else (x.size // size, size)
