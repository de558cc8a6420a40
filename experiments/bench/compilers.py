"""The compilers of devices that need not be here, and what they made.

XLA and Mosaic compile for a TPU through libtpu (`ga_jax[aot-tpu]`), XLA and
Triton for an NVIDIA GPU through JAX's CUDA plugin (`ga_jax[aot-gpu]`) with a
description of the card; neither needs the device. Nothing is executed.
"""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

from ga_jax.kernels import fused, passes

# What XLA's compiler asks of a card.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 core_count: 132
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Compiler(NamedTuple):
  """Of a kind of device.

  Attributes:
    platform: as `fused.program` calls it.
    topology: arguments of `topologies.get_topology_desc`.
    kernel: the target of the calls that are our kernels.
    rows: axes of a kernel's operand that is a buffer of rows: one more than
      those of its arrays.
    package: that has the compiler.
    extra: of ga_jax, that has the package.
    environment: variables without which it looks for its device.
    launches: whether a program is many launches; on a TPU it is one.
  """

  platform: str
  topology: dict[str, str]
  kernel: str
  rows: int
  package: str
  extra: str
  launches: bool
  environment: Mapping[str, str] = {}


COMPILERS = {
  'h100': Compiler(
    platform='cuda',
    topology={'topology': '1x1x1', 'target_config': _H100},
    kernel='__gpu$xla.gpu.triton',
    rows=2,
    package='jax_cuda12_plugin',
    extra='aot-gpu',
    launches=True,
  ),
  'v5e': Compiler(
    platform='tpu',
    topology={'topology_name': 'v5e:2x2'},
    kernel='tpu_custom_call',
    rows=4,
    package='libtpu',
    extra='aot-tpu',
    launches=False,
    environment={
      'TPU_SKIP_MDS_QUERY': '1',
      'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
      'TPU_WORKER_HOSTNAMES': 'localhost',
    },
  ),
}


class Made(NamedTuple):
  """What a compiler made of a function.

  Attributes:
    moved: bytes of main memory that are read and written.
    temporary: bytes.
    aliased: bytes of results that are written over arguments.
    launches: of kernels and fusions; None where a program is one launch.
    kernels: of ours.
  """

  moved: int
  temporary: int
  aliased: int
  launches: int | None
  kernels: int


def device(name: str):
  """A device to compile for, a key of `COMPILERS`."""
  one = COMPILERS[name]
  for variable, value in one.environment.items():
    os.environ.setdefault(variable, value)
  found = topologies.get_topology_desc(platform=one.platform, **one.topology)
  return found.devices[0]


def compiled(name: str, fn: Callable[..., Any], args, donate=()) -> Made:
  """Compiles a function of arrays, or of their shapes.

  Args:
    name: a key of `COMPILERS`.
    fn: of pytrees.
    args: its arguments; shapes are enough.
    donate: positions of those that may be written over.
  """
  one, on = COMPILERS[name], device(name)
  where = SingleDeviceSharding(on)
  args = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), args
  )
  with _mesh(one, on):
    lowered = jax.jit(fn, donate_argnums=donate).lower(*args)
  program = lowered.compile()
  kept = program.memory_analysis()
  cost = _Text(program.as_text(), one).cost()
  return Made(
    cost.moved,
    kept.temp_size_in_bytes,
    kept.alias_size_in_bytes,
    cost.launches if one.launches else None,
    cost.kernels,
  )


def _mesh(one: Compiler, on):
  """Mosaic asks which TPU it compiles for."""
  if one.platform != 'tpu':
    return contextlib.nullcontext()
  kind = AbstractDevice(
    device_kind=on.device_kind, num_cores=1, platform=one.platform
  )
  mesh = AbstractMesh((1,), ('x',), abstract_device=kind)
  return jax.sharding.use_abstract_mesh(mesh)


def planned(name: str, fn: Callable[..., Any], args) -> int:
  """How many kernels a function is cut into."""
  platform = COMPILERS[name].platform
  calls = _fused_in(_traced(fn, args).jaxpr)
  return sum(len(fused.program(platform, **p).groups) for p in calls)


def _traced(fn, args):
  """Anew: JAX does not know that the choice of kernels is another one."""
  return jax.make_jaxpr(lambda *args: fn(*args))(*args)


def _fused_in(jaxpr) -> Iterator[dict[str, Any]]:
  """Parameters of the calls of `fused` in a jaxpr."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'fused':
      yield eqn.params
      continue
    for value in eqn.params.values():
      some = value if isinstance(value, (tuple, list)) else [value]
      for inner in some:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from _fused_in(inner)


def floor(name: str, fn: Callable[..., Any], args) -> int:
  """Bytes of a function's inputs, read once, and outputs, written once.

  Of a buffer of which a row is read or replaced, the row; nothing of what is
  not read, or handed on as it is.
  """
  with fused.formula():
    closed = _traced(fn, args)
  program = passes.program(
    closed.jaxpr, COMPILERS[name].platform, (), fits=lambda one: False
  )
  nodes, avals = program.nodes, program.avals

  def nbytes(i):
    return avals[i].size * avals[i].dtype.itemsize

  def row(node):  # that is read, or written
    return nbytes(node.outputs[0] if node.kind == 'read' else node.inputs[1])

  total = 0
  for i in program.inputs:
    uses = [node for node in nodes if i in node.inputs]
    by_row = [
      node
      for node in uses
      if node.kind in ('read', 'write') and node.inputs[0] == i
    ]
    if uses and len(by_row) == len(uses):
      reads = [node for node in by_row if node.kind == 'read']
      total += max(map(row, reads), default=0)
    elif uses:
      total += nbytes(i)
  makers = {out: node for node in nodes for out in node.outputs}
  for i in set(program.outputs).difference(program.inputs):
    maker = makers.get(i)
    replaces = maker is not None and maker.kind == 'write'
    total += row(maker) if replaces else nbytes(i)
  return total


class _Cost(NamedTuple):
  """Of some operations."""

  moved: int = 0
  launches: int = 0
  kernels: int = 0

  def __add__(self, other):
    return _Cost(*(a + b for a, b in zip(self, other, strict=True)))


class _Operation(NamedTuple):
  """A line of a program's text."""

  name: str
  shapes: tuple[str, ...]  # several of a tuple
  kind: str
  operands: tuple[str, ...]
  rest: str  # its attributes

  def attribute(self, name: str) -> str:
    """'' where there is none."""
    found = re.search(rf'\b{name}=%?"?([^,"{{}}\s]+)', self.rest)
    return found[1] if found else ''


_BITS = re.compile(r'[a-z]+(\d+)')
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\](?:\{([^}]*)\})?')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_OPERATION = re.compile(
  r'\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$'
)
# Nothing is moved for these; a copy that was started has been counted.
_FREE = frozenset((
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
  *('after-all', 'copy-done', 'slice-done', 'async-done'),
))  # fmt: skip


def _dims(shape: str) -> list[int]:
  _, dims, _ = _SHAPE.match(shape).groups()
  return [int(d) for d in dims.split(',') if d]


def _bytes(shape: str) -> int:
  """Of an array; 0 where it is in no main memory, as S(1) says of VMEM."""
  dtype, _, layout = _SHAPE.match(shape).groups()
  if 'S(' in (layout or ''):
    return 0
  bits = _BITS.match(dtype)  # pred has none
  return math.prod(_dims(shape)) * (int(bits[1]) // 8 if bits else 1)


class _Text:
  """A compiled program, read from its text."""

  def __init__(self, text: str, compiler: Compiler):
    self._compiler = compiler
    self._computations, own = {}, {}
    for line in text.splitlines():
      if found := _COMPUTATION.match(line):
        own = self._computations[found[2]] = {}
        self._entry = found[2] if found[1] else getattr(self, '_entry', '')
      elif found := _OPERATION.match(line):
        root, name, shape, kind, rest = found.groups()
        operands, _, rest = rest.partition(')')
        own[name] = _Operation(
          name,
          tuple(m[0] for m in _SHAPE.finditer(shape)),
          kind,
          tuple(re.findall(r'%([\w.\-]+)', operands)),
          operands + rest,
        )
        if root:
          own['ROOT'] = own[name]

  def cost(self) -> _Cost:
    """Of the whole program."""
    return self._of(self._entry)

  def _of(self, computation: str) -> _Cost:
    own = self._computations[computation]
    once = (op for name, op in own.items() if name != 'ROOT')
    return sum((self._operation(own, op) for op in once), _Cost())

  def _operation(self, own, op: _Operation) -> _Cost:
    target = op.attribute('custom_call_target')
    if op.kind in _FREE or target in ('AllocateBuffer', 'ConcatBitcast'):
      return _Cost()
    read = [own[name].shapes[0] for name in op.operands]
    if op.kind in ('copy-start', 'slice-start'):
      return self._started(op, read)
    if op.kind == 'conditional':
      branches = self._branches(op)
      return max(map(self._of, branches)) + _Cost(0, 1)
    if op.kind in ('call', 'async-start'):
      return self._of(op.attribute('to_apply') or op.attribute('calls'))
    if op.kind == 'while' or op.kind.endswith('-start'):
      raise ValueError(f'what {op.kind} moves is not known: {op.name}')
    if target == self._compiler.kernel:
      moved = sum(map(self._of_kernel, (*read, *op.shapes)))
      return _Cost(moved, 1, 1)
    if op.kind == 'fusion':
      inner = self._computations[op.attribute('calls')]
      return _Cost(self._fusion(inner, read, op.shapes), 1)
    if op.kind in ('dynamic-slice', 'slice', 'gather'):
      return _Cost(_least(read[0], op.shapes[0]) + _bytes(op.shapes[0]), 1)
    if op.kind == 'dynamic-update-slice':
      return _Cost(_bytes(read[1]) + _least(op.shapes[0], read[1]), 1)
    return _Cost(sum(map(_bytes, (*read, *op.shapes))), 1)

  def _started(self, op: _Operation, read) -> _Cost:
    """A copy between memories; its shapes begin with that of the copy."""
    to = op.shapes[op.kind == 'slice-start' and len(read)]
    return _Cost(_least(read[0], to) + _bytes(to), 1)

  def _branches(self, op: _Operation):
    found = re.search(r'branch_computations=\{([^}]*)\}', op.rest)
    if found:
      return re.findall(r'%([\w.\-]+)', found[1])
    names = 'true_computation', 'false_computation'
    return [op.attribute(name) for name in names]

  def _of_kernel(self, shape: str) -> int:
    """An array, or one row of a buffer."""
    dims = _dims(shape)
    return _bytes(shape) // (dims[0] if len(dims) == self._compiler.rows else 1)

  def _fusion(self, own, read, made) -> int:
    """Bytes of a fusion: of what it slices or updates, the part."""
    moved = 0
    for op in {id(op): op for op in own.values()}.values():
      if op.kind == 'parameter':
        shape = read[int(op.rest.partition(',')[0])]
        moved += _part_read(own, op.name, shape)
    root = own['ROOT']
    results = [root.name] if root.kind != 'tuple' else root.operands
    for name, shape in zip(results, made, strict=True):
      op = own[name]
      while op.kind == 'bitcast':
        op = own[op.operands[0]]
      if op.kind == 'dynamic-update-slice':
        moved += _least(shape, own[op.operands[1]].shapes[0])
      else:
        moved += _bytes(shape)
    return moved


def _least(whole: str, part: str) -> int:
  """Bytes of a part of an array, 0 where the array is in no main memory."""
  dtype, dims, _ = _SHAPE.match(part).groups()
  return min(_bytes(whole), _bytes(f'{dtype}[{dims}]'))


def _part_read(own, name: str, shape: str) -> int:
  """Bytes of a fusion's parameter that are read."""
  total = 0
  for op in {id(op): op for op in own.values()}.values():
    if name not in op.operands:
      continue
    first = op.operands[0] == name and name not in op.operands[1:]
    if op.kind == 'bitcast':
      total += _part_read(own, op.name, shape)
    elif first and op.kind in ('dynamic-slice', 'slice', 'gather'):
      total += _least(shape, op.shapes[0])
    elif not (first and op.kind == 'dynamic-update-slice'):
      return _bytes(shape)
  return min(total, _bytes(shape))
