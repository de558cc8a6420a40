"""Digests of what a run saved: what was changed afterwards is named.

digests.json is written last. Checkpoints and the rows of a live run are not in
it: a run goes on with them, and they are checked there.
"""

import os
from typing import NamedTuple

from experiments.records import began, record
from experiments.running import setup
from ga_jax.record import files as files_lib

FILE = 'digests.json'
PARAMS = 'params'
SAVED = (  # by a run that has ended
  'config.json',
  'versions.json',
  'environment.json',
  began.FILE,
  record.METRICS,
  'trace.npz',
  'arrivals.npz',
  PARAMS,
  'summary.json',
  setup.EVENTS,
)
_NOT_SAVED = (FILE, setup.CHECKPOINTS, setup.ROWS)


class Compared(NamedTuple):
  """A folder beside its digests.

  Attributes:
    same: how many files are as they were saved.
    wrong: what is not, in words: a line for each file or folder of `SAVED`.
    others: files and folders that the run did not write.
  """

  same: int
  wrong: list[str]
  others: list[str]


def write(workdir: str):
  """Writes digests.json, of everything that a run has saved.

  Args:
    workdir: of the run.
  """
  found = {
    name: files_lib.sha256(os.path.join(workdir, name))
    for name in _files(workdir)
  }
  files_lib.write_json(os.path.join(workdir, FILE), {'sha256': found})


def compare(workdir: str, names: tuple[str, ...] = SAVED) -> Compared | None:
  """Compares a folder with its digests.

  Args:
    workdir: of the run.
    names: what is compared, files and folders of `SAVED`.

  Returns:
    A `Compared`; None where there are no digests, as of a run that goes on yet
    or of an older version.

  Raises:
    SettingError: digests.json is damaged.
  """
  if not os.path.exists(os.path.join(workdir, FILE)):
    ended = (began.FILE, 'summary.json')  # by this version
    if not all(os.path.exists(os.path.join(workdir, name)) for name in ended):
      return None
    why = 'was it removed, or the run killed as it ended?'
    return Compared(0, [f'{FILE} is missing: {why}'], [])
  found = _compared(workdir, _read(workdir), names)
  others = [
    name + '/' * os.path.isdir(os.path.join(workdir, name))
    for name in os.listdir(workdir)
    if name not in (*SAVED, *_NOT_SAVED) and not name.startswith('.')
  ]
  return Compared(
    sum(what == '' for files in found.values() for _, what in files),
    [text for top, files in found.items() if (text := _said(top, files))],
    sorted(others),
  )


def _compared(
  workdir: str, saved: dict[str, str], names: tuple[str, ...]
) -> dict[str, list[tuple[str, str]]]:
  """By file or folder of `SAVED`, its files and what is wrong with each."""
  there, found = set(_files(workdir)), {}
  for name in sorted(there.union(saved)):
    if name not in there:
      what = 'is missing'
    elif name not in saved:
      what = 'was added after the run'
    elif files_lib.sha256(os.path.join(workdir, name)) != saved[name]:
      what = 'was changed after the run'
    else:
      what = ''
    found.setdefault(name.split('/')[0], []).append((name, what))
  return {top: files for top, files in found.items() if top in names}


def _said(top: str, files: list[tuple[str, str]]) -> str:
  """A line on a file, or on those of a folder; '' where they are as saved."""
  wrong = [(name, what) for name, what in files if what]
  if not wrong:
    return ''
  (name, what), *more = wrong
  if name == top:
    return f'{name} {what}'
  others = f', and {len(more)} files more are others' if more else ''
  return f'{top}/ is not what the run saved: {name} {what}{others}'


def _read(workdir: str) -> dict[str, str]:
  """The digests by file; raises a SettingError where they are damaged."""
  return record.load_json(workdir, FILE)['sha256']


def _files(workdir: str) -> list[str]:
  """What a run has saved, as paths in its folder."""
  found = []
  for name in SAVED:
    path = os.path.join(workdir, name)
    if os.path.isfile(path):
      found.append(name)
    for parent, _, files in os.walk(path):
      inside = os.path.relpath(parent, workdir).replace(os.sep, '/')
      found += sorted(f'{inside}/{file}' for file in files)
  return found
