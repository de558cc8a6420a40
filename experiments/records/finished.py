"""Reads what runs left: folders of one run, and folders of many.

`load` reads a folder of `experiments.train` (one run, with its trace), and
folders of `experiments.compare`, `survey` and `reproduce` (a run per line, with
no trace). What is missing there is None here; nothing is computed.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import ga_jax
from experiments.records import (
  began,
  contents,
  digests,
  folders,
  reached,
  record,
)
from experiments.records import cells as cells_lib
from experiments.records import rows as rows_lib
from experiments.settings import table as settings_lib
from ga_jax.guards import forms


class SavedRun(NamedTuple):
  """One run, as far as it was written down.

  Attributes:
    folder: that it was read from.
    name: of the folder, or of the cell.
    settings: of the run; where they were not recorded, what its summary says.
    summary: what came out; None for a run that has not ended.
    rows: of metrics.jsonl, one per epoch; [] where none were kept.
    trace: everything that happened, or None.
    arrivals: {metric: values by arrival that entered a round}, or None.
    versions: of everything the numbers depend on, or None.
    environment: what the bits depend on, or None.
    known: whether the settings were recorded.
    notes: what could not be read, and why.
  """

  folder: str
  name: str
  settings: settings_lib.Settings
  summary: dict[str, Any] | None = None
  rows: list[dict[str, Any]] = []  # noqa: RUF012
  trace: ga_jax.Trace | None = None
  arrivals: dict[str, np.ndarray] | None = None
  versions: dict[str, str] | None = None
  environment: dict[str, Any] | None = None
  known: bool = True
  notes: tuple[str, ...] = ()

  @property
  def diverged(self) -> bool:
    """Whether a loss, a parameter or the metric was not finite."""
    return bool(self.summary and self.summary['diverged'])


def load(folder: str) -> list[SavedRun]:
  """Reads the runs of a folder.

  Args:
    folder: --workdir of a script, or --folder of `experiments.reproduce`.

  Returns:
    One run, or one per finished cell of a grid.

  Raises:
    SettingError: there is no such folder, it holds no runs, or settings of
      another version.
  """
  if not os.path.isdir(folder):
    raise settings_lib.SettingError('workdir', folder, 'no such folder')
  if os.path.exists(os.path.join(folder, 'config.json')):
    return [_trained(folder)]
  found = _cells(folder) or _results(folder)
  if not found:
    raise settings_lib.SettingError(
      'workdir',
      folder,
      'holds no runs: must be a folder that experiments.train, compare, survey '
      'or reproduce wrote',
    )
  return found


def _trained(folder: str) -> SavedRun:
  folders.regular('workdir', folder)
  notes = list(_changed(folder))

  def part(name, read):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
      notes.append(f'no {name}')
      return None
    try:
      return read(path)
    except (OSError, ValueError) as error:  # a TraceError too
      notes.append(f'{name} cannot be read: {error}')
      return None

  def rows(path):
    found, damaged = rows_lib.read(path)
    if damaged:
      notes.append(rows_lib.said(record.METRICS, damaged))
    return found

  settings = record.load_settings(folder)
  return SavedRun(
    folder,
    os.path.basename(os.path.abspath(folder)),
    settings,
    part('summary.json', record.read_json),
    part(record.METRICS, rows) or [],
    part('trace.npz', _trace),
    part('arrivals.npz', record.arrivals_of),
    part('versions.json', record.read_json),
    part('environment.json', record.read_json),
    notes=tuple(notes),
  )


def _changed(folder: str) -> list[str]:
  """What its files say of each other, in words."""
  try:
    compared = digests.compare(folder)
    if compared:
      return [*compared.wrong, *reached.lost(folder)]
    settings = record.load_settings(folder)
    began.check_settings(began.saved(folder), settings)
    return [*began.changed_files(folder), *reached.lost(folder)]
  except settings_lib.SettingError as error:
    return [str(error)]


def _trace(path: str) -> ga_jax.Trace:
  """A trace that is right in itself, though it may end before its run."""
  trace = ga_jax.Trace.load(path)
  trace.verify(complete=False)
  return trace


def _cells(folder: str) -> list[SavedRun]:
  """The runs of a grid's metrics.jsonl."""
  versions = _if_there(folder, 'versions.json')
  rows = cells_lib.read(os.path.join(folder, record.METRICS))
  return [
    SavedRun(
      folder,
      name,
      _settings(folder, row),
      row,
      row.get('curve', []),
      versions=versions or _versions(row),
      known='settings' in row,
    )
    for name, row in rows.items()
    if 'diverged' in row
  ]


def _results(folder: str) -> list[SavedRun]:
  """The runs of a results.json, where an older version kept no more."""
  versions = _if_there(folder, 'versions.json')
  found = {}
  for path, summary in _summaries(_if_there(folder, 'results.json'), ()):
    try:
      contents.SUMMARY(summary, 'a summary')
    except forms.FormError as error:
      raise settings_lib.SettingError(
        'workdir', folder, f'results.json is damaged: {error}'
      ) from error
    clock = next((p for p in path if p in settings_lib.CLOCKS), None)
    row = {'clock': clock, **summary} if clock else summary
    settings = _settings(folder, row)
    name = cells_lib.cell_name(settings, any_version=True)
    found[name] = SavedRun(  # protocols may share a run
      folder,
      name,
      settings,
      row,
      row.get('curve', []),
      versions=versions or _versions(row),
      known='settings' in row,
    )
  return list(found.values())


def _summaries(tree, path) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
  """Every summary in nested results, with the keys that lead to it."""
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from _summaries(value, (*path, key))
  elif isinstance(tree, list):
    for summary in tree:
      if isinstance(summary, dict) and 'diverged' in summary:
        yield path, summary


def _settings(folder: str, row) -> settings_lib.Settings:
  """The settings of a cell: all that are recorded, defaults for the rest."""
  named = ('method', 'workers', 'learning_rate', 'seed', 'clock')
  given = {name: row[name] for name in named if name in row}
  given |= row.get('settings', {})
  if given.get('bandwidth', 0) is None:
    del given['bandwidth']  # JSON knows no infinity; it is the default
  return record.settings_of(folder, given)


def _versions(row) -> dict[str, str] | None:
  return {k: row[k] for k in ('jax', 'device') if k in row} or None


def _if_there(folder: str, name: str):
  try:
    return record.read_json(os.path.join(folder, name))
  except (OSError, ValueError):
    return None
