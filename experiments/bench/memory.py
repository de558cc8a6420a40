"""The simulator's peak memory beside the sum that `experiments.methods` prints.

  python -m experiments.bench.memory

Each run is a process of its own: it trains a model of a million parameters with
two workers first, so that code and compiler are in memory, then with 128. The
peak of its resident set (`ru_maxrss`) less what it held in between is divided
by the bytes of parameters, optimiser state, snapshots and worker states.
"""

import gc
import json
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import ga_jax
from experiments.bench import timing
from experiments.catalogue import assembly, facts, methods
from experiments.script import launch, name_flags, shared_flags
from experiments.settings import table as settings_lib
from ga_jax import clocks

_METHODS = name_flags.several('methods', ['ga'], 'of experiments.methods')
_WORKERS = flags.DEFINE_integer('workers', 128, 'simulated workers')
_SIDE = flags.DEFINE_integer('side', 1000, 'the model has its square')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'processes per method')
_ONE = flags.DEFINE_bool('one', False, 'measure here, print JSON (internal)')

BATCH = 8
PAGE = resource.getpagesize()

LIMITS = """
The snapshots are one buffer with a row per version, written in place in the
scanned block (XLA's memory analysis: it donates the whole carry, and needs two
more copies of the parameters for GA, the row that was read and the gradient).
The first carry is made by one program that writes each array once; before, it
was made operation by operation and the states of worker programs were stacked
from N arrays. What is above the sum is the gradient's own memory, the metrics
and the allocator. In *unrolled* blocks (convolutions on the CPU) rows are read
in a branch, for XLA otherwise reads them again wherever they are used and
copies the whole buffer between two writes; what remains there are the rows that
a block read, which XLA keeps for the metrics until its end. A barrier
(`optimization_barrier`) in place of the branch changed nothing.
"""


def prepare():
  """Checks what was asked for."""
  shared_flags.check_names('methods', _METHODS.value, methods.METHODS)
  for name, least in (('workers', 1), ('side', 8), ('rounds', 1)):
    value = flags.FLAGS[name].value
    if value < least:
      raise settings_lib.SettingError(name, value, f'at least {least}')


def main(_):
  if _ONE.value:
    print(json.dumps(measured(_METHODS.value[0], _WORKERS.value)))
    return
  where, rows, targets = timing.machine(), [], []
  found = timing.alternate(
    {name: lambda name=name: in_a_process(name) for name in _METHODS.value},
    _ROUNDS.value,
  )
  timing.say(
    f'{_WORKERS.value} workers, {_SIDE.value**2:,} float32 parameters\n'
    f'{"method":12} {"sum, MB":>9} {"peak, MB":>9}  peak / sum'
  )
  for name, runs in found.items():
    total = runs[0]['sum']
    peak = timing.figure([run['peak'] for run in runs])
    ratio = timing.figure([run['peak'] / total for run in runs])
    timing.say(
      f'{name:12} {total / 1e6:9.1f} {peak.median / 1e6:9.1f}  {ratio}'
    )
    rows.append({'method': name, 'sum': total, 'peak': peak._asdict()})
    what = f'peak over the sum, {name}, {_WORKERS.value} workers'
    targets.append(timing.Target(what, ratio, 1.1))
    targets.append(timing.Target(what, ratio, 0.9, at_least=True))
  timing.finish(where, rows, targets)


def in_a_process(method: str) -> dict[str, int]:
  """What `measured` says in a fresh process."""
  command = [sys.executable, '-m', 'experiments.bench.memory', '--one']
  command += [f'--methods={method}', f'--workers={_WORKERS.value}']
  done = subprocess.run(
    [*command, f'--side={_SIDE.value}'], stdout=subprocess.PIPE, check=True
  )
  return json.loads(done.stdout)


def measured(name: str, workers: int) -> dict[str, int]:
  """The peak of this process, above what it holds before, and the sum.

  Args:
    name: of the method.
    workers: N.

  Returns:
    {'peak': bytes, 'sum': bytes}.
  """
  params = np.zeros((_SIDE.value, _SIDE.value), np.float32)
  train(name, params, 2)
  gc.collect()
  before = held()
  train(name, params, workers)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  unit = 1 if sys.platform == 'darwin' else 1024
  found = facts.resident(methods.METHODS[name], params, workers)
  return {'peak': peak * unit - before, 'sum': found.total}


def train(name: str, params, workers: int):
  """Four gradients per worker."""
  made = assembly.assembled(methods.METHODS[name], {}, workers)
  inputs = np.ones((BATCH, len(params)), np.float32)
  job = ga_jax.Job(
    loss_fn,
    params,
    lambda _: inputs,
    made.rule_fn,
    made.policy,
    program=made.program_fn,
    hparams=jax.tree.map(np.float32, made.hparams),
  )
  result = ga_jax.simulate(
    job,
    clocks.homogeneous(0),
    num_workers=workers,
    num_batches=4 * workers,
  )
  jax.block_until_ready(result.state)


def loss_fn(params, model_state, batch, key):
  """One layer that has something to learn."""
  del key
  return jnp.mean((batch @ params - 1) ** 2), model_state


def held() -> int:
  """Bytes of this process that are in memory now."""
  with open('/proc/self/statm', encoding='utf-8') as file:
    return int(file.read().split()[1]) * PAGE


if __name__ == '__main__':
  launch.launch(main, prepare)
