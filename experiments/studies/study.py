"""From a table to runs: its plans, and the processes that compute them."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Callable
from typing import NamedTuple

from experiments.catalogue import methods, parts
from experiments.records import cells as cells_lib
from experiments.running import accelerators, compilation
from experiments.screens import progress
from experiments.settings import table as settings_lib
from experiments.studies import papers, protocols

RESULTS = 'metrics.jsonl'


class Study(NamedTuple):
  """A table with everything chosen.

  Attributes:
    name: of the table.
    table: what is shown.
    plans: {clock: plan}.
    folder: where results go.
  """

  name: str
  table: papers.Table
  plans: dict[str, protocols.Plan]
  folder: str

  def path(self) -> str:
    """The file of the finished runs."""
    return os.path.join(self.folder, RESULTS)


class Cells(cells_lib.Cells):
  """Finished runs, where runs that are equal by definition are one."""

  def summary(self, settings, **how):
    return super().summary(canonical(settings), **how)


def canonical(settings: settings_lib.Settings) -> settings_lib.Settings:
  """The run that is computed in the place of one that equals it.

  With one worker nothing is stale, whatever its clock (`papers.ALONE`).
  """
  if settings.workers > 1:
    return settings
  method = papers.ALONE.get(settings.method, settings.method)
  known = parts.read_by(methods.METHODS[method])
  kept = tuple(pair for pair in settings.parameters if pair[0] in known)
  return dataclasses.replace(
    settings, method=method, parameters=kept, clock='homogeneous'
  )


def plan_of(
  table: papers.Table,
  columns: tuple[papers.Column, ...],
  seeds: int,
  make: Callable[..., settings_lib.Settings],
  clock: str,
) -> protocols.Plan:
  """The grid of a table on one clock.

  Args:
    table: what is shown.
    columns: those of its columns that are wanted.
    seeds: per cell.
    make: `make(method=..., workers=..., clock=..., parameters=...)` gives the
      settings of a cell.
    clock: a name.

  Returns:
    A `Plan`; raises a SettingError where a cell has no meaning.
  """
  settings = {
    (line.label, column.label): make(
      method=line.method,
      workers=column.workers,
      clock=clock,
      parameters=dict((*line.parameters, *column.parameters)),
    )
    for line in table.lines
    for column in columns
  }
  baselines = {
    line.label: make(
      method=table.baseline,
      workers=1,
      clock=clock,
      parameters={k: v for k, v in line.parameters if k == 'momentum'},
    )
    for line in table.lines
    if table.rates
  }
  return protocols.Plan(
    settings,
    tuple(column.label for column in columns),
    table.rates,
    baselines,
    tuple(range(seeds)),
    tuple(range(min(seeds, table.search_seeds))),
    follows=True,
    curves=table.curves,
  )


def compute(study: Study, processes: int, shown: progress.GridProgress):
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

  plan: protocols.Plan  # of one line

  def __call__(self, path: str, **told) -> str:
    (line,) = self.plan.lines()
    cells = Cells(path, any_version=True, **told)
    protocols.baseline_rate(self.plan, cells, line)
    return f'{self.plan.baselines[line].method}, one worker'


class OneLine(NamedTuple):
  """A line of a table on one clock."""

  plan: protocols.Plan

  def __call__(self, path: str, **told) -> str:
    protocols.outcomes(self.plan, Cells(path, any_version=True, **told))
    return f'{self.plan.lines()[0]}, {self.plan.example().clock} clock'


def works_of(study: Study) -> list[Baseline | OneLine]:
  """What there is to compute, equal lines once."""
  baselines, lines = {}, {}
  for plan in study.plans.values():
    for line, settings in plan.baselines.items():
      baselines.setdefault(canonical(settings), Baseline(plan.only(line)))
    for line in plan.lines():
      one = plan.only(line)
      what = tuple(canonical(s) for s in one.settings.values())
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
def devices_here() -> accelerators.Here:
  """What this machine computes with.

  Asked in a process that ends, so that this one holds no device.
  """
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    return pool.submit(accelerators.here).result()


def outcomes(study: Study) -> dict[str, list[protocols.Outcome]]:
  """The outcomes of every clock, from the finished runs."""
  cells = Cells(study.path(), any_version=True)
  return {
    clock: protocols.outcomes(plan, cells)
    for clock, plan in study.plans.items()
  }
