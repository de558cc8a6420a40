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
               must be as near as rounding (replaying/rounding.py), else 1
  --until=100  stops after update 100, computed event by event, and saves the
               state in replay-100/
  --method=sa  what if the same arrivals had met another rule? Likewise --rule,
               --learning_rate, --momentum ...
"""

import os
import sys

from absl import flags

from experiments.records import folders, record
from experiments.replaying import checks, computing, outcomes, what_if
from experiments.running import devices, environment
from experiments.script import launch, name_flags, shared_flags
from experiments.settings import path_flags
from experiments.settings import table as settings_lib

shared_flags.define_run_flags(without=shared_flags.OF_ONE_RUN, live=False)
_WORKDIR = path_flags.one('workdir', '', 'of a finished run')
_FAST = flags.DEFINE_bool(
  'fast', None, "as --executor=fast (--nofast: exact); without, the run's"
)
_UNTIL = flags.DEFINE_integer(
  'until', None, 'the update after which to stop and save the state'
)
_ANYWAY = flags.DEFINE_bool(
  'anyway', False, 'go on where environment, data or files are not as recorded'
)
name_flags.one('method', None, "what if: instead of the run's")
flags.DEFINE_float('learning_rate', None, "what if: instead of the run's")
flags.DEFINE_float('momentum', None, "what if: instead of the run's")


def prepare():
  """Reads the record, checks every flag; may start the process again.

  Returns:
    (the run, settings of what if or None, what is not as recorded).
  """
  workdir = _WORKDIR.value
  folders.look('workdir', workdir)
  settings = record.load_settings(workdir)
  remaining = _unless_anyway(workdir, checks.changed_files(workdir))
  remaining += _same_environment(workdir)
  devices.of_one_worker(settings)  # are there so many?
  trace = checks.trace_of(workdir, settings)
  changed = checks.changed_inputs(workdir, settings)
  remaining += _unless_anyway(workdir, changed)
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
  executor = asked or computing.made_by(settings)
  replay = computing.Replay(workdir, settings, trace, executor)
  return replay, other, remaining


def _until_folder(workdir: str) -> str:
  """Where --until saves the state."""
  return os.path.join(workdir, f'replay-{_UNTIL.value}')


def _refuse(flag: str, got, why: str):
  raise settings_lib.SettingError(flag, got, why)


def _unless_anyway(workdir, found: list) -> list[str]:
  """What is not as recorded, in words; refused unless --anyway is given."""
  named = list(map(str, found))
  if named and not _ANYWAY.value:
    why = f'{"; ".join(named)} (--anyway goes on all the same)'
    _refuse('workdir', workdir, why)
  return named


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
    name: shared_flags.value_of(name)
    for name in settings_lib.flag_rows()
    if name in flags.FLAGS and flags.FLAGS[name].present and name != 'executor'
  }
  return what_if.settings_with(settings, given) if given else None


def main(prepared):
  replay, other, remaining = prepared
  quiet = shared_flags.quiet()
  for difference in remaining:
    print(f'not as recorded: {difference}')
  if other is not None:
    outcomes.imagine(replay, other, quiet=quiet)
  elif _UNTIL.value is not None:
    folder = _until_folder(replay.workdir)
    outcomes.stop_early(replay, _UNTIL.value, folder, quiet=quiet)
  elif not outcomes.compare(replay, quiet=quiet):
    sys.exit(1)


if __name__ == '__main__':
  launch.launch(main, prepare)
