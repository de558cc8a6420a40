"""Several runs of one configuration in one program, where that pays.

Runs that differ in seed and learning rate alone are computed together, see
`ga_jax.simulate_many`. Whether that is sooner than one after the other a probe
of some steps tells: on an accelerator small models leave it idle, but mapped
convolutions become grouped ones, which may be slower than what they replace.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence

import jax

import ga_jax
from experiments import tasks
from experiments.running import compilation, setup, simulated, summaries
from experiments.settings import table as settings_lib
from ga_jax.executors import lengths

_PART = 0.5  # of the free memory that may be kept; a gradient needs some too
_ROUNDS = 3  # of a probe; the first one compiles


class Mapper:
  """Computes runs together, and remembers for which models that pays."""

  def __init__(self, say: Callable[[str], None] | None = None):
    """Has tried nothing yet.

    Args:
      say: told what was chosen and why; by default a note on stderr.
    """
    self._say = say or _note
    self._pays, self._told = {}, set()

  def __call__(
    self,
    settings: Sequence[settings_lib.Settings],
    observe: Callable[[int], None] = lambda batches: None,
  ) -> list[setup.Run | None]:
    """Computes runs that differ in their seeds and learning rates alone.

    Args:
      settings: checked ones, of simulated runs.
      observe: told how many batches of each run are applied; may raise.

    Returns:
      What `train.train` gives for each, to rounding; None where it is to be
      computed alone: it diverged, and would have been stopped there, or
      nothing is computed together.
    """
    if why := _against(settings):
      if why not in self._told:
        self._told.add(why)
        self._say(f'{_name(settings)} are computed one by one: {why}')
      return [None] * len(settings)
    if not self._pay(settings):
      return [None] * len(settings)
    return _together(settings, observe)

  def _pay(self, settings) -> bool:
    """Whether so many runs of a model are computed sooner together."""
    s = settings[0]
    kind = (
      *(s.dataset, s.data_path, s.augment, s.batch_size, s.model),
      *(tuple(s.model_options().items()), len(settings)),
    )
    if kind not in self._pays:
      alone, mapped = probe(settings)
      self._pays[kind] = mapped < alone
      how = (
        'mapped into one program' if mapped < alone else 'computed one by one'
      )
      self._say(
        f'{_name(settings)} are {how}: a probe took {mapped / alone:.2f} times '
        'as long mapped as one by one'
      )
    return self._pays[kind]


def probe(
  settings: Sequence[settings_lib.Settings],
) -> tuple[float, float]:
  """Seconds that some steps of all runs take, one by one and together."""
  jobs, clocks, _ = _parts(settings)
  length = lengths.block_length(lengths.unrolled_convolutions(jobs[0]), None)
  per_ticket = jobs[0].worker_program.num_batches
  sizes = {
    'num_workers': settings[0].workers,
    'num_batches': 2 * length * per_ticket,
  }

  def alone():
    for job, clock in zip(jobs, clocks, strict=True):
      ga_jax.simulate(job, clock, **sizes)

  def mapped():
    ga_jax.simulate_many(jobs, clocks, **sizes)

  return _seconds(alone), _seconds(mapped)


def _seconds(run) -> float:
  """The least time that a call takes once it is compiled."""
  found = []
  for _ in range(_ROUNDS):
    began = time.perf_counter()
    run()
    found.append(time.perf_counter() - began)
  return min(found[1:])


def _against(settings) -> str:
  """Why runs cannot be computed together; '' for nothing."""
  s = settings[0]
  method = setup.method_of(s)
  if s.runtime != 'simulate' or s.executor != 'fast' or s.simulate_devices:
    return 'it takes --runtime=simulate, --executor=fast, one device'
  if method.policy.needs_loss:
    return f'{s.method} decides by losses'
  job = setup.job_of(s, method)
  if setup.total_batches(s) % job.worker_program.num_batches:
    return 'the batches are no multiple of those per ticket'
  kept = (
    len(settings)
    * ga_jax.resident(
      job.rule_fn(job.hparams),
      job.params,
      num_workers=s.workers,
      accumulates=job.accumulates,
      model_state=job.model_state,
      program=job.worker_program,
    ).total
  )
  free = free_bytes()
  if free is not None and kept > _PART * free:
    return (
      f'they would keep {kept / 1e6:,.1f} MB, more than half of the '
      f'{free / 1e6:,.1f} MB that are free'
    )
  return ''


def free_bytes() -> int | None:
  """The memory that is free where runs are computed; None if not known."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    found = device.memory_stats() or {}
    limit = found.get('bytes_limit')
    return limit and limit - found.get('bytes_in_use', 0)
  if not os.path.exists('/proc/meminfo'):
    return None
  with open('/proc/meminfo', encoding='utf-8') as file:
    rows = dict(line.split(':', 1) for line in file)
  return 1024 * int(rows['MemAvailable'].split()[0])


def _parts(settings):
  """Jobs, clocks and message sizes of runs."""
  jobs, clocks, sizes = [], [], []
  for s in settings:
    method = setup.method_of(s)
    job = setup.job_of(s, method)
    messages = setup.message_bytes(
      tasks.task_of(s), method, job.params, job.model_state
    )
    jobs.append(job)
    clocks.append(setup.clock_of(s, messages))
    sizes.append(messages)
  return jobs, clocks, sizes


def _together(settings, observe) -> list[setup.Run | None]:
  started, compiled = time.perf_counter(), compilation.so_far()
  jobs, clocks, sizes = _parts(settings)
  total = setup.total_batches(settings[0])
  results = ga_jax.simulate_many(
    jobs,
    clocks,
    num_workers=settings[0].workers,
    num_batches=total,
    observe=observe,
  )
  seconds = (time.perf_counter() - started) / len(settings)
  found = []
  for s, result, clock, messages in zip(
    settings, results, clocks, sizes, strict=True
  ):
    summary = summaries.of(s, tasks.task_of(s), result, messages)
    if summary['diverged']:
      found.append(None)
      continue
    summary |= simulated.own(result, clock, total)
    summary |= {
      'wall_seconds': seconds,  # its share
      'compilation': compilation.so_far().since(compiled)._asdict(),
      'updates_per_second': summary['updates'] / seconds,
      'mapped_runs': len(settings),
    }
    found.append(setup.Run(summary, result))
  return found


def _name(settings) -> str:
  s = settings[0]
  return (
    f'{len(settings)} runs of {s.model}, {s.workers} '
    f'worker{"s" if s.workers > 1 else ""}'
  )


def _note(text: str):
  print(f'note: {text}', file=sys.stderr, flush=True)
