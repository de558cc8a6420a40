"""Whether there is room for what a run will write, before it begins."""

import os
import shutil

import ga_jax
from experiments.running import setup
from experiments.settings import table as settings_lib
from ga_jax.job import memory
from ga_jax.record import trace

_SURE = 0.8  # of the bytes: Orbax compresses, random numbers to about 0.93


def check(
  settings: settings_lib.Settings, keep: setup.Keeping, job: ga_jax.Job
):
  """Refuses a folder that what is known beforehand surely does not fit in.

  Known are parameters, checkpoints and the rows of a live run; metrics and
  arrivals come on top. What is in the folder already is replaced.

  Args:
    settings: of the run.
    keep: the folder, and what is kept there.
    job: what is trained.

  Raises:
    SettingError: says how much is needed, for what, and how much there is.
  """
  if not keep.folder:
    return
  known = needed(settings, keep, job)
  there = shutil.disk_usage(keep.folder).free + _size(keep.folder)
  if _SURE * sum(known.values()) > there:
    parts = ', '.join(f'{_mb(size)} of {name}' for name, size in known.items())
    raise settings_lib.SettingError(
      'workdir',
      keep.folder,
      f'at least {_mb(sum(known.values()))} will be written there ({parts}), '
      f'and {_mb(there)} are free',
    )


def needed(
  settings: settings_lib.Settings, keep: setup.Keeping, job: ga_jax.Job
) -> dict[str, int]:
  """The bytes that a run writes at least, by what they are; see `check`."""
  total = setup.total_batches(settings)
  kept = memory.resident(
    job.rule_fn(job.hparams),
    job.params,
    num_workers=settings.workers,
    versions=1,
    accumulates=job.accumulates,
    model_state=job.model_state,
  )
  found = {'parameters': kept.params}
  if keep.checkpoints():
    updates = total // (job.policy.round_size or settings.workers)
    number = min(keep.keep, updates // (keep.every_updates or updates + 1))
    number = max(1, number)  # a run ends with one
    found[f'{number} checkpoints'] = number * (kept.params + kept.state)
  if settings.runtime != 'simulate':
    tickets = total // job.worker_program.num_batches
    found['events'] = 2 * tickets * trace.ROW_DTYPE.itemsize
  return found


def _size(folder: str) -> int:
  """The bytes of all files in a folder."""
  return sum(
    os.lstat(os.path.join(parent, name)).st_size
    for parent, _, names in os.walk(folder)
    for name in names
  )


def _mb(size: float) -> str:
  return f'{size / 1e6:,.1f} MB'
