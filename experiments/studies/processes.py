"""Computes the runs of a study, several at a time where there are devices."""

import concurrent.futures
import functools
import math
import multiprocessing
import os
from collections.abc import Iterator
from typing import NamedTuple

from experiments.records import cells as cells_lib
from experiments.running import accelerators, compilation, mapped
from experiments.screens import progress
from experiments.settings import table as settings_lib
from experiments.studies import budget, rate_search
from experiments.studies import study as study_lib


def compute(
  study: study_lib.Study,
  processes: int,
  shown: progress.GridProgress,
  ends: float = math.inf,
) -> bool:
  """Computes what is not there yet, what is of most use first.

  Args:
    study: what.
    processes: how many at a time, each with a device of its own.
    shown: told of everything that is done.
    ends: when to stop, in seconds of `time.monotonic`.

  Returns:
    Whether it came to the end.
  """
  path = study.path()
  if processes == 1:
    until = budget.Budget(ends)
    there = _cells(path, until, study.maps_seeds, shown.running)
    try:
      for stage in stages(study):
        for work in stage:
          shown(work(there))
    except budget.TimeUp:
      return False
    return True
  context = multiprocessing.get_context('spawn')
  devices = context.Queue()
  for device in range(processes):
    devices.put(device)
  with concurrent.futures.ProcessPoolExecutor(
    processes, context, initializer=_begin, initargs=(devices, processes)
  ) as pool:
    try:
      for stage in stages(study):
        jobs = [
          pool.submit(_done, work, path, ends, study.maps_seeds)
          for work in stage
        ]
        for job in concurrent.futures.as_completed(jobs):
          shown(job.result())
    except budget.TimeUp:  # the others stop by themselves
      pool.shutdown(cancel_futures=True)
      return False
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  return True


def _cells(
  path: str,
  until: budget.Budget,
  maps: bool,
  running=lambda settings, now: None,
) -> cells_lib.Cells:
  def goes_on(settings, now):
    running(settings, now)
    until.running(settings, now)

  return study_lib.cells(
    path,
    begins=until.begins,
    running=goes_on,
    mapper=mapped.Mapper() if maps else None,
  )


def _done(work, path: str, ends: float, maps: bool) -> str:
  """Does a part of the work in a process of the pool."""
  return work(_cells_here(path, ends, maps))


@functools.cache
def _cells_here(path: str, ends: float, maps: bool) -> cells_lib.Cells:
  return _cells(path, budget.Budget(ends), maps)


class Baseline(NamedTuple):
  """The search for the rate of a single worker."""

  plan: rate_search.Plan  # of one line

  def __call__(self, cells: cells_lib.Cells) -> str:
    (line,) = self.plan.lines()
    rate_search.baseline_rate(self.plan, cells, line)
    return f'{self.plan.baselines[line].method}, one worker'


class Search(NamedTuple):
  """The search for the rate of the last column of a line."""

  plan: rate_search.Plan  # of one line, up to that column

  def __call__(self, cells: cells_lib.Cells) -> str:
    (line,) = self.plan.lines()
    rate_search.own_rates(self.plan, cells, line)
    return f'rates of {line}, {self.plan.columns[-1]}'


class Run(NamedTuple):
  """A run that is shown, or one for each of some seeds."""

  settings: settings_lib.Settings
  seeds: tuple[int, ...]
  curve: bool

  def __call__(self, cells: cells_lib.Cells) -> str:
    rate_search.over_seeds(cells, self.settings, self.seeds, curve=self.curve)
    seeds = ', '.join(map(str, self.seeds))
    return f'{self.settings.method}, N={self.settings.workers}, seed {seeds}'


Work = Baseline | Search | Run


def stages(study: study_lib.Study) -> Iterator[list[Work]]:
  """What there is to compute, in an order in which little is of much use.

  First the single worker's rates, where rates are searched; then, at these, all
  lines of one column with one seed, column after column (the first one, the
  last one, then those between), seed after seed or, where they are mapped, all
  seeds of a cell together; then each cell's own rate, and
  the runs at these in the same order. Equal work is there once.

  Args:
    study: what.

  Yields:
    Work that may be done in any order, to be done before the next is asked for.
  """
  plans = study.plans.values()
  baselines = {
    study_lib.canonical(settings): Baseline(plan.only(line))
    for plan in plans
    for line, settings in plan.baselines.items()
  }
  if baselines:
    yield list(baselines.values())
  first, *others = rate_search.protocols(next(iter(plans)))
  yield _runs(study, first)
  for name in others:
    for number in range(len(next(iter(plans)).columns)):
      searches = {}
      for plan in plans:
        upto = plan.first(number + 1)
        for line in plan.lines():
          one = upto.only(line)
          cells = tuple(map(study_lib.canonical, one.settings.values()))
          searches.setdefault(cells, Search(one))
      yield list(searches.values())
    yield _runs(study, name)


def _runs(study: study_lib.Study, protocol: str) -> list[Run]:
  """The runs that are shown under a protocol; its rates are known."""
  there = study_lib.cells(study.path(), computes=False)
  found = {
    clock: rate_search.searches(plan, there)[protocol]
    for clock, plan in study.plans.items()
  }
  plan, runs = next(iter(study.plans.values())), {}
  at_once = plan.seeds if study.maps_seeds else plan.seeds[:1]
  parts = [at_once, *((seed,) for seed in plan.seeds[len(at_once) :])]
  for seeds in parts:
    for column in coarse_to_fine(plan.columns):
      for clock, plan in study.plans.items():
        for line in plan.lines():
          search = found[clock][line, column]
          at = rate_search.at_search(plan, line, column, search)
          key = study_lib.canonical(at), seeds
          runs.setdefault(key, Run(at, seeds, plan.curves))
  return list(runs.values())


def coarse_to_fine(columns: tuple) -> list:
  """The first, the last, the middle one, those in the middle between them."""
  last = len(columns) - 1
  order, steps = [0, last], [(0, last)]
  for low, high in steps:  # which grows on the way
    middle = (low + high) // 2
    if low < middle:
      order.append(middle)
      steps += [(low, middle), (middle, high)]
  return [columns[i] for i in dict.fromkeys(order)]


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
