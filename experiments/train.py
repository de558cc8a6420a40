"""Trains once with N asynchronous workers, simulated or on this machine.

Question: what does one method do to one model, with how many workers?

  python -m experiments.train --method=ga --workers=16 --workdir=runs/ga16

trains an MLP with BatchNorm on scikit-learn's digits in a few seconds of CPU.
The working folder then holds config.json, versions.json, environment.json (what
the bits depend on), began.json (settings, and what the data are known by),
metrics.jsonl (one row per epoch), trace.npz (everything that happened),
arrivals.npz (what every gradient did), params/ (Orbax), summary.json and
digests.json (SHA-256 of all that); `experiments.replay` computes it again,
`experiments.verify` checks the trace and the files. docs/metrics.md explains
every name.
"""

import os
import sys

from absl import flags

from experiments import tasks
from experiments.records import began, folders, reached, record, run_folder
from experiments.reporting import ended
from experiments.running import control as control_lib
from experiments.running import devices, setup, train
from experiments.screens import following, tensorboard
from experiments.script import failures, launch, shared_flags
from experiments.settings import check, path_flags
from experiments.settings import table as settings_lib
from ga_jax.live import server

shared_flags.define_run_flags()
_TENSORBOARD = flags.DEFINE_bool(
  'tensorboard', False, f'write event files to WORKDIR/{setup.EVENTS}'
)
_WORKDIR = path_flags.one(
  'workdir', '', 'folder to write to (default runs/METHOD-TIME)'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'replace an earlier run in --workdir'
)
_CHECKPOINT_EVERY = flags.DEFINE_string(
  'checkpoint_every', '', 'server updates (500), or seconds (30s)'
)
_KEEP = flags.DEFINE_integer(
  'keep_checkpoints', 3, 'checkpoints that are kept, at least 1'
)
_RESUME = flags.DEFINE_bool(
  'resume', False, 'go on with the run in --workdir, as it was set'
)
CHECKPOINT_SECONDS = 30.0  # where a run is resumed and nothing else is said


def prepare() -> tuple[settings_lib.Settings, setup.Keeping]:
  """Checks every flag; reads the data and takes the folder."""
  workdir = _WORKDIR.value
  if _RESUME.value:
    if workdir and run_folder.goes_on(workdir):
      folders.own('workdir', workdir)
    settings = _resumed()
  else:
    settings = shared_flags.run_settings()
  devices.use(settings)
  if _RESUME.value:
    began.restore_environment(workdir)
    for one in reached.lost(workdir):
      print(f'note: {one}', file=sys.stderr)
  tasks.source_of(settings)  # reads the data, or says why it cannot
  about = began.of(settings)
  if _RESUME.value:
    began.check_inputs(began.saved(workdir), settings)
  if _writes_events(workdir):
    tensorboard.check()
  kept = _keeping(workdir)
  if not _RESUME.value:
    folder = run_folder.take(
      workdir, settings.method, overwrite=_OVERWRITE.value
    )
    kept = kept._replace(folder=folder)
  return settings, kept._replace(about=about)


def _writes_events(workdir: str) -> bool:
  """Whether TensorBoard is to see the run: as before, where it goes on."""
  folder = os.path.join(workdir, setup.EVENTS)
  return _TENSORBOARD.value or (_RESUME.value and os.path.isdir(folder))


def _resumed() -> settings_lib.Settings:
  """The settings of the run in --workdir."""
  workdir = _WORKDIR.value
  if not run_folder.goes_on(workdir):
    raise settings_lib.SettingError(
      'resume',
      True,
      f'--workdir={workdir} holds neither checkpoints (--checkpoint_every) nor '
      f'the record of a live run that has not ended ({setup.ROWS})',
    )
  settings = record.load_settings(workdir)
  known = settings.address if settings.joins_cluster() else None
  for name in settings_lib.flag_rows():
    flag = flags.FLAGS[name]
    if flag.present and not (name == 'address' and flag.value == known):
      raise settings_lib.SettingError(
        name, flag.value, f'--resume takes it from {workdir}'
      )
  if known and not flags.FLAGS['address'].present:
    raise settings_lib.SettingError(
      'resume',
      True,
      f'the run was on the Ray cluster at {known}, which may run anything '
      f'here: where you trust it, add --address={known}',
    )
  began.check_settings(began.saved(workdir), settings)
  return check.check(settings)


def _keeping(workdir: str) -> setup.Keeping:
  """What is kept while the run goes on."""
  text = _CHECKPOINT_EVERY.value
  if _KEEP.value < 1:
    raise settings_lib.SettingError(
      'keep_checkpoints', _KEEP.value, 'must be at least 1'
    )
  if not text:
    seconds = CHECKPOINT_SECONDS if _RESUME.value else None
    return setup.Keeping(workdir, None, seconds, _KEEP.value, _RESUME.value)
  try:
    if text.endswith('s'):
      found = setup.Keeping(workdir, None, float(text[:-1]), _KEEP.value)
    else:
      found = setup.Keeping(workdir, int(text), None, _KEEP.value)
    if not 0 < (found.every_updates or found.every_seconds) < 1e9:
      raise ValueError
  except ValueError as error:
    raise settings_lib.SettingError(
      'checkpoint_every', text, 'must be a number of updates, or seconds: 30s'
    ) from error
  return found._replace(resume=_RESUME.value)


def main(prepared):
  settings, keep = prepared
  workdir, control = keep.folder, control_lib.Control()
  if keep.resume and run_folder.is_finished(workdir):
    print(f'{workdir} has finished already: nothing is computed')
    return
  run_folder.begin(settings, keep)
  try:
    done = following.followed(
      settings,
      keep,
      control,
      events=_writes_events(workdir),
      quiet=shared_flags.quiet(),
    )
  except setup.NothingDoneError as error:
    print(f'{error}; {ended.how_to_go_on(settings, workdir)}')
  except (
    server.ServerMissingError,
    server.WorkersMissingError,
    server.ClusterLostError,
  ) as error:
    failures.fail(f'{error}; {ended.how_to_go_on(settings, workdir)}', 1)
  else:
    run_folder.end(done, keep)
    print(ended.text(settings, workdir, done.summary))
    if done.summary['stopped'] and not done.summary['diverged']:
      print(f'stopped; {ended.how_to_go_on(settings, workdir)}')
  if control.signal:
    sys.exit(128 + control.signal)


if __name__ == '__main__':
  launch.launch(
    main, prepare, device_fn=lambda made: train.computes_with(made[0])
  )
