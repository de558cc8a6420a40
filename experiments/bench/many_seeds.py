"""Many seeds of one configuration: what computes them soonest.

  python -m experiments.bench.many_seeds

Gap-Aware with 8 simulated workers, batch 128, 8 seeds, on the CPU an MLP and a
small CNN with BatchNorm, on an accelerator ResNet-20: one run after another;
all in one program, mapped over the runs (`simulate_many`); a thread per run;
and in processes that share the device, as `experiments.reproduce --processes`
has them. Compiling and starting processes is left out. The images are random,
which changes nothing about the time.
"""

import concurrent.futures
import functools
import multiprocessing
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

import ga_jax
from experiments.bench import random_images, timing
from experiments.script import launch
from experiments.settings import table as settings_lib
from experiments.tasks import classification
from ga_jax import clocks, models, policies, rules

_MODEL = flags.DEFINE_list(
  'model', [], 'of the runs (none: by device); ' + '|'.join(models.MODELS)
)
_SEEDS = flags.DEFINE_integer('seeds', 8, 'runs')
_BATCH = flags.DEFINE_integer('batch_size', 128, 'examples per gradient')
_WORKERS = flags.DEFINE_integer('workers', 8, 'simulated, of each run')
_UPDATES = flags.DEFINE_integer(
  'updates', 0, 'per run (0: 16 on the CPU, 192 on an accelerator)'
)
_BLOCK = flags.DEFINE_integer(
  'block',
  0,
  'arrivals per compiled block (0: 2 on the CPU, where convolutions compile '
  'for long, else 32)',
)
_PROCESSES = flags.DEFINE_integer(
  'processes', 2, 'at a time; they share the device (0: not measured)'
)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'measurements of each')

IMAGES, SHAPE, CLASSES = 4096, (32, 32, 3), 10
RULE = rules.gap_aware(0.01)
ALONE, MAPPED = 'one after another', 'mapped, one program'
THREADS = 'a thread per run'

LIMITS = """
On the CPU one process per core wins, at 0.6 to 0.7 of the time of one run after
another on two cores. There is little more to win, for a run keeps the cores
busy wherever XLA shares out its products. Mapped over runs an MLP takes the
processor time of the runs alone, the small CNN more than twice that, because a
convolution whose weights differ between the runs becomes a grouped one; it
compiles for longer too. Threads of one process need no second compilation, but
share its interpreter.
"""


class Sizes(NamedTuple):
  """Of every run."""

  batch_size: int
  workers: int
  updates: int
  block: int

  def of_run(self) -> dict[str, int]:
    """What `simulate` takes beside job and clock."""
    return {
      'num_workers': self.workers,
      'num_batches': self.updates,
      'block': self.block,
    }


def prepare():
  """Checks what was asked for before anything is timed."""
  for name in _MODEL.value:
    if name not in models.MODELS or models.MODELS[name](10).reads == 'tokens':
      raise settings_lib.SettingError('model', name, 'must be one for images')
  low = {'seeds': 2, 'batch_size': 1, 'workers': 1, 'updates': 0}
  for name, least in {**low, 'block': 0, 'processes': 0, 'rounds': 1}.items():
    value = flags.FLAGS[name].value
    if value < least:
      raise settings_lib.SettingError(name, value, f'must be at least {least}')


def main(_):
  where, rows, targets = timing.machine(), [], []
  on_cpu = jax.default_backend() == 'cpu'
  names = _MODEL.value or (['mlp_bn', 'cnn_bn'] if on_cpu else ['resnet20'])
  updates = _UPDATES.value or (16 if on_cpu else 192)
  block = _BLOCK.value or (2 if on_cpu else 32)
  sizes = Sizes(_BATCH.value, _WORKERS.value, updates, block)
  timing.say(
    f'{_SEEDS.value} seeds, {updates} updates of {_BATCH.value} examples each'
  )
  for name in names:
    walls = measured(name, sizes, range(_SEEDS.value))
    timing.say(f'{name:20} seconds for all            times one after another')
    for how, taken in walls.items():
      ratio = timing.ratios(taken, walls[ALONE])
      timing.say(f'  {how:18} {timing.figure(taken)!s:26} {ratio}')
      rows.append({'model': name, 'name': how, 'seconds': taken})
    if not on_cpu:
      what = f'{_SEEDS.value} seeds of {name}, the best over one after another'
      others = [taken for how, taken in walls.items() if how != ALONE]
      best = min(others, key=lambda taken: timing.figure(taken).median)
      ratio = timing.ratios(best, walls[ALONE])
      targets.append(timing.Target(what, ratio, 0.5))
  timing.finish(where, rows, targets)


def measured(name: str, sizes: Sizes, seeds) -> dict[str, list[float]]:
  """Seconds that all runs of a model take, by how they are computed."""
  jobs = [job_of(name, sizes.batch_size, seed) for seed in seeds]
  candidates = {
    ALONE: lambda: [alone(job, sizes) for job in jobs],
    MAPPED: lambda: mapped(jobs, sizes),
    THREADS: lambda: in_threads(jobs, sizes),
  }
  for candidate in candidates.values():
    candidate()  # compiles
  if not _PROCESSES.value:
    return timed(candidates)
  context = multiprocessing.get_context('spawn')
  everybody = context.Barrier(_PROCESSES.value)
  with concurrent.futures.ProcessPoolExecutor(
    _PROCESSES.value, context, begin, (everybody, _PROCESSES.value)
  ) as pool:
    in_processes(pool, compiled, [(name, sizes)] * _PROCESSES.value)
    work = [(name, sizes, seed) for seed in seeds]
    how = f'{_PROCESSES.value} processes'
    return timed(
      {**candidates, how: lambda: in_processes(pool, in_process, work)}
    )


def timed(candidates) -> dict[str, list[float]]:
  calls = {
    name: functools.partial(timing.seconds, run)
    for name, run in candidates.items()
  }
  return timing.alternate(calls, _ROUNDS.value)


def alone(job: ga_jax.Job, sizes: Sizes):
  """Computes a run; it is done when its metrics are on the host."""
  ga_jax.simulate(job, clocks.homogeneous(job.seed), **sizes.of_run())


def mapped(jobs, sizes: Sizes):
  """Computes all runs in one program."""
  theirs = [clocks.homogeneous(job.seed) for job in jobs]
  ga_jax.simulate_many(jobs, theirs, **sizes.of_run())


def in_threads(jobs, sizes: Sizes):
  with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
    list(pool.map(lambda job: alone(job, sizes), jobs))


_EVERYBODY: list[Any] = []  # in a process: the barrier of all of them


def begin(everybody, processes: int):
  """In a new process, before JAX looks for devices: shares one out."""
  _EVERYBODY.append(everybody)
  part = f'{0.6 / processes:.2f}'
  os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', part)
  cores = len(os.sched_getaffinity(0))
  os.environ.setdefault('NPROC', str(max(1, cores // processes)))


def in_processes(pool, function, work):
  """Calls a function in the processes of a pool, and waits."""
  for future in [pool.submit(function, *one) for one in work]:
    future.result()


def compiled(name: str, sizes: Sizes):
  """Compiles what runs need; each process does so once."""
  in_process(name, sizes, 0)
  _EVERYBODY[0].wait()


def in_process(name: str, sizes: Sizes, seed: int):
  alone(job_of(name, sizes.batch_size, seed), sizes)


@functools.cache
def job_of(name: str, batch_size: int, seed: int) -> ga_jax.Job:
  """What a run of a seed trains."""
  model = models.MODELS[name](10)
  params, stats = model.init(jax.random.key(seed), jnp.zeros((1, *SHAPE)))
  return ga_jax.Job(
    loss_of(name),
    params,
    random_images.source(IMAGES, SHAPE, CLASSES, batch_size, seed),
    RULE,
    policies.asynchronous(),
    model_state=stats,
    stats_momentum=model.stats_momentum,
    seed=seed,
  )


@functools.cache
def loss_of(name: str):
  """One function per model: what is compiled is shared."""
  return classification.cross_entropy(models.MODELS[name](CLASSES))


if __name__ == '__main__':
  launch.launch(main, prepare)
