"""What kernels of a group of passes have in common, whoever compiles them.

A kernel is given the scalars packed into two vectors, of float32 and of int32,
then the arrays and the buffers of every pass. It makes the arrays and the
buffers of every pass, and what the sums come to in every block.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ga_jax.kernels import passes

SCALARS = 2  # operands that hold scalars


def scalars(program: passes.Program, group: passes.Group, given):
  """The two vectors, of at least one number."""
  packed = {jnp.float32: [], jnp.int32: []}
  for i, value in zip(group.members[0].scalars, given, strict=False):
    kind = jnp.float32 if _is_float(program, i) else jnp.int32
    packed[kind].append(jnp.asarray(value).reshape(()).astype(kind))
  return [
    jnp.stack(some) if some else jnp.zeros([1], kind)
    for kind, some in packed.items()
  ]


def place(program: passes.Program, one: passes.Pass, i: int):
  """Where a scalar of a pass stands: (which vector, position)."""
  kind = _is_float(program, i)
  alike = [j for j in one.scalars if _is_float(program, j) == kind]
  return (0 if kind else 1), alike.index(i)


def in_range(index, rows: int):
  """An index moved into 0 to rows − 1."""
  return jnp.minimum(jnp.maximum(jnp.int32(index), 0), rows - 1)


def aliases(program: passes.Program, group: passes.Group) -> dict[int, int]:
  """Operands that results are written over, and these; positions."""
  operands = [i for one in group.members for i in one.arrays + one.buffers]
  found, results = {}, 0
  for one in group.members:
    buffers = [node.inputs[0] for node in one.writes]
    for old in (*map(one.over.get, one.outputs), *buffers):
      if old is not None:
        found[SCALARS + operands.index(old)] = results
      results += 1
  return found


def made(program: passes.Program, one: passes.Pass) -> list[Any]:
  """Shape and dtype of what a pass makes but for its sums."""
  return [program.avals[i] for i in one.results]


def body(
  program: passes.Program,
  group: passes.Group,
  refs: Sequence[Any],
  *,
  shape: tuple[int, ...],
  read: Callable[..., jax.Array],
  write: Callable[..., None],
  inside: jax.Array | None,
) -> list[jax.Array]:
  """Computes one block and writes it; returns the sums over it.

  Args:
    program: of the function.
    group: of its passes.
    refs: to the operands and the results, without the sums.
    shape: of a block.
    read: `read(refs, row=None) -> block`, of a ref per pass.
    write: `write(refs, block, row=None)`.
    inside: bool of the shape of a block, which numbers there are; None where
      all are.

  Returns:
    A float32 scalar per sum.
  """
  one, number = group.members[0], len(group.members)
  vectors, refs = refs[:SCALARS], refs[SCALARS:]
  operands = one.arrays + one.buffers
  split = number * len(operands)
  # Of every value of the first pass, where all passes have theirs.
  sources = {
    i: refs[at : split : len(operands)] for at, i in enumerate(operands)
  }
  targets = {
    i: refs[split + at :: len(one.results)] for at, i in enumerate(one.results)
  }
  values = {}

  def scalar(i):
    if i in program.constants:
      return program.constants[i].reshape(())
    which, at = place(program, one, i)
    return vectors[which][at]

  def value(i):
    """A block; a scalar is one of numbers alike."""
    if i not in values:
      dtype = program.avals[i].dtype
      if i in one.arrays:
        values[i] = read(sources[i])
      else:
        values[i] = jnp.full(shape, scalar(i)).astype(dtype)
    return values[i]

  def row_of(node):
    """The index of a row as XLA takes it: moved into the range."""
    return in_range(scalar(node.index), program.avals[node.inputs[0]].shape[0])

  for node in one.nodes:
    if node.kind == 'same':
      out = value(*node.operands)
    elif node.kind == 'read':
      out = read(sources[node.inputs[0]], row_of(node))
    else:
      dtype = program.avals[node.outputs[0]].dtype
      out = _element(node, map(value, node.inputs), dtype)
    values[node.outputs[0]] = out
  sums = []
  for node in one.sums:
    of, _, nothing = passes.REDUCTIONS[node.primitive.name]
    block = value(*node.operands).astype(jnp.float32)
    if inside is not None:
      block = jnp.where(inside, block, nothing)
    lost = jnp.sum(jnp.where(block == block, 0.0, block))  # of NaN; else 0
    sums.append(passes.with_nan(of(block), lost))
  for i in one.outputs:
    write(targets[i], value(i))
  for node in one.writes:
    write(targets[node.outputs[0]], value(node.operands[0]), row_of(node))
  return sums


def _totals(program: passes.Program, one: passes.Pass, sums) -> list[jax.Array]:
  """The sums of a pass from those over its blocks, [sums, blocks]."""
  found = []
  for node, blocks in zip(one.sums, sums, strict=True):
    of = passes.REDUCTIONS[node.primitive.name].of
    aval = program.avals[node.outputs[0]]
    found.append(of(blocks).astype(aval.dtype).reshape(aval.shape))
  return found


def gathered(program, group: passes.Group, results, sums) -> list[jax.Array]:
  """What a group makes, in the order of `Group.made`.

  Args:
    program: of the function.
    group: of its passes.
    results: arrays and buffers, of any shape.
    sums: of every pass [sums, blocks].
  """
  results, out = iter(results), []
  for one, own in zip(group.members, sums, strict=True):
    for aval in made(program, one):
      out.append(next(results).reshape(aval.shape))
    out += _totals(program, one, own)
  return out


def _element(node: passes.Node, inputs, dtype) -> jax.Array:
  """Half precision is computed in single and rounded: no chip has all of it."""
  inputs = list(inputs)
  if node.primitive.name == 'convert_element_type':
    return inputs[0].astype(dtype)
  wide = [x.astype(jnp.float32) if _is_half(x.dtype) else x for x in inputs]
  found = node.primitive.bind(*wide, **node.params)
  if node.primitive.name in ('max', 'min'):
    found = passes.with_nan(found, *wide)
  return found.astype(dtype)


def _is_float(program, i) -> bool:
  return jnp.issubdtype(program.avals[i].dtype, jnp.floating)


def _is_half(dtype) -> bool:
  return dtype in (jnp.bfloat16, jnp.float16)
