"""What comes out when a run is computed again, said on standard output."""

import contextlib
import functools
import os
import shutil

import jax
import numpy as np

from experiments import tasks
from experiments.records import record
from experiments.replaying import computing, rounding, what_if
from experiments.running import summaries, watch
from experiments.settings import table as settings_lib
from ga_jax.policies.parts.base import Action
from ga_jax.record import files
from ga_jax.record import params as params_lib
from ga_jax.server import update as update_lib

_SHOWN = 5  # leaves that differ
_LAST = 10  # arrivals in the summary of `stop_early`


def compare(replay: computing.Replay, *, quiet: bool) -> bool:
  """Computes a run again and says what came out.

  Args:
    replay: the run.
    quiet: whether the terminal shows no progress.

  Returns:
    Whether the bits are those that they had to be; of an executor that did not
    make the run, whether they are as near as rounding.
  """
  workdir, settings, trace, executor = replay
  computed = functools.partial(
    computing.computed,
    settings,
    trace,
    executor,
    computing.batches_of(workdir, trace),
    quiet=quiet,
  )
  state, _ = computed()
  saved = record.load_params(workdir, settings)
  now = state.params, state.model_state
  found = rounding.differing(saved, now)
  updates = f'after {int(state.version):,} updates'
  if not found:
    parameters, statistics = map(_size, saved)
    more = f' and {statistics:,} statistics' if statistics else ''
    print(f'same bits: {parameters:,} parameters{more} {updates}')
    return True
  apart = rounding.over_kinds(rounding.distance, saved, now)
  told = f'apart by {rounding.told(apart)} of their norm {updates}'
  made_by = computing.made_by(settings)
  if made_by == executor:
    print(f'OTHER bits: {told}')
    _name(found)
    return False
  print(
    f'the run has the bits of the {made_by} executor, which the {executor} '
    f'one does not give: {told}'
  )
  moved, _ = computed(rounding.nudged)
  moved = moved.params, moved.model_state
  allowed = rounding.over_kinds(rounding.allowed, now, moved)
  within = all(apart[name] <= allowed[name] for name in apart)  # NaN is not
  verdict = 'rounding explains it' if within else 'OTHER values'
  print(f'{verdict}: up to {rounding.told(allowed)} of their norm are rounding')
  return within


def imagine(
  replay: computing.Replay, other: settings_lib.Settings, *, quiet: bool
):
  """Computes a trace with other settings and prints both test errors.

  Args:
    replay: the run.
    other: see `what_if.settings_with`.
    quiet: whether the terminal shows no progress.
  """
  workdir, settings, trace, executor = replay
  state, _ = computing.computed(
    other, trace, executor, trace.num_batches, quiet=quiet
  )
  saved = update_lib.Snapshot(*record.load_params(workdir, settings))
  print(f'as it was, {settings.method}: {_error(settings, saved)}')
  changed = what_if.changes(settings, other)
  print(f'what if {changed}: {_error(other, state)}')


def stop_early(
  replay: computing.Replay, update: int, folder: str, *, quiet: bool
):
  """Computes a trace up to an update, event by event, and saves the state.

  Args:
    replay: the run.
    update: the last one.
    folder: to save to.
    quiet: whether the terminal shows no progress.
  """
  trace, settings = replay.trace, replay.settings
  last = np.flatnonzero(trace.events['action'] == Action.APPLY)[update - 1]
  cut = trace._replace(events=trace.events[: last + 1])
  state, seen = computing.computed(
    settings, cut, 'exact', trace.num_batches, quiet=quiet
  )
  summary = _save_state(folder, settings, cut, state, seen)
  print(
    f'update {update}, {summary["batches"]} batches: '
    f'{_error(settings, state)}; written to {folder}'
  )


def _save_state(folder, settings, cut, state, seen):
  """Writes parameters, arrivals and summary; returns the summary."""
  for name in ('summary.json', 'arrivals.npz'):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(os.path.join(folder, name))
  shutil.rmtree(os.path.join(folder, 'params'), ignore_errors=True)
  params_lib.save_params(
    os.path.join(folder, 'params'), state.params, state.model_state
  )
  record.save_arrivals(folder, seen, state.params)
  arrivals = cut.applied()
  summary = {
    'update': int(state.version),
    'batches': int(arrivals['num_batches'].sum()),
    'time': float(cut.events['time'][-1]),
    'last_arrivals': [
      {
        'worker_id': int(arrivals['worker_id'][i]),
        **{name: seen[name][i] for name in ('loss', 'gap', 'staleness')},
      }
      for i in range(len(arrivals))[-_LAST:]
    ],
  }
  if summaries.finite(state):
    summary |= watch.evaluate(tasks.task_of(settings), state)
  files.write_json(os.path.join(folder, 'summary.json'), summary)
  return summary


def _name(found: list[rounding.DifferentArray]):
  """Prints the leaves that differ most."""
  found.sort(key=lambda leaf: -leaf.differing)
  for leaf in found[:_SHOWN]:
    print(
      f'  {leaf.name}: {leaf.differing:,} of {leaf.size:,} values differ, by '
      f'at most {leaf.largest:.1e}'
    )
  if len(found) > _SHOWN:
    print(f'  and {len(found) - _SHOWN} more')


def _error(settings, state) -> str:
  if not summaries.finite(state):
    return 'DIVERGED'
  row = watch.evaluate(tasks.task_of(settings), state)
  return tasks.judged(row)[0]


def _size(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
