"""What a function computes, cut into passes over its arrays.

A jaxpr is flattened into nodes. Those that are element-wise on arrays of one
shape, with the rows that they read and write and the sums over them, make a
*pass*: a kernel can do it block by block, reading every array once and writing
every result once. What is left, scalars mostly, stays with XLA, and so does
what XLA makes one pass of by itself: element-wise, without sums or rows.
"""

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np


def with_nan(found, *told):
  """A result, or the NaN among what it is made of: Triton's max loses it."""
  for x in told:
    found = jnp.where(x == x, found, x)
  return found


class Reduction(NamedTuple):
  """How numbers are brought together to one."""

  of: Callable[..., jax.Array]  # all numbers of an array
  add: Callable[..., jax.Array]  # two of them
  nothing: float  # what changes no other


REDUCTIONS = {
  'reduce_sum': Reduction(jnp.sum, jnp.add, 0.0),
  'reduce_max': Reduction(jnp.max, jnp.maximum, -math.inf),
  'reduce_min': Reduction(jnp.min, jnp.minimum, math.inf),
}
_CALLS = ('jit', 'pjit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call')
_SAME = ('broadcast_in_dim', 'expand_dims', 'reshape', 'squeeze')
# fmt: off
_ELEMENTWISE = frozenset((
  'abs', 'add', 'and', 'convert_element_type', 'div', 'eq', 'exp', 'ge',
  'gt', 'integer_pow', 'is_finite', 'le', 'log', 'log1p', 'lt',
  'max', 'min', 'mul', 'ne', 'neg', 'not', 'or', 'pow', 'rsqrt', 'select_n',
  'sign', 'sqrt', 'square', 'sub', 'tanh', 'xor',
))
# fmt: on
# Whose parameters are told apart by how they are written.
_COMPARED = _ELEMENTWISE.union(
  _SAME, REDUCTIONS, ('dynamic_slice', 'dynamic_update_slice')
)
_INSIDE = ('element', 'same', 'read')  # kinds of what a pass computes
_DTYPES = ('float32', 'bfloat16', 'float16', 'int32', 'bool')
_MOST_RECOMPUTED = 2  # arrays that an output may be computed from outside


class Node(NamedTuple):
  """One operation. Its values are numbered.

  The kind is 'scalar', 'element' (of arrays alike, or scalars), 'same' (the
  array as it is), 'read' (a row of a buffer: buffer, index), 'write' (buffer,
  row, index), 'sum' (of all of an array) or 'other'.
  """

  kind: str
  primitive: jex.Primitive
  params: dict[str, Any]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]

  @property
  def operands(self) -> tuple[int, ...]:
    """Of the inputs, those that a block is computed from; none is a buffer."""
    if self.kind == 'same':
      return (self.inputs[self.primitive.name == 'dynamic_update_slice'],)
    if self.kind in ('read', 'write'):
      return self.inputs[1 : 2 + (self.kind == 'write')]
    return self.inputs

  @property
  def index(self) -> int:
    """Of the row that is read or written."""
    return self.operands[-1]


class Pass(NamedTuple):
  """What is done to arrays of `shape`, block by block."""

  shape: tuple[int, ...]
  level: int  # how many passes must be made before, at most
  nodes: tuple[Node, ...]  # element, same and read, in their order
  arrays: tuple[int, ...]  # that are read
  scalars: tuple[int, ...]  # that are read
  outputs: tuple[int, ...]  # arrays that are written
  writes: tuple[Node, ...]  # rows that are written
  sums: tuple[Node, ...]
  over: dict[int, int]  # output: the array that it may be written over

  @property
  def buffers(self) -> tuple[int, ...]:
    """Arrays of rows [n, *shape] of which one is read or written."""
    return tuple(dict.fromkeys(node.inputs[0] for node in self.rows))

  @property
  def rows(self) -> tuple[Node, ...]:
    """What reads or writes a row."""
    reads = tuple(node for node in self.nodes if node.kind == 'read')
    return reads + self.writes

  @property
  def size(self) -> int:
    """How many numbers an array holds."""
    return math.prod(self.shape)

  @property
  def results(self) -> tuple[int, ...]:
    """Arrays and buffers that it makes."""
    return self.outputs + tuple(node.outputs[0] for node in self.writes)

  @property
  def made(self) -> tuple[int, ...]:
    """Values that it makes: arrays, buffers, sums."""
    return self.results + tuple(node.outputs[0] for node in self.sums)


class Group(NamedTuple):
  """Passes that are alike but for their arrays: one kernel does them."""

  members: tuple[Pass, ...]

  @property
  def given(self) -> tuple[int, ...]:
    """Values that it needs: the scalars, then arrays and buffers by member."""
    own = (one.arrays + one.buffers for one in self.members)
    return sum(own, start=self.members[0].scalars)

  @property
  def made(self) -> tuple[int, ...]:
    """Values that it makes, by member: arrays, buffers, sums."""
    return sum((one.made for one in self.members), start=())


class Program(NamedTuple):
  """A function as nodes, and the passes among them."""

  avals: list[Any]  # shape and dtype, by value
  constants: dict[int, Any]  # by value
  nodes: list[Node]  # that an output needs
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  groups: tuple[Group, ...] = ()


def program(
  jaxpr: jex.Jaxpr,
  platform: str,
  pairs: Iterable[tuple[int, int]],
  *,
  fits: Callable[[Pass], bool],
  small: int = 0,
  most: int = 1,
) -> Program:
  """Cuts a jaxpr into passes.

  Args:
    jaxpr: of the function; its constants come before its inputs.
    platform: for which `jax.lax.platform_dependent` is decided.
    pairs: (input, output) positions: arrays that may be written over, and what
      is to be written over them.
    fits: whether there is a kernel for a pass.
    small: passes over at most so many numbers are done together where they are
      alike, those of similar size with each other.
    most: so many at a time.
  """
  flat = _Flat(platform)
  given = (*jaxpr.constvars, *jaxpr.invars)
  inputs = tuple(flat.new(var.aval) for var in given)
  outputs = tuple(flat.add(jaxpr, dict(zip(given, inputs, strict=True))))
  nodes = _alive(flat.nodes, outputs)
  found = Program(flat.avals, flat.constants, nodes, inputs, outputs)
  over = {
    outputs[o]: inputs[i]
    for i, o in pairs
    if flat.avals[inputs[i]].dtype == flat.avals[outputs[o]].dtype
    and flat.avals[inputs[i]].shape == flat.avals[outputs[o]].shape
  }
  groups = _alike(found, filter(fits, _passes(found, over)), small, most)
  return found._replace(groups=tuple(groups))


def run(program: Program, args: Sequence[jax.Array], run_group: Callable):
  """The outputs of a function.

  Args:
    program: of the function.
    args: its inputs.
    run_group: `run_group(program, group, values) -> values`, from
      `Group.given` to `Group.made`.
  """
  values = dict(zip(program.inputs, args, strict=True)) | program.constants
  makers = {out: node for node in program.nodes for out in node.outputs}
  makers |= {out: group for group in program.groups for out in group.made}
  wanted, begun = list(program.outputs), set()
  while wanted:
    if wanted[-1] in values:
      wanted.pop()
      continue
    maker = makers[wanted[-1]]
    node = isinstance(maker, Node)
    given = maker.inputs if node else maker.given
    missing = [i for i in given if i not in values]
    if missing:
      if id(maker) in begun:
        raise RuntimeError('a kernel waits for itself; this is a fault of ours')
      begun.add(id(maker))
      wanted.extend(missing)
      continue
    told = [values[i] for i in given]
    if not node:
      values.update(
        zip(maker.made, run_group(program, maker, told), strict=True)
      )
      continue
    params = maker.primitive.get_bind_params(maker.params)
    out = maker.primitive.bind(*told, **params)
    if not maker.primitive.multiple_results:
      out = [out]
    values.update(zip(maker.outputs, out, strict=True))
  return [values[i] for i in program.outputs]


def core(shape: Sequence[int]) -> tuple[int, ...]:
  """A shape without axes of length 1, along which nothing is ordered."""
  return tuple(d for d in shape if d != 1)


class _Flat:
  """The nodes of nested jaxprs, each once."""

  def __init__(self, platform: str):
    self.avals, self.constants, self.nodes = [], {}, []
    self._platform = platform
    self._branches = {}  # index of a platform: the branch of this one
    self._known = {}  # what is computed: its outputs
    self._written = {}  # buffer with a new row: (row, index)
    self._overwritten = set()  # buffers of which a row is replaced

  def new(self, aval) -> int:
    """Numbers a value."""
    self.avals.append(aval)
    return len(self.avals) - 1

  def add(self, jaxpr: jex.Jaxpr, names: dict[Any, int]) -> list[int]:
    """Adds the equations of a jaxpr; returns its outputs."""

    def name(atom):
      if isinstance(atom, jex.Literal):
        return self._constant(atom.aval, atom.val)
      return names[atom]

    for eqn in jaxpr.eqns:
      outputs = self._added(eqn, tuple(map(name, eqn.invars)))
      names.update(zip(eqn.outvars, outputs, strict=True))
    return [name(atom) for atom in jaxpr.outvars]

  def _inner(self, closed: jex.ClosedJaxpr, inputs: Sequence[int]) -> list[int]:
    jaxpr = closed.jaxpr
    names = dict(zip(jaxpr.invars, inputs, strict=True))
    for var, value in zip(jaxpr.constvars, closed.consts, strict=True):
      names[var] = self._constant(var.aval, value)
    return self.add(jaxpr, names)

  def _constant(self, aval, value) -> int:
    key = len(self.avals)
    is_key = jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)
    if aval.size == 1 and not is_key:
      value = np.asarray(value)  # which a kernel may hold
      key = str(aval), value.tobytes()
    if key not in self._known:
      self._known[key] = self.new(aval)
      self.constants[self._known[key]] = value
    return self._known[key]

  def _added(self, eqn, inputs) -> Sequence[int]:
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
      inner = params['jaxpr'] if 'jaxpr' in params else params['call_jaxpr']
      return self._inner(inner, inputs)
    if name == 'cond' and inputs[0] in self._branches:
      inner = params['branches'][self._branches[inputs[0]]]
      return self._inner(inner, inputs[1:])
    if name in ('copy', 'stop_gradient'):
      return inputs
    if not eqn.outvars:
      return ()
    kind = self._kind(eqn, inputs)
    spread = kind == 'same' and all(self.avals[i].size == 1 for i in inputs)
    if name not in _COMPARED or spread:  # which leaves would share
      return self._computed(kind, eqn, inputs)
    key = eqn.primitive, repr(sorted(params.items())), inputs
    if key not in self._known:
      self._known[key] = self._computed(kind, eqn, inputs)
    return self._known[key]

  def _computed(self, kind, eqn, inputs) -> Sequence[int]:
    if kind == 'read' and inputs[0] in self._written:
      row, *index = self._written[inputs[0]]
      if tuple(index) == inputs[1:]:
        return (row,)  # the one that was just written
    outputs = tuple(self.new(var.aval) for var in eqn.outvars)
    if kind == 'write':
      self._written[outputs[0]] = inputs[1:]
    if eqn.primitive.name == 'platform_index':
      platforms = eqn.params['platforms']
      mine = [
        i for i, p in enumerate(platforms) if not p or self._platform in p
      ]
      if not mine:
        raise NotImplementedError(
          f'platform_dependent is of {platforms}, and not of {self._platform}'
        )
      self._branches[outputs[0]] = mine[0]
    self.nodes.append(Node(kind, eqn.primitive, eqn.params, inputs, outputs))
    return outputs

  def _kind(self, eqn, inputs) -> str:
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    avals = [self.avals[i] for i in inputs]
    arrays = [aval for aval in avals if aval.size > 1]
    if not arrays and not any(v.aval.size > 1 for v in eqn.outvars):
      return 'scalar'
    if any(str(aval.dtype) not in _DTYPES for aval in (*avals, out)):
      return 'other'
    cores = {core(aval.shape) for aval in arrays}
    real = jnp.issubdtype(out.dtype, jnp.floating)
    if name in REDUCTIONS:
      return 'sum' if out.size == 1 and real else 'other'
    if name in ('max', 'min') and not real:
      return 'other'
    if name in ('dynamic_slice', 'dynamic_update_slice'):
      writes = name == 'dynamic_update_slice'
      part = avals[1] if writes else out
      if part.size == avals[0].size:
        return 'same'
      rest = inputs[2 + writes :]
      whole = part.size > 1 and part.shape == (1, *avals[0].shape[1:])
      if not whole or any(self.constants.get(i) != 0 for i in rest):
        return 'other'
      if not writes:
        return 'read'
      first = inputs[0] not in self._overwritten  # the others copy the buffer
      self._overwritten.add(inputs[0])
      return 'write' if first else 'other'
    if name in _SAME and cores <= {core(out.shape)}:
      return 'same'
    if name in _ELEMENTWISE and cores == {core(out.shape)}:
      return 'element'
    return 'other'


def _passes(program: Program, over: dict[int, int]) -> Iterator[Pass]:
  """The passes that are worth a kernel."""
  makers = {out: node for node in program.nodes for out in node.outputs}
  for level, (outputs, writes, sums) in _groups(program):
    outputs = _not_recomputed(program, makers, outputs, over)
    if not (outputs or writes) or not (sums or writes):
      continue
    inside = _before(
      program,
      makers,
      (*outputs, *(n.operands[0] for n in writes + sums)),
    )
    own = tuple(n for n in program.nodes if n.outputs[0] in inside)
    told = [i for node in (*own, *writes, *sums) for i in node.operands]
    # What is handed out may be an input.
    read = [i for i in dict.fromkeys([*told, *outputs]) if i not in inside]
    arrays = tuple(i for i in read if program.avals[i].size > 1)
    first = writes[0].operands[0] if writes else (*outputs, *arrays)[0]
    yield Pass(
      shape=core(program.avals[first].shape),
      level=level,
      nodes=own,
      arrays=arrays,
      scalars=tuple(
        i
        for i in read
        if program.avals[i].size == 1 and i not in program.constants
      ),
      outputs=outputs,
      writes=writes,
      sums=sums,
      over={o: i for o, i in over.items() if o in outputs and i in arrays},
    )


def _alike(program, found: Iterable[Pass], small, most) -> Iterator[Group]:
  """Groups of passes, in no order."""
  alike = collections.defaultdict(list)
  for one in found:
    if one.size > small:
      yield Group((one,))
    else:
      alike[one.size.bit_length(), _signature(program, one)].append(one)
  for same in alike.values():
    for start in range(0, len(same), most):
      yield Group(tuple(same[start : start + most]))


def _signature(program: Program, one: Pass):
  """What a pass does, whatever its arrays are."""
  numbers = {i: i for i in one.scalars}

  def number(i):
    if i in program.constants:
      return i
    return numbers.setdefault(i, -1 - len(numbers))

  def written(node: Node):
    params = repr(sorted(node.params.items())) if node.kind == 'element' else ''
    inputs = node.operands if node.kind == 'same' else node.inputs
    return node.primitive, params, *map(number, inputs + node.outputs)

  arrays = one.arrays + one.buffers + one.outputs
  return (
    one.level,
    one.scalars,
    tuple((number(i), str(program.avals[i].dtype)) for i in arrays),
    tuple(map(written, one.nodes + one.writes + one.sums)),
    tuple((number(o), number(i)) for o, i in one.over.items()),
  )


def _alive(nodes: list[Node], outputs: Sequence[int]) -> list[Node]:
  """The nodes that an output needs."""
  wanted, alive = set(outputs), []
  for node in reversed(nodes):
    if wanted.intersection(node.outputs):
      wanted.update(node.inputs)
      alive.append(node)
  return alive[::-1]


def _groups(program: Program):
  """(level, (outputs, writes, sums)) of what can be done in one pass.

  What waits for a sum, or for a buffer with a new row, is in another pass than
  these, which is counted as a level.
  """
  several = [aval.size > 1 for aval in program.avals]
  root = list(range(len(several)))

  def find(i):
    while root[i] != i:
      root[i] = i = root[root[i]]
    return i

  nodes = program.nodes
  level = dict.fromkeys((*program.inputs, *program.constants), 0)
  wanted = set(program.outputs)
  for node in nodes:
    own = max((level[i] for i in node.inputs), default=0)
    waits = node.kind in ('sum', 'write', 'other')
    level.update(dict.fromkeys(node.outputs, own + waits))
    if node.kind in ('element', 'same'):
      for i in node.inputs:
        if several[i]:
          root[find(i)] = find(node.outputs[0])
    elif node.kind in ('read', 'write'):
      wanted.add(node.inputs[0])
    elif node.kind == 'other':
      wanted.update(node.inputs)
  awaited = set()  # what arrays are computed from
  for node in reversed(nodes):
    if node.kind == 'same' and wanted.intersection(node.outputs):
      wanted.update(node.operands)  # a reshape costs nothing outside
    inside = (*_INSIDE, 'write')
    if node.kind in inside or awaited.intersection(node.outputs):
      awaited.update(node.inputs)
  groups = collections.defaultdict(lambda: ([], [], []))
  for node in nodes:
    if node.kind in ('element', 'read') and wanted.intersection(node.outputs):
      out = node.outputs[0]
      groups[find(out), level[out]][0].append(out)
    if node.kind == 'write':
      row = node.operands[0]
      groups[find(row), level[node.outputs[0]] - 1][1].append(node)
  last = {}
  for of, own in groups:
    last[of] = max(own, last.get(of, 0))
  for node in nodes:
    if node.kind == 'sum':
      of, own = find(node.inputs[0]), level[node.inputs[0]]
      if not awaited.intersection(node.outputs):  # it has time
        own = last.get(of, own)
      groups[of, own][2].append(node)
  return [(own, tuple(map(tuple, group))) for (_, own), group in groups.items()]


def _before(program, makers, wanted, until=()) -> set[int]:
  """What is computed inside a pass on the way to some values."""
  found, waiting = set(), list(wanted)
  while waiting:
    i = waiting.pop()
    node = makers.get(i)
    if i in found or node is None or node.kind not in _INSIDE or i in until:
      continue
    if program.avals[i].size == 1:
      continue
    found.add(i)
    waiting.extend(node.operands)
  return found


def _not_recomputed(program, makers, outputs, over) -> tuple[int, ...]:
  """The outputs without those that the other ones tell.

  To write an array and read it again costs more than to compute it again where
  it is read: the updates of an optimiser, say, from its new moments.
  """
  kept = list(outputs)
  for out in outputs:
    if out in over:
      continue
    others = set(kept) - {out}
    inside = _before(program, makers, [out], until=others)
    read = set()  # a row with its buffer
    for node in map(makers.get, inside):
      read.update(node.inputs if node.kind == 'read' else node.operands)
    read = {i for i in read - inside if program.avals[i].size > 1}
    if read <= others and len(read) <= _MOST_RECOMPUTED:
      kept.remove(out)
  return tuple(kept)
