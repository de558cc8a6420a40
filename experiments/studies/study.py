"""From a table to its plans, and from its finished runs to outcomes."""

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

from experiments.catalogue import methods, parts
from experiments.records import cells as cells_lib
from experiments.records import record
from experiments.settings import table as settings_lib
from experiments.studies import design, papers, rate_search


class Study(NamedTuple):
  """A table with everything chosen.

  Attributes:
    name: of the table.
    table: what is shown.
    plans: {clock: plan}.
    folder: where results go.
    scale: how much of the table's recipe its runs do.
    maps_seeds: whether the seeds of a cell are computed together.
  """

  name: str
  table: design.Table
  plans: dict[str, rate_search.Plan]
  folder: str
  scale: str = 'full'
  maps_seeds: bool = False

  def path(self) -> str:
    """The file of the finished runs."""
    return os.path.join(self.folder, record.METRICS)


def cells(path: str, **told) -> cells_lib.Cells:
  """The finished runs of a study; those that are equal by definition are one.

  Args:
    path: of the file.
    **told: who is told of them, see `cells.Cells`.

  Returns:
    The runs; each may be of any version.
  """
  return cells_lib.Cells(
    path, any_version=True, computed_as_fn=canonical, **told
  )


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
  table: design.Table,
  columns: tuple[design.Column, ...],
  seeds: int,
  make: Callable[..., settings_lib.Settings],
  clock: str,
) -> rate_search.Plan:
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
  return rate_search.Plan(
    settings,
    tuple(column.label for column in columns),
    table.rates,
    baselines,
    tuple(range(seeds)),
    tuple(range(min(seeds, table.search_seeds))),
    tuple(range(min(seeds, table.baseline_seeds or seeds))),
    follows=True,
    curves=table.curves,
  )


def outcomes(study: Study) -> dict[str, list[rate_search.Outcome]]:
  """The outcomes of every clock, from the runs that are finished."""
  there = cells(study.path(), computes=False)
  return {
    clock: rate_search.outcomes(plan, there)
    for clock, plan in study.plans.items()
  }
