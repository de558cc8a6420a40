"""Everything that wants an accelerator, for the day when one is at hand.

  python -m experiments.bench.accelerator --seconds=540 --out=results/h100

What matters most comes first, each a process of its own with its share of the
time (what one leaves goes to the next ones): kernels against the formula in
float32 and bfloat16, the same bits twice, one worker against plain optax, the
replay of a run on threads, update bandwidth against a copy, GA over plain SGD,
many seeds in one program, PyTorch where it is installed.

Each leaves OUT/NAME.json as soon as it is done, with the device and JAX's
version; OUT/README.md shows what there is. It may be killed at any moment: the
same command goes on with what was not done. What fails or takes too long leaves
its error, and what it had measured, and is tried again by the next call. A
folder belongs to one device. --tiny tries the command out, on a CPU too.
"""

import ctypes
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

from absl import flags

from experiments.reporting import tables
from experiments.script import launch, shared_flags
from experiments.settings import path_flags, table
from ga_jax.record import files


class Section(NamedTuple):
  """One of what is done.

  Attributes:
    name: of its file.
    module: of `experiments.bench`.
    flags: of it.
    tiny: its flags where --tiny is said; None where it is left out then.
    share: of the time, beside those of the others.
    ordered: whether sums have to be made in one order.
    needs: a package without which it is left out.
  """

  name: str
  module: str
  flags: tuple[str, ...]
  tiny: tuple[str, ...] | None
  share: int
  ordered: bool = False
  needs: str = 'jax'


def _check(name: str, share: int) -> Section:
  own = (f'--checks={name}',)
  return Section(
    name, 'device_checks', own, (*own, '--tiny'), share, name != 'kernels'
  )


def _bandwidth(name: str, own: tuple[str, ...], share: int, tiny=None):
  own = (*own, '--rounds=5')
  return Section(f'bandwidth_{name}', 'update_kernel', own, tiny, share)


def _overhead(name: str, problem: str, share: int, tiny=None):
  own = (f'--problems={problem}', '--rounds=3')
  return Section(f'overhead_{name}', 'simulation_overhead', own, tiny, share)


def _torch(model: str, share: int, tiny=None):
  own = (f'--models={model}',)
  name = f'torch_{model}'
  return Section(name, 'against_torch', own, tiny, share, needs='torch')


SECTIONS = (
  _check('kernels', 90),
  _check('bits', 25),
  _check('optax', 30),
  _check('replay', 30),
  _bandwidth(
    'vector',
    ('--shapes=flat', '--dtypes=float32'),
    50,
    ('--shapes=flat', '--dtypes=float32', '--rounds=1', '--scale=0.001'),
  ),
  _bandwidth('leaves', ('--shapes=ResNet-50', '--dtypes=float32'), 60),
  _bandwidth('bfloat16', ('--shapes=flat', '--dtypes=bfloat16'), 25),
  _overhead('resnet20', 'resnet20-128', 70),
  _overhead('mlp', 'mlp_bn-128', 25, ('--problems=mlp_bn-128', '--rounds=1')),
  _overhead('transformer', 'transformer-16', 40),
  Section(
    'many_seeds',
    'many_seeds',
    ('--processes=0',),  # which a TPU has no room for
    (
      *('--processes=0', '--model=mlp_bn', '--seeds=2', '--updates=4'),
      *('--rounds=1', '--batch_size=8'),
    ),
    50,
  ),
  _torch('mlp', 20, ('--models=mlp', '--rounds=1', '--scale=0.5')),
  _torch('transformer', 20),
  _torch('resnet20', 25),
)
ORDERED = '--xla_gpu_deterministic_ops=true'  # which a CPU does not mind

_SECONDS = flags.DEFINE_float('seconds', 540, 'for all of it')
_OUT = path_flags.one('out', None, 'folder of the results')
_TINY = flags.DEFINE_bool('tiny', False, 'small sizes, to try the command')


def prepare():
  """Checks the time and the folder; JAX is left to the sections."""
  shared_flags.check_positive(_SECONDS)
  if not _OUT.value:
    raise table.SettingError('out', '', 'must name a folder')
  os.makedirs(_OUT.value, exist_ok=True)


def main(_):
  end = time.monotonic() + _SECONDS.value
  waiting = [s for s in SECTIONS if wanted(s) and not done(s)]
  while waiting:
    section, share = waiting[0], sum(one.share for one in waiting)
    left = end - time.monotonic()
    if left <= 0:
      names = ', '.join(one.name for one in waiting)
      print(f'no time for {names}: the same command goes on', flush=True)
      break
    run(section, left * section.share / share)
    files.write_text(os.path.join(_OUT.value, 'README.md'), page())
    waiting.pop(0)
  files.write_text(os.path.join(_OUT.value, 'README.md'), page())
  if any(wanted(s) and not done(s) for s in SECTIONS):
    sys.exit(1)


def wanted(section: Section) -> bool:
  """Whether it can be done here."""
  there = importlib.util.find_spec(section.needs) is not None
  return there and not (_TINY.value and section.tiny is None)


def command(section: Section) -> list[str]:
  """What a section calls, without where it writes."""
  own = section.tiny if _TINY.value else section.flags
  return ['-m', f'experiments.bench.{section.module}', *own]


def path(section: Section) -> str:
  return os.path.join(_OUT.value, f'{section.name}.json')


def result(section: Section) -> dict[str, Any]:
  """What it left; {} where it is to be done."""
  try:
    with open(path(section), encoding='utf-8') as file:
      found = json.load(file)
  except FileNotFoundError:
    return {}
  return found if found['section'] == command(section) else {}


def done(section: Section) -> bool:
  found = result(section)
  return bool(found) and 'error' not in found


def run(section: Section, seconds: float):
  """Runs a section; writes its result or why there is none."""
  print(f'== {section.name}, at most {seconds:.0f} s', flush=True)
  begun, part = time.monotonic(), f'{path(section)}.part'
  if os.path.exists(part):
    os.unlink(part)
  environment = dict(os.environ)
  if section.ordered:
    said = environment.get('XLA_FLAGS', '')
    environment['XLA_FLAGS'] = f'{said} {ORDERED}'.strip()
  log = f'{os.path.splitext(path(section))[0]}.log'
  with open(log, 'w', encoding='utf-8') as out:
    process = subprocess.Popen(
      [sys.executable, *command(section), f'--json={part}'],
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=out,
      stderr=subprocess.STDOUT,
      preexec_fn=_ends_with_us,
    )
    try:
      process.wait(seconds)
      error = process.returncode and f'exit code {process.returncode}'
    except subprocess.TimeoutExpired:
      error = f'took longer than its {seconds:.0f} s'
    finally:
      process.kill()
      process.wait()
  found = {}
  if os.path.exists(part):
    with open(part, encoding='utf-8') as file:
      found = json.load(file)
  found |= {
    'section': command(section),
    'seconds': time.monotonic() - begun,
  }
  if error:
    with open(log, encoding='utf-8') as file:
      found |= {'error': error, 'log': file.read()[-4000:]}
  files.write_json(path(section), found)
  for name in (part, log):
    if os.path.exists(name):
      os.unlink(name)
  print(f'== {found["seconds"]:.0f} s, {error or "done"}', flush=True)


def _ends_with_us():
  """In a section's process: killed when this one is, which frees the device."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def page() -> str:
  """What there is so far."""
  found = [(s, result(s)) for s in SECTIONS if wanted(s)]
  rows, parts = [], []
  for section, one in found:
    state = one.get('error', 'done') if one else 'not yet'
    took = f'{one["seconds"]:.0f} s' if one else ''
    rows.append((section.name, state, took))
    if not one:
      continue
    machine = ', '.join(f'{k} {v}' for k, v in one.get('machine', {}).items())
    printed = '\n'.join(
      [*one.get('printed', []), *map(told, one.get('targets', []))]
    )
    line = shlex.join(['python', *command(section)])
    parts.append(
      f'## {section.name}\n\n`{line}` ({machine})\n\n'
      f'```\n{printed or one.get("log", "").strip()}\n```\n'
    )
  head = (
    '# On a device\n\nMade by `python -m experiments.bench.accelerator`: '
    'ratios are taken side by side in one run.\n'
  )
  states = tables.markdown(('section', 'state', 'took'), rows) + '\n'
  return '\n'.join([head, states, *parts])


def told(target: dict[str, Any]) -> str:
  """A line of a target in a file."""
  side = 'at least' if target['at_least'] else 'at most'
  verdict = 'met' if target['met'] else 'MISSED'
  seen = '{median:.3g} ({minimum:.3g} to {maximum:.3g})'.format(
    **target['measured']
  )
  return f'{target["what"]}: {seen}, {side} {target["bound"]:g}: {verdict}'


if __name__ == '__main__':
  launch.launch(main, prepare, device_fn=lambda _: None, goes_on=True)
