"""What the compilers of an H100 and a TPU v5e make of every rule's update.

  pip install 'ga_jax[aot-gpu]' or 'ga_jax[aot-tpu]'  # needs no device
  python -m experiments.bench.compiled_for --device=h100 \\
    --json=results/bench/compiled_for_h100.json

It is the compiler's word and not a time: the program is compiled and read,
nothing runs. Counted are arrays of the parameters' size and dtype.

* moved: what the program's operations read from main memory and write to it,
  without what tiles leave empty; of a buffer of which a row is read or
  replaced, the row.
* floor: every input that is needed read once, every output written once.
* temporary: memory beside inputs and outputs; in place: outputs that are
  written over inputs.
* launches: kernels and fusions (a TPU is told of a program as a whole).
* kernels: those of ours in the program, and how many `ga_jax.kernels` asked
  for: none fell back to the formula where the two are equal.

The update is written in two ways: as the server makes it (correct, step, apply
and the metrics in one), and as a loop of optax does (`rule.update`, then
`optax.apply_updates`), which needs the updates as arrays. SGD is optax's. The
parameters are one vector, a matrix of 4096 x 6144, and the 161 leaves of a
ResNet-50. A program of the leaves takes some 25
seconds of a core, the others about one; --go_on keeps those that --json has.
"""

import importlib.util
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from experiments.bench import compilers, named_rules, resnet50, timing, updates
from experiments.script import launch, shared_flags
from experiments.settings import table
from ga_jax.server import update

LAYOUTS = {
  'vector': [(25_600_000,)],
  'matrix': [(4096, 6144)],
  'leaves': resnet50.shapes(),
}
PATHS = ('server', 'optax')
DTYPES = ('float32', 'bfloat16')

_DEVICE = flags.DEFINE_enum('device', 'h100', list(compilers.COMPILERS), 'for')
_RULES = flags.DEFINE_list('rules', [], 'to compile, all by default')
_LAYOUTS = flags.DEFINE_list('layouts', list(LAYOUTS), 'of the parameters')
_DTYPE = flags.DEFINE_enum('dtype', 'float32', DTYPES, 'of the parameters')
_GO_ON = flags.DEFINE_bool(
  'go_on', False, 'keep the rows that --json has already; all of it takes long'
)

LIMITS = """
The optax path hands updates out, as optax does: an array is written by the
kernel and read again where it is added. A TPU's tile holds numbers of several
rows, so a buffer of rows of vectors is left to XLA there, which copies it.
"""


class Step(NamedTuple):
  """One update, to be compiled.

  Attributes:
    fn: of `args`.
    args: pytrees of shapes.
    donated: how many of them, the first ones, may be written over.
    size: bytes of the parameters.
  """

  fn: Callable[..., Any]
  args: tuple[Any, ...]
  donated: int
  size: int


def steps(rule, shapes, dtype) -> dict[str, Step]:
  """An update in every way that it is written, by name."""
  params = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
  size = sum(math.prod(s) for s in shapes) * jnp.dtype(dtype).itemsize
  state = jax.eval_shape(lambda p: update.init(rule, p), params)
  arrival = jax.eval_shape(update.any_arrival, state)
  number = jax.ShapeDtypeStruct((), jnp.int32)

  def server(params, opt_state, rest, arrival):
    state = rest._replace(params=params, opt_state=opt_state)
    state, metrics = update.apply(rule, state, arrival, lambda *own: own[0])
    rest = state._replace(params=(), opt_state=())
    return state.params, state.opt_state, rest, metrics

  rest = state._replace(params=(), opt_state=())
  given = (params, state.opt_state)
  return {
    'server': Step(server, (*given, rest, arrival), 2, size),
    'optax': Step(
      updates.by_optax(rule), (*given, params, params, number, number), 2, size
    ),
  }


def measured(device: str, step: Step) -> dict[str, Any]:
  """What a compiler makes of a step, in arrays of the parameters' size."""
  made = compilers.compiled(device, step.fn, step.args, range(step.donated))
  donated = jax.tree.leaves(step.args[: step.donated])
  return {
    'moved': made.moved / step.size,
    'floor': compilers.floor(device, step.fn, step.args) / step.size,
    'temporary': made.temporary / step.size,
    'in_place': made.aliased / step.size,
    'donated': sum(x.size * x.dtype.itemsize for x in donated) / step.size,
    'launches': made.launches,
    'kernels': made.kernels,
    'planned': compilers.planned(device, step.fn, step.args),
  }


def prepare():
  """Checks what was asked for; JAX itself has the CPU."""
  shared_flags.check_names('layouts', _LAYOUTS.value, list(LAYOUTS))
  if _RULES.value:
    shared_flags.check_names('rules', _RULES.value, list(named_rules.named()))
  one = compilers.COMPILERS[_DEVICE.value]
  if importlib.util.find_spec(one.package) is None:
    raise table.SettingError(
      'device',
      _DEVICE.value,
      f"needs the compiler: pip install 'ga_jax[{one.extra}]'",
    )
  jax.config.update('jax_platforms', 'cpu')


def main(_):
  where = {
    'compiled for': compilers.device(_DEVICE.value).device_kind,
    'jax': jax.__version__,
    'parameters': _DTYPE.value,
  }
  rows = kept(where) if _GO_ON.value else {}
  timing.say(HEAD)
  for key in itertools.product(LAYOUTS, PATHS, named_rules.named()):
    layout, path, name = key
    asked = layout in _LAYOUTS.value and name in (_RULES.value or key)
    if name == named_rules.SGD and path == 'server':
      continue  # there it is the rule asgd
    if key not in rows and not asked:
      continue
    if key not in rows:
      rows[key] = of_rule(layout, path, name)
    timing.say(line(rows[key]))
    timing.write(where, list(rows.values()))  # all of it takes long
  timing.finish(where, list(rows.values()))


def kept(where: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
  """Rows of an earlier call for the same device and JAX."""
  found = timing.written()
  same = found and found['machine'] == where
  return {
    (row['layout'], row['path'], row['rule']): row
    for row in (found['rows'] if same else [])
  }


HEAD = (
  f'{"":6}  {"":20}  path    moved  floor  temporary  in place  launches  '
  'kernels'
)


def line(row: dict[str, Any]) -> str:
  """Of the table."""
  launches = '-' if row['launches'] is None else row['launches']
  return (
    f'{row["layout"]:6}  {row["rule"]:20}  {row["path"]:6} {row["moved"]:6.2f} '
    f'{row["floor"]:6.2f} {row["temporary"]:10.2f} {row["in_place"]:9.2f} '
    f'{launches:>9}  {row["kernels"]} of {row["planned"]}'
  )


def of_rule(layout: str, path: str, name: str) -> dict[str, Any]:
  """Compiles a rule's update."""
  rule, dtype = named_rules.named()[name](), jnp.dtype(_DTYPE.value)
  step = steps(rule, LAYOUTS[layout], dtype)[path]
  row = measured(_DEVICE.value, step)
  return {'layout': layout, 'rule': name, 'path': path, **row}


if __name__ == '__main__':
  launch.launch(main, prepare, device_fn=lambda _: None)
