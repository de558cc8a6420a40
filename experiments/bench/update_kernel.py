"""How fast the rules' updates are, against the machine's own copy bandwidth.

  python -m experiments.bench.update_kernel --json=results/bench/update.json

An update has to read and write certain arrays of the parameters' size: momentum
SGD reads g, v and θ and writes v and θ, which is 5 arrays, GA reads θs and s
too and writes s, 8. Those bytes over the time of `rule.update` and
`optax.apply_updates`, compiled, with parameters and state donated, are compared
with what a copy of one vector of that size reaches in the same run, turn by
turn: the best of NumPy's and of XLA's on all threads, into memory that is there
already. The parameters are one flat vector, or the 161 leaves of a ResNet-50;
float32, and bfloat16.

`cpu` are the seconds that all threads spent together, which tell more than wall
time where other programs use the cores too.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import ga_jax
from experiments.bench import resnet50, timing, updates
from experiments.script import launch, shared_flags
from experiments.settings import table
from ga_jax import rules

RATE, WORKERS = 1e-3, 4
SHAPES, DTYPES = ['flat', 'ResNet-50'], ['float32', 'bfloat16']

_ROUNDS = flags.DEFINE_integer(
  'rounds', 7, 'measurements of each', lower_bound=1
)
_RULES = flags.DEFINE_list('rules', [], 'rules to measure, all by default')
_SHAPES = flags.DEFINE_list('shapes', SHAPES, 'of parameters')
_DTYPES = flags.DEFINE_list('dtypes', DTYPES, 'of parameters')
_SCALE = flags.DEFINE_float('scale', 1.0, 'of the flat vector, for a quick try')


class Rule(NamedTuple):
  """A rule, and the arrays like the parameters that it must move.

  Attributes:
    make: `make() -> rule`.
    arrays: arrays of the parameters' dtype to read and to write.
    wide: of these, what is kept in float32 at least whatever the parameters.
  """

  make: Callable[[], ga_jax.AsyncOptimizer]
  arrays: int
  wide: int = 0


RULES = {
  # g; v and θ in and out
  'SGD': Rule(lambda: rules.asgd(RATE, momentum=0.9), 5),
  'SA': Rule(lambda: rules.staleness_aware(RATE, momentum=0.9), 5),
  # and θs
  'DC-ASGD': Rule(lambda: rules.dc_asgd(RATE, momentum=0.9), 6),
  # and the mean square in and out
  'DC-ASGD-a': Rule(lambda: rules.dc_asgd_adaptive(RATE, momentum=0.9), 8, 2),
  # g; v_w, Σ v and θ in and out
  'DANA-Zero': Rule(lambda: rules.dana_zero(RATE, num_workers=WORKERS), 7, 2),
  # g, θs; v, s and θ in and out
  'GA': Rule(lambda: rules.gap_aware(RATE, momentum=0.9), 8, 2),
  # g, θs; v_w, Σ v, s and θ in and out
  'DANA-GA': Rule(lambda: rules.dana_ga(RATE, num_workers=WORKERS), 10, 4),
  # g, θs; both moments, s and θ in and out
  'GA-Adam': Rule(lambda: rules.gap_aware_adam(RATE), 10, 2),
}


LIMITS = """
XLA's CPU compiler fuses what makes one array and has no fusion with several
results, so that an update is a pass over memory for each array that it writes:
momentum SGD reads and writes 6 arrays instead of the 5 that it must, GA 15
instead of 8 (v: 6, s: 3, θ: 3, and 3 for a pass that measures gap and penalty),
DANA-Zero 11 instead of 7. GA's ratio to SGD cannot fall below 15 / 6 = 2.5 in
this form. DANA-Zero's write into a row of the workers' buffers (a dynamic
update in place) runs on one thread.

Where a large array is made on the way (*spare*), fresh memory is had for it in
every call, and its page faults cost more than the arithmetic. DANA-GA and
GA-Adam do so with the corrected gradient, which two passes read, for XLA does
not divide twice. DANA-Zero did with the row that it replaces, until the row was
read as a slice of the same shape as the one that is written, which XLA can fuse
into the update in place: processor time fell to a third.

Tried, and slower: blocks of 16 thousand to a million parameters in a loop (XLA
writes into the whole arrays from a loop on one thread), rows of 16 to 1,024
that are reduced together with the update, a reduction of three values without
an order between the passes (XLA then copies what one reads and the other
overwrites). What helped: one pass for all three metrics in rows of 16 by 128,
which LLVM vectorises (ten times faster than a long row), small leaves gathered
into one reduction, buffers that are selected instead of copied.

Large pages make updates of this size about twice as cheap in processor time:
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`.
"""

# Measured in every shape and dtype; the others as one float32 vector.
EVERYWHERE = ('SGD', 'SA', 'DC-ASGD', 'DANA-Zero', 'GA')


def prepare():
  """Checks what was asked for."""
  shared_flags.check_positive(_SCALE)
  known = (_RULES, list(RULES)), (_SHAPES, SHAPES), (_DTYPES, DTYPES)
  for flag, accepted in known:
    for value in flag.value:
      if value not in accepted:
        raise table.SettingError(flag.name, value, f'accepted are {accepted}')


def main(_):
  where = timing.machine()
  rows = []
  for dtype in _DTYPES.value:
    for name in _SHAPES.value:
      shapes = {
        'flat': [(max(1, int(25_600_000 * _SCALE.value)),)],
        'ResNet-50': resnet50.shapes(),
      }[name]
      rows += compared(name, shapes, jnp.dtype(dtype))
  timing.finish(where, rows, list(targets(rows)))


def targets(rows: list[dict[str, object]]):
  """What was aimed at: near the bandwidth of a copy, and GA near SGD."""
  least = 0.75 if jax.default_backend() == 'cpu' else 0.85
  for row in rows:
    if row['rule'] not in EVERYWHERE or row['dtype'] != 'float32':
      continue
    what = f'{row["rule"]}, {row["shapes"]}'
    part = timing.Figure(**row['part_of_copy'])
    yield timing.Target(f'{what}: part of a copy', part, least, at_least=True)
    if row['rule'] == 'GA' and 'over_sgd' in row:
      over = timing.Figure(**row['over_sgd'])
      yield timing.Target(f'{what}: times SGD', over, 2)


def compared(name: str, shapes, dtype) -> list[dict[str, object]]:
  """Measures all rules and the copies in turns."""
  size = sum(map(math.prod, shapes))
  plain = name == 'flat' and dtype == jnp.float32
  chosen = _RULES.value or [r for r in RULES if plain or r in EVERYWHERE]
  runs = {rule: Update(RULES[rule], shapes, dtype) for rule in chosen}
  copies = {
    'NumPy copy': NumpyCopy(size, dtype),
    'XLA copy': XlaCopy(size, dtype),
  }
  measured = timing.alternate({**copies, **runs}, _ROUNDS.value)
  speeds = {
    copy: [one.nbytes / seconds for seconds, _ in measured[copy]]
    for copy, one in copies.items()
  }
  best = [max(pair) for pair in zip(*speeds.values(), strict=True)]
  rows = []
  for candidate, one in {**copies, **runs}.items():
    walls, cpus = zip(*measured[candidate], strict=True)
    rate = timing.figure([one.nbytes / s / 1e9 for s in walls])
    part = timing.ratios([one.nbytes / s for s in walls], best)
    row = {
      'rule': candidate, 'shapes': name, 'dtype': str(dtype),
      'bytes': one.nbytes, 'seconds': walls, 'cpu_seconds': cpus,
      'part_of_copy': part._asdict(), 'temporary_bytes': one.temporary,
    }  # fmt: skip
    if candidate in runs and 'SGD' in runs:
      of_sgd = list(zip(*measured['SGD'], strict=True))
      row['over_sgd'] = timing.ratios(walls, of_sgd[0])._asdict()
      row['cpu_over_sgd'] = timing.ratios(cpus, of_sgd[1])._asdict()
    ms = timing.figure([1e3 * s for s in walls])
    cpu = timing.figure([1e3 * s for s in cpus])
    timing.say(
      f'{name:9} {dtype!s:8} {candidate:10} {ms!s:21} ms  cpu {cpu!s:21} '
      f'{rate.median:5.3g} GB/s  of copy {part!s:24} '
      f'spare {one.temporary / 1e6:.0f} MB'
    )
    rows.append(row)
  return rows


class Update:
  """One rule's update, compiled; a call makes one and says what it took."""

  def __init__(self, rule: Rule, shapes, dtype):
    made = rule.make()
    size = sum(map(math.prod, shapes))
    wide = max(dtype.itemsize, 4)
    narrow = (rule.arrays - rule.wide) * dtype.itemsize
    self.nbytes = size * (narrow + rule.wide * wide)

    update = jax.jit(updates.by_optax(made), donate_argnums=(0, 1))

    def filled(value):
      return [jnp.full(shape, value, dtype) for shape in shapes]

    self._kept = filled(1.0), made.init(filled(1.0))
    self._given = filled(1e-6), filled(0.5), np.int32(3), np.int32(1)
    self._update = update.lower(*self._kept, *self._given).compile()
    self.temporary = self._update.memory_analysis().temp_size_in_bytes
    self()

  def __call__(self) -> tuple[float, float]:
    """(wall seconds, seconds of all threads)."""

    def run():
      self._kept = jax.block_until_ready(
        self._update(*self._kept, *self._given)
      )

    return _seconds(run)


class NumpyCopy:
  """Copies one vector, on one thread."""

  temporary = 0

  def __init__(self, size: int, dtype):
    self._from = np.ones(size, dtype)
    self._to = np.zeros(size, dtype)
    self.nbytes = 2 * self._from.nbytes

  def __call__(self) -> tuple[float, float]:
    return _seconds(lambda: np.copyto(self._to, self._from))


class XlaCopy:
  """Copies one vector, compiled, into one that is given up."""

  temporary = 0

  def __init__(self, size: int, dtype):
    self._from, self._to = jnp.ones(size, dtype), jnp.zeros(size, dtype)
    self.nbytes = 2 * self._from.nbytes
    copy = jax.jit(lambda x, to: -x, donate_argnums=1, keep_unused=True)
    self._copy = copy.lower(self._from, self._to).compile()
    self()

  def __call__(self) -> tuple[float, float]:
    def run():
      self._to = jax.block_until_ready(self._copy(self._from, self._to))

    return _seconds(run)


def _seconds(run: Callable[[], object]) -> tuple[float, float]:
  """(wall, of all threads), the shortest of three calls."""
  spent = []
  for _ in range(3):
    cpu = time.process_time()
    wall = timing.seconds(run)
    spent.append((wall, time.process_time() - cpu))
  walls, cpus = zip(*spent, strict=True)
  return min(walls), min(cpus)


if __name__ == '__main__':
  launch.launch(main, prepare)
