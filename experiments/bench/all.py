"""Runs every benchmark in turn and makes a page of what they measured.

  python -m experiments.bench.all

Each is a process of its own that writes `FOLDER/NAME.json`; the page,
`FOLDER/README.md`, is made of the files that are there, so that a benchmark can
be run alone and longer (`--json=results/bench/NAME.json`) and the page made
again (`--render`). Another machine's figures belong in a folder of
their own.
"""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import time
from typing import NamedTuple

from absl import flags

from experiments.bench import compilers, timing
from experiments.reporting import tables
from experiments.script import launch, shared_flags
from experiments.settings import path_flags


class Bench(NamedTuple):
  """A benchmark of this folder.

  Attributes:
    name: of its module.
    flags: with which it takes half a minute or so on two cores.
    needs: a package that is not installed everywhere; it is left out then.
    of: which of several, whose figures are in files of their own.
  """

  name: str
  flags: tuple[str, ...] = ()
  needs: str = 'jax'
  of: str = ''

  @property
  def figures(self) -> str:
    """The name of its file."""
    return f'{self.name}_{self.of}' if self.of else self.name


BENCHES = (
  Bench('simulation_overhead', ('--rounds=3',)),
  Bench('update_kernel', ('--rounds=3', '--dtypes=float32')),
  *(
    Bench(
      'compiled_for',
      (f'--device={device}', '--layouts=vector,matrix'),
      compiler.package,
      of=device,
    )
    for device, compiler in compilers.COMPILERS.items()
  ),
  Bench('growth'),
  Bench('memory'),
  Bench('memory_per_update', ('--updates=20000',)),
  Bench('many_seeds', ('--model=mlp_bn',)),
  Bench('simulated_devices'),
  Bench('scheduling', ('--rounds=3',)),
  Bench('cold_start'),
  Bench('against_torch', ('--models=mlp,transformer',), needs='torch'),
  Bench('straggler', ('--rounds=2', '--batches=120')),
  Bench('decoding', ('--rounds=3',)),
  Bench(
    'ray_throughput',
    ('--workers=2', '--seconds=1', '--rounds=1', '--only=ResNet-20'),
    needs='ray',
  ),
)

_FOLDER = path_flags.one('folder', 'results/bench', 'of figures and page')
_ONLY = flags.DEFINE_list('only', [], 'benchmarks to run, all by default')
_RENDER = flags.DEFINE_bool('render', False, 'run nothing, make the page')

HEAD = """# Benchmarks

Made by `python -m experiments.bench.all`: ratios are taken side by side in one
run, candidates in turns; a figure is the median of the rounds, with minimum and
maximum.
"""


def prepare():
  """Checks what was asked for."""
  if _ONLY.value:
    shared_flags.check_names(
      'only', _ONLY.value, [bench.name for bench in BENCHES]
    )


def main(_):
  os.makedirs(_FOLDER.value, exist_ok=True)
  chosen = [b for b in BENCHES if not _ONLY.value or b.name in _ONLY.value]
  failed = [] if _RENDER.value else [b.name for b in chosen if not run(b)]
  tables.write_page(os.path.join(_FOLDER.value, 'README.md'), page())
  if failed:
    print(f'failed: {", ".join(failed)}', file=sys.stderr)
    sys.exit(1)


def run(bench: Bench) -> bool:
  """Runs one; whether it ended well."""
  if importlib.util.find_spec(bench.needs) is None:
    print(f'== {bench.name}: left out, {bench.needs} is not installed')
    return True
  print(f'== {bench.name}', flush=True)
  begun = time.monotonic()
  done = subprocess.run(
    [
      *(sys.executable, '-m', f'experiments.bench.{bench.name}'),
      *(*bench.flags, f'--json={path(bench)}'),
    ],
    check=False,
  )
  print(f'== {time.monotonic() - begun:.0f} s', flush=True)
  return done.returncode == 0


def path(bench: Bench) -> str:
  """Where a benchmark's figures are."""
  return os.path.join(_FOLDER.value, f'{bench.figures}.json')


def page() -> str:
  """The page of all figures that are there."""
  measured = []
  for bench in BENCHES:
    if os.path.exists(path(bench)):
      with open(path(bench), encoding='utf-8') as file:
        measured.append((bench, json.load(file)))
  rows = [
    (bench.figures, *verdict(target))
    for bench, results in measured
    for target in results['targets']
  ]
  head = ('benchmark', 'what', 'measured', 'target', '')
  parts = [HEAD, tables.markdown(head, rows) + '\n']
  parts += [section(bench, results) for bench, results in measured]
  return '\n'.join(parts)


def verdict(target: dict) -> tuple[str, str, str, str]:
  """(what, measured, bound, met or missed) of a target in a file."""
  figure = timing.Figure(**target['measured'])
  side = 'at least' if target['at_least'] else 'at most'
  return (
    target['what'],
    str(figure),
    f'{side} {target["bound"]:g}',
    'met' if target['met'] else '**missed**',
  )


def section(bench: Bench, results: dict) -> str:
  """A benchmark's part of the page."""
  title, limits = about(bench)
  machine = ', '.join(f'{k} {v}' for k, v in results['machine'].items())
  printed = '\n'.join(results['printed'])
  return (
    f'## {bench.figures}\n\n{title}\n\n`{results["command"]}` ({machine})\n\n'
    f'```\n{printed}\n```\n{limits}'
  )


def about(bench: Bench) -> tuple[str, str]:
  """A benchmark's first line, and its LIMITS; it is not imported."""
  source = importlib.util.find_spec(f'experiments.bench.{bench.name}').origin
  with open(source, encoding='utf-8') as file:
    module = ast.parse(file.read())
  texts = [
    ast.literal_eval(node.value)
    for node in module.body
    if isinstance(node, ast.Assign)
    and getattr(node.targets[0], 'id', '') == 'LIMITS'
  ]
  title, _, _ = ast.get_docstring(module).partition('\n')
  return title, ''.join(texts)


if __name__ == '__main__':
  launch.launch(main, prepare)
