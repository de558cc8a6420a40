"""Computes the runs of a study, several at a time where there are devices."""

import concurrent.futures
import functools
import multiprocessing
import os
from typing import NamedTuple

from experiments.running import accelerators, compilation
from experiments.screens import progress
from experiments.studies import rate_search
from experiments.studies import study as study_lib


def compute(
  study: study_lib.Study, processes: int, shown: progress.GridProgress
):
  """Computes what is not there yet.

  Args:
    study: what.
    processes: how many at a time, each with a device of its own; the lines of a
      table are shared out.
    shown: told of every run that is done here, or of every line.
  """
  path, works = study.path(), works_of(study)
  if processes == 1:
    for work in works:
      work(path, advance=shown, running=shown.running)
    return
  context = multiprocessing.get_context('spawn')
  devices = context.Queue()
  for device in range(processes):
    devices.put(device)
  with concurrent.futures.ProcessPoolExecutor(
    processes, context, initializer=_begin, initargs=(devices, processes)
  ) as pool:
    try:
      # What all lines need comes first.
      for kind in (Baseline, OneLine):
        jobs = [pool.submit(w, path) for w in works if isinstance(w, kind)]
        for job in concurrent.futures.as_completed(jobs):
          shown(job.result())
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


class Baseline(NamedTuple):
  """The search for the rate of a single worker."""

  plan: rate_search.Plan  # of one line

  def __call__(self, path: str, **told) -> str:
    (line,) = self.plan.lines()
    cells = study_lib.cells(path, **told)
    rate_search.baseline_rate(self.plan, cells, line)
    return f'{self.plan.baselines[line].method}, one worker'


class OneLine(NamedTuple):
  """A line of a table on one clock."""

  plan: rate_search.Plan

  def __call__(self, path: str, **told) -> str:
    rate_search.outcomes(self.plan, study_lib.cells(path, **told))
    return f'{self.plan.lines()[0]}, {self.plan.example().clock} clock'


def works_of(study: study_lib.Study) -> list[Baseline | OneLine]:
  """What there is to compute, equal lines once."""
  baselines, lines = {}, {}
  for plan in study.plans.values():
    for line, settings in plan.baselines.items():
      baselines.setdefault(
        study_lib.canonical(settings), Baseline(plan.only(line))
      )
    for line in plan.lines():
      one = plan.only(line)
      what = tuple(study_lib.canonical(s) for s in one.settings.values())
      lines.setdefault(what, OneLine(one))
  return [*baselines.values(), *lines.values()]


def _begin(devices, processes: int):
  """Gives a process a device of its own, before JAX looks for them."""
  device = devices.get()
  for name in ('CUDA_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES'):
    if name not in os.environ:
      os.environ[name] = str(device)
    elif os.environ[name]:  # those that were given, by turns
      given = os.environ[name].split(',')
      os.environ[name] = given[device % len(given)]
  os.environ['TPU_VISIBLE_CHIPS'] = str(device)
  os.environ['TPU_PROCESS_BOUNDS'] = '1,1,1'
  os.environ['TPU_CHIPS_PER_PROCESS_BOUNDS'] = '1,1,1'
  cores = len(os.sched_getaffinity(0))
  os.environ.setdefault('NPROC', str(max(1, cores // processes)))
  compilation.keep()  # a smaller thread pool has programs of its own


def processes_here() -> int:
  """How many processes have a device each here: one per accelerator."""
  found = devices_here()
  return 1 if found.platform == 'cpu' else found.count


@functools.cache
def devices_here() -> accelerators.ComputesWith:
  """What this machine computes with.

  Asked in a process that ends, so that this one holds no device.
  """
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    return pool.submit(accelerators.here).result()
