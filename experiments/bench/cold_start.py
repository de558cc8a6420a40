"""From `python -m experiments.train` to its first line of progress, on digits.

  python -m experiments.bench.cold_start

Every round takes a fresh cache folder and starts the command twice: first with
nothing compiled, then with what the first start left. The clock runs from the
start of the process to the line of the first epoch; the process is ended there.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from absl import flags

from experiments.bench import timing
from experiments.running import compilation
from experiments.script import launch
from experiments.settings import table as settings_lib

_ROUNDS = flags.DEFINE_integer('rounds', 3, 'pairs of starts')

SECONDS, TIMES = 8, 2  # aimed at
COMPILED = re.compile(r'compiled (\d+) programs in ([\d.]+) s')

LIMITS = """
A first start is compilation: the initial parameters, the block of updates and
the evaluation are three large programs. A second one is mostly Python: imports
of JAX, Flax and optax, tracing the block and writing it down as MLIR, which JAX
does before it can look a program up. What was done for it: digits are read from
scikit-learn's file without importing scikit-learn (a second of processor time),
the first carry of a run is one program in the place of fourteen small ones, and
NumPy sums what needs no device. The folder holds small programs too: JAX leaves
out what compiles in under a second unless told otherwise. On some Intel
processors XLA refuses to load its own programs again
([jax#38445](https://github.com/jax-ml/jax/issues/38445)), and says so on
stderr; a second start is as slow as the first there, and `--compilation_cache=
none` makes it quiet.
"""


class Start(NamedTuple):
  """One start of the command, in seconds."""

  first_line: float  # until it says that it compiles
  first_epoch: float
  compiling: float
  programs: int


def prepare():
  """Checks what was asked for."""
  if _ROUNDS.value < 1:
    raise settings_lib.SettingError('rounds', _ROUNDS.value, 'at least 1')


def main(_):
  where = timing.machine()
  pairs = []
  for _ in range(_ROUNDS.value):
    with tempfile.TemporaryDirectory() as folder:
      pairs.append((start(folder), start(folder)))
  rows = []
  timing.say(f'{"seconds":8} {"first epoch":24} {"compiling":24} programs')
  for i, name in enumerate(('first', 'second')):
    starts = [pair[i] for pair in pairs]
    until = timing.figure([one.first_epoch for one in starts])
    spent = timing.figure([one.compiling for one in starts])
    timing.say(f'{name:8} {until!s:24} {spent!s:24} {starts[0].programs}')
    rows.append(
      {'start': name, 'epoch': until._asdict(), 'compiling': spent._asdict()}
    )
  first, second = ([pair[i].first_epoch for pair in pairs] for i in (0, 1))
  targets = [
    timing.Target(
      'seconds to the first epoch, nothing compiled',
      timing.figure(first),
      SECONDS,
    ),
    timing.Target(
      'first start over second',
      timing.ratios(first, second),
      TIMES,
      at_least=True,
    ),
  ]
  timing.finish(where, rows, targets)


def start(folder: str) -> Start:
  """Starts the command, with a folder for its caches."""
  command = [sys.executable, '-m', 'experiments.train', '--overwrite']
  unset = (compilation.FOLDER, 'GA_JAX_CACHE')
  environment = {k: v for k, v in os.environ.items() if k not in unset}
  began = time.perf_counter()
  with subprocess.Popen(
    [*command, f'--workdir={folder}/run'],
    env={**environment, 'XDG_CACHE_HOME': folder},
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    said = None
    programs, compiling = 0, 0.0
    for line in process.stdout:
      now = time.perf_counter() - began
      said = said or now
      if found := COMPILED.match(line):
        programs, compiling = int(found[1]), float(found[2])
      if line.startswith('epoch'):
        process.kill()
        return Start(said, now, compiling, programs)
  raise RuntimeError(f'{" ".join(command)} ended before its first epoch')


if __name__ == '__main__':
  launch.launch(main, prepare)
