"""What stands in a run's folder, for the next run that is to write there.

A run that has not ended leaves something to go on with; a new run removes what
an earlier one left, but never what it was not told to.
"""

import contextlib
import glob
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from experiments.records import began, digests, folders, record
from experiments.records import rows as rows_lib
from experiments.running import setup
from experiments.settings import table as settings_lib
from ga_jax.guards import locks

# What a run writes when it ends, and while it goes on.
FINISHED = ('summary.json', digests.FILE, 'trace.npz', 'arrivals.npz')
FINISHED += (digests.PARAMS, 'replay-*')
GOING_ON = (record.METRICS, setup.EVENTS, setup.ROWS, setup.CHECKPOINTS)


def goes_on(workdir: str) -> bool:
  """Whether there is anything that a run can go on with."""
  return any(
    os.path.exists(os.path.join(workdir, name))
    for name in (setup.CHECKPOINTS, setup.ROWS)
  )


def is_finished(workdir: str) -> bool:
  """Whether a run has ended there of itself, and all of it is written."""
  for name in ('summary.json', digests.FILE):  # the last ones
    if not os.path.exists(os.path.join(workdir, name)):
      return False
  return not record.load_json(workdir, 'summary.json').get('stopped')


def take(workdir: str, method: str, *, overwrite: bool) -> str:
  """Takes the folder of a new run; touches nothing in it.

  Args:
    workdir: that was asked for; '' for a new one in runs/.
    method: that a new one is named after.
    overwrite: whether an earlier run may be replaced.

  Returns:
    The folder.

  Raises:
    SettingError: there is a grid, or an earlier run, or nothing can be written.
  """
  if not workdir:
    now = time.strftime('%Y%m%d-%H%M%S')
    return folders.new(os.path.join('runs', f'{method}-{now}'))
  if not locks.is_owned(workdir):  # before anything is made there
    _refuse_what_is_kept(workdir, overwrite)
  folders.own('workdir', workdir)
  _refuse_what_is_kept(workdir, overwrite)  # it may have come meanwhile
  return workdir


def begin(settings: settings_lib.Settings, keep: setup.Keeping):
  """Clears the folder of a run, and writes down what the run begins with.

  Args:
    settings: of the run.
    keep: its folder, and what it begins with; a run that goes on keeps what it
      needs for it.
  """
  if keep.resume:
    _clear(keep.folder, FINISHED)
  else:
    _clear(keep.folder, (*FINISHED, *GOING_ON))
    record.save_config(keep.folder, settings)
    every = setup.batches_per_row(settings)
    began.save(keep.folder, keep.about, every)
  for name in (*record.BEGINNING, began.FILE):
    folders.keep(os.path.join(keep.folder, name))


def end(done: setup.Run, keep: setup.Keeping):
  """Writes what came out of a run, and its digests.

  Args:
    done: the run.
    keep: its folder.
  """
  folders.check()
  record.save(keep.folder, done)
  folders.check()
  if not (done.summary['stopped'] or keep.checkpoints()):
    _clear(keep.folder, (setup.ROWS,))  # it is in trace.npz now
  digests.write(keep.folder)


@contextlib.contextmanager
def rows_written(
  workdir: str, *, resume: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
  """Writes metrics.jsonl while a run goes on; yields `write(row)`.

  Args:
    workdir: of the run.
    resume: whether the run goes on: rows of before that are made again go.
  """
  path, log = os.path.join(workdir, record.METRICS), None
  with contextlib.ExitStack() as stack:

    def write(row):
      nonlocal log
      if log is None:
        kept, damaged = rows_lib.read(path) if resume else ([], [])
        if damaged:
          print(f'note: {rows_lib.said(path, damaged)}', file=sys.stderr)
        kept = [one for one in kept if one['batches'] < row['batches']]
        log = rows_lib.Rows(path, kept)
        stack.callback(log.close)
        folders.keep(path)
      log.write(row)

    yield write


def _refuse_what_is_kept(workdir: str, overwrite: bool):
  """Raises a SettingError where a new run would remove what is there."""

  def refuse(why):
    raise settings_lib.SettingError('workdir', workdir, why)

  def there(name):
    return os.path.exists(os.path.join(workdir, name))

  if there(record.METRICS) and not there('config.json'):
    refuse(
      'holds what experiments.compare, survey or reproduce computed: name '
      'another folder'
    )
  if overwrite:
    return
  if there('summary.json'):
    refuse('holds a run already; add --overwrite to replace it')
  if goes_on(workdir):
    refuse(
      'holds a run that has not ended: --resume goes on with it, --overwrite '
      'replaces it'
    )


def _clear(workdir: str, names: tuple[str, ...]):
  """Removes what an earlier run left; what it finished last goes first."""
  for name in names:
    for path in glob.glob(os.path.join(glob.escape(workdir), name)):
      if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
      else:
        with contextlib.suppress(FileNotFoundError):
          os.unlink(path)
