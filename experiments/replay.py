"""Computes a finished run again from its record, and compares the bits.

Question: is what the record holds all that the result depends on?

  python -m experiments.replay --workdir=runs/ga16

reads config.json, trace.npz, environment.json and params/, computes the trace
with the executor that made the run, and says whether parameters and model
statistics are the same bits (exit code 0, else 1). Where the environment is
another one the script starts itself again with that of the run, or refuses
where it cannot; it refuses too where a file was changed after the run
(digests.json), or the data hold something else (began.json).

  --executor=exact  event by event, or --executor=fast (or --fast), through
               compiled blocks: where the other one made the run, the result
               must be as near as rounding (records/rounding.py), else 1
  --until=100  stops after update 100, computed event by event, and saves the
               state in replay-100/
  --method=sa  what if the same arrivals had met another rule? Likewise --rule,
               --learning_rate, --momentum ...
"""

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

import ga_jax
from experiments import tasks
from experiments.catalogue import parts
from experiments.records import (
  began,
  digests,
  folders,
  record,
  rounding,
  what_if,
)
from experiments.running import (
  devices,
  environment,
  inputs,
  setup,
  summaries,
  watch,
)
from experiments.screens import progress
from experiments.script import launch, shared_flags
from experiments.settings import table as settings_lib
from ga_jax.policies.parts.base import Action
from ga_jax.record import files
from ga_jax.record import params as params_lib
from ga_jax.server import update as update_lib
from ga_jax.simulation import simulate

shared_flags.define_run_flags()
_WORKDIR = flags.DEFINE_string('workdir', '', 'of a finished run')
_FAST = flags.DEFINE_bool(
  'fast', None, "as --executor=fast (--nofast: exact); without, the run's"
)
_UNTIL = flags.DEFINE_integer(
  'until', None, 'the update after which to stop and save the state'
)
_ANYWAY = flags.DEFINE_bool(
  'anyway', False, 'go on where environment, data or files are not as recorded'
)
flags.DEFINE_string('method', None, "what if: instead of the run's")
flags.DEFINE_float('learning_rate', None, "what if: instead of the run's")
flags.DEFINE_float('momentum', None, "what if: instead of the run's")

_SHOWN = 5  # leaves that differ
_LAST = 10  # arrivals in the summary of --until
# What is read of the record.
_READ = ('config.json', 'environment.json', 'trace.npz', 'summary.json')
_READ += (began.FILE, digests.PARAMS)


class Prepared(NamedTuple):
  """What is to be computed again.

  Attributes:
    workdir: of the run.
    settings: of the run.
    trace: of the run.
    other: settings for the same trace, or None.
    executor: that computes it, 'fast' or 'exact'.
    remaining: what is not as recorded and --anyway passes over, in words.
  """

  workdir: str
  settings: settings_lib.Settings
  trace: ga_jax.Trace
  other: settings_lib.Settings | None
  executor: str
  remaining: list[str]


def prepare() -> Prepared:
  """Reads the record, checks every flag; may start the process again."""
  workdir = _WORKDIR.value
  folders.look('workdir', workdir)
  settings = record.load_settings(workdir)
  remaining = _unless_anyway(workdir, _changed(workdir))
  remaining += _same_environment(workdir)
  devices.of_one_worker(settings)  # are there so many?
  trace = _trace(workdir, settings)
  remaining += _unless_anyway(workdir, _other_inputs(workdir, settings))
  other = _what_if(settings)
  asked = _asked()
  if _UNTIL.value is not None:
    last = trace.updates()
    if not 1 <= _UNTIL.value <= last:
      _refuse('until', _UNTIL.value, f'must be an update from 1 to {last}')
    if asked == 'fast' or other:
      _refuse('until', _UNTIL.value, 'is for the run itself, event by event')
    folders.share('workdir', workdir)
    folders.own('until', _until_folder(workdir))
  executor = asked or _made_by(settings)
  return Prepared(workdir, settings, trace, other, executor, remaining)


def _until_folder(workdir: str) -> str:
  """Where --until saves the state."""
  return os.path.join(workdir, f'replay-{_UNTIL.value}')


def _refuse(flag: str, got, why: str):
  raise settings_lib.SettingError(flag, got, why)


def _trace(workdir, settings) -> ga_jax.Trace:
  """The trace, which must be right in itself and be of this run."""
  try:
    trace = record.load_trace(workdir)
    trace.verify(complete=False)
  except ga_jax.TraceError as error:
    _refuse('workdir', workdir, f'trace.npz is wrong: {error}')
  wanted = settings.workers, setup.total_batches(settings)
  if (trace.num_workers, trace.num_batches) != wanted:
    _refuse(
      'workdir',
      workdir,
      f'trace.npz is of {trace.num_workers} workers and {trace.num_batches} '
      f'batches, config.json of {wanted[0]} and {wanted[1]}',
    )
  return trace


def _unless_anyway(workdir, found: list) -> list[str]:
  """What is not as recorded, in words; refused unless --anyway is given."""
  named = list(map(str, found))
  if named and not _ANYWAY.value:
    why = f'{"; ".join(named)} (--anyway goes on all the same)'
    _refuse('workdir', workdir, why)
  return named


def _changed(workdir) -> list[str]:
  """The files to be read that are not as the run saved them."""
  compared = digests.compare(workdir, _READ)
  return [] if compared is None else compared.wrong


def _other_inputs(workdir, settings) -> list[environment.Difference]:
  """What the data hold else than they did."""
  was = began.load(workdir)
  return inputs.differences(was['inputs'], inputs.of(settings)) if was else []


def _same_environment(workdir) -> list[str]:
  """Makes the environment that of the run, by another start if need be."""
  variables, remaining = record.environment_of(workdir)
  named = _unless_anyway(workdir, remaining)
  if variables:
    environment.restart(variables)
  return named


def _asked() -> str | None:
  """The executor that flags ask for; None without."""
  flag, fast = flags.FLAGS['executor'], _FAST.value
  executor = flag.value if flag.present else None
  if executor not in (None, *settings_lib.EXECUTORS):
    accepted = f'must be one of {", ".join(settings_lib.EXECUTORS)}'
    _refuse('executor', executor, accepted)
  if fast is None:
    return executor
  wanted = 'fast' if fast else 'exact'
  if executor not in (None, wanted):
    _refuse('executor', executor, f'--fast asks for {wanted}: give one of them')
  return wanted


def _what_if(settings) -> settings_lib.Settings | None:
  """The settings of the run with what was given as flags; None without."""
  given = {
    name: flags.FLAGS[name].value
    for name in (*vars(settings), *parts.PARAMETERS)
    if name in flags.FLAGS and flags.FLAGS[name].present and name != 'executor'
  }
  if 'boundaries' in given:
    given['boundaries'] = shared_flags.number_list(
      'boundaries', given['boundaries'], float
    )
  return what_if.settings_with(settings, given) if given else None


def _job(settings) -> ga_jax.Job:
  return setup.job_of(settings, setup.method_of(settings))


def main(prepared: Prepared):
  for difference in prepared.remaining:
    print(f'not as recorded: {difference}')
  if prepared.other is not None:
    imagine(prepared)
  elif _UNTIL.value is not None:
    stop_early(prepared, _UNTIL.value)
  elif not compare(prepared):
    sys.exit(1)


def compare(prepared: Prepared) -> bool:
  """Computes the run again and says what came out.

  Args:
    prepared: see `Prepared`.

  Returns:
    Whether the bits are those that they had to be; of an executor that did not
    make the run, whether they are as near as rounding.
  """
  workdir, settings, trace, _, executor, _ = prepared
  executed = _executed(workdir, trace)
  state, _ = computed(settings, trace, executor, executed)
  saved = record.load_params(workdir, settings)
  now = state.params, state.model_state
  found = record.differing(saved, now)
  updates = f'after {int(state.version):,} updates'
  if not found:
    parameters, statistics = map(_size, saved)
    more = f' and {statistics:,} statistics' if statistics else ''
    print(f'same bits: {parameters:,} parameters{more} {updates}')
    return True
  apart = rounding.over_kinds(record.distance, saved, now)
  told = f'apart by {rounding.told(apart)} of their norm {updates}'
  made_by = _made_by(settings)
  if made_by == executor:
    print(f'OTHER bits: {told}')
    _name(found)
    return False
  print(
    f'the run has the bits of the {made_by} executor, which the {executor} '
    f'one does not give: {told}'
  )
  moved, _ = computed(settings, trace, executor, executed, rounding.nudged)
  moved = moved.params, moved.model_state
  allowed = rounding.over_kinds(rounding.allowed, now, moved)
  within = all(apart[name] <= allowed[name] for name in apart)  # NaN is not
  verdict = 'rounding explains it' if within else 'OTHER values'
  print(f'{verdict}: up to {rounding.told(allowed)} of their norm are rounding')
  return within


def _name(found: list[record.Leaf]):
  """Prints the leaves that differ most."""
  found.sort(key=lambda leaf: -leaf.differing)
  for leaf in found[:_SHOWN]:
    print(
      f'  {leaf.name}: {leaf.differing:,} of {leaf.size:,} values differ, by '
      f'at most {leaf.largest:.1e}'
    )
  if len(found) > _SHOWN:
    print(f'  and {len(found) - _SHOWN} more')


def imagine(prepared: Prepared):
  """Computes the trace with other settings and prints both test errors."""
  workdir, settings, trace, other, executor, _ = prepared
  state, _ = computed(other, trace, executor, trace.num_batches)
  saved = update_lib.Snapshot(*record.load_params(workdir, settings))
  print(f'as it was, {settings.method}: {_error(settings, saved)}')
  changed = what_if.changes(settings, other)
  print(f'what if {changed}: {_error(other, state)}')


def stop_early(prepared: Prepared, update: int):
  """Computes the trace up to an update and saves the state."""
  workdir, settings, trace, *_ = prepared
  last = np.flatnonzero(trace.events['action'] == Action.APPLY)[update - 1]
  cut = trace._replace(events=trace.events[: last + 1])
  state, seen = computed(settings, cut, 'exact', trace.num_batches)
  folder = _until_folder(workdir)
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
  print(
    f'update {update}, {summary["batches"]} batches: '
    f'{_error(settings, state)}; written to {folder}'
  )


def computed(
  settings: settings_lib.Settings,
  trace: ga_jax.Trace,
  executor: str,
  num_batches: int,
  begin_fn: Callable[[Any], Any] = lambda params: params,
) -> tuple[update_lib.ServerState, dict[str, np.ndarray]]:
  """Computes a trace.

  Args:
    settings: of what is computed.
    trace: what happened.
    executor: 'exact' or 'fast'.
    num_batches: after how many applied batches to stop, where the trace goes
      on: a run that diverged ended before its schedule did.
    begin_fn: makes what it begins with of the parameters that the run had.

  Returns:
    The state, and metrics per applied arrival.
  """
  job = _job(settings)
  job = dataclasses.replace(job, params=begin_fn(job.params))
  per_ticket = job.worker_program.num_batches

  applied = int(trace.applied()['num_batches'].sum())
  number = min(num_batches, applied)
  where = {}
  if executor == 'exact':
    where['placement'] = devices.of_one_worker(settings)
    where['shards'] = settings.server_shards
  with progress.counting('replaying', number, quiet=launch.quiet()) as reached:

    def observe(batches, state, metrics):
      del state, metrics
      if reached:
        reached(batches)
      return batches >= num_batches

    state, seen, _ = simulate.EXECUTORS[executor](
      job,
      trace,
      observe=observe if reached or num_batches < applied else None,
      align=max(1, setup.batches_per_row(settings) // per_ticket),
      **where,
    )
  return state, seen


def _executed(workdir, trace) -> int:
  """The applied batches that the run computed: fewer where it diverged."""
  if not os.path.exists(os.path.join(workdir, 'summary.json')):
    return trace.num_batches
  return record.load_json(workdir, 'summary.json')['batches']


def _made_by(settings) -> str:
  """The executor whose bits a run has: on several devices the exact one's."""
  ahead = settings.runtime != 'simulate' or settings.simulate_devices
  if ahead or setup.method_of(settings).policy.needs_loss:
    return 'exact'
  return settings.executor


def _error(settings, state) -> str:
  if not summaries.finite(state):
    return 'DIVERGED'
  row = watch.evaluate(tasks.task_of(settings), state)
  return progress.judged(row)[0]


def _size(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


if __name__ == '__main__':
  launch.launch(main, prepare)
