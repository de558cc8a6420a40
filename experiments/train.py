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

import contextlib
import glob
import json
import os
import shlex
import shutil
import sys
import time

from absl import flags

from experiments import tasks
from experiments.catalogue import methods, parts
from experiments.records import began, digests, folders, record
from experiments.running import control as control_lib
from experiments.running import devices, environment, setup, train
from experiments.screens import progress, tensorboard
from experiments.script import launch, name_flags, shared_flags
from experiments.settings import table as settings_lib
from ga_jax.guards import locks
from ga_jax.record import files

shared_flags.define_run_flags()
shared_flags.define_runtime_flags()
_METHOD = name_flags.one(
  'method',
  'ga',
  'python -m experiments.methods explains them: ' + '|'.join(methods.METHODS),
)
_WORKERS = flags.DEFINE_integer('workers', 1, 'that train at once')
_LEARNING_RATE = flags.DEFINE_float('learning_rate', 0.1, 'peak learning rate')
_MOMENTUM = flags.DEFINE_float('momentum', None, 'momentum (default 0.9)')
_SEED = flags.DEFINE_integer('seed', 0, 'of model, batches and clock')
flags.DEFINE_string(
  'simulate_devices',
  '',
  'all|NUMBER: local devices that compute the gradients of the simulated '
  "cluster ahead, with the exact executor's bits (none: one device)",
)
flags.DEFINE_bool(
  'layer_metrics', False, 'measure gap and penalty of every layer too'
)
_TENSORBOARD = flags.DEFINE_bool(
  'tensorboard', False, f'write event files to WORKDIR/{tensorboard.FOLDER}'
)
_WORKDIR = flags.DEFINE_string(
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
_OWN = ('workdir', 'resume', 'checkpoint_every', 'keep_checkpoints')
CHECKPOINT_SECONDS = 30.0  # where a run is resumed and nothing else is said


def prepare() -> tuple[settings_lib.Settings, setup.Keeping]:
  """Checks every flag; reads the data and takes the folder."""
  workdir = _WORKDIR.value
  if _RESUME.value:
    if workdir and goes_on(workdir):
      folders.own('workdir', workdir)
    settings = resumed()
  else:
    settings = shared_flags.run_settings(
      _METHOD.value,
      workers=_WORKERS.value,
      learning_rate=_LEARNING_RATE.value,
      seed=_SEED.value,
    )
  devices.use(settings)
  if _RESUME.value:
    as_before(workdir)
  tasks.source_of(settings)  # reads the data, or says why it cannot
  about = began.of(settings)
  if _RESUME.value:
    began.check_inputs(began.saved(workdir), settings)
  if writes_events(workdir):
    tensorboard.check()
  kept = keeping(workdir)
  if not _RESUME.value:
    kept = kept._replace(folder=folder_of_its_own(settings))
  return settings, kept._replace(about=about)


def folder_of_its_own(settings: settings_lib.Settings) -> str:
  """Takes the folder of a new run."""
  if not _WORKDIR.value:
    now = time.strftime('%Y%m%d-%H%M%S')
    return folders.new(os.path.join('runs', f'{settings.method}-{now}'))
  workdir = _WORKDIR.value
  if not locks.is_owned(workdir):
    refuse_what_is_kept(workdir)  # before anything is touched
  folders.own('workdir', workdir)
  refuse_what_is_kept(workdir)  # it may have come meanwhile
  return workdir


def refuse_what_is_kept(workdir: str):
  """Raises a SettingError where a new run would remove what is there."""
  rows, config = (
    os.path.exists(os.path.join(workdir, name))
    for name in ('metrics.jsonl', 'config.json')
  )
  if rows and not config:
    raise settings_lib.SettingError(
      'workdir',
      workdir,
      'holds what experiments.compare, survey or reproduce computed: name '
      'another folder',
    )
  if _OVERWRITE.value:
    return
  if os.path.exists(os.path.join(workdir, 'summary.json')):
    raise settings_lib.SettingError(
      'workdir', workdir, 'holds a run already; add --overwrite to replace it'
    )
  if goes_on(workdir):
    raise settings_lib.SettingError(
      'workdir',
      workdir,
      'holds a run that has not ended: --resume goes on with it, --overwrite '
      'replaces it',
    )


def writes_events(workdir: str) -> bool:
  """Whether TensorBoard is to see the run: as before, where it goes on."""
  folder = os.path.join(workdir, tensorboard.FOLDER)
  return _TENSORBOARD.value or (_RESUME.value and os.path.isdir(folder))


def resumed() -> settings_lib.Settings:
  """The settings of the run in --workdir."""
  workdir = _WORKDIR.value
  if not goes_on(workdir):
    raise settings_lib.SettingError(
      'resume',
      True,
      f'--workdir={workdir} holds neither checkpoints (--checkpoint_every) nor '
      f'the record of a live run that has not ended ({setup.ROWS})',
    )
  for name in flags.FLAGS:
    ours = hasattr(settings_lib.Settings, name) or name in parts.PARAMETERS
    if ours and name not in _OWN and flags.FLAGS[name].present:
      raise settings_lib.SettingError(
        name, flags.FLAGS[name].value, f'--resume takes it from {workdir}'
      )
  settings = record.load_settings(workdir)
  began.check_settings(began.saved(workdir), settings)
  return settings_lib.check(settings)


def goes_on(workdir: str) -> bool:
  """Whether there is anything that a run can go on with."""
  return any(
    os.path.exists(os.path.join(workdir, name))
    for name in (setup.CHECKPOINTS, setup.ROWS)
  )


def as_before(workdir: str):
  """Makes the environment that the run began in, or says what differs."""
  variables, remaining = record.environment_of(workdir)
  if remaining:
    named = '; '.join(map(str, remaining))
    print(
      f'note: not as it began: {named}. It will not replay to the same bits.',
      file=sys.stderr,
    )
  elif variables:
    environment.restart(variables)


def keeping(workdir: str) -> setup.Keeping:
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


# What a run writes when it ends, and while it goes on.
FINISHED = ('summary.json', digests.FILE, 'trace.npz', 'arrivals.npz')
FINISHED += (digests.PARAMS, 'replay-*')
GOING_ON = ('metrics.jsonl', tensorboard.FOLDER, setup.ROWS, setup.CHECKPOINTS)


def clear(workdir: str, names: tuple[str, ...]):
  """Removes what an earlier run left; what it finished last goes first."""
  for path in [
    p
    for name in names
    for p in glob.glob(os.path.join(glob.escape(workdir), name))
  ]:
    if os.path.isdir(path):
      shutil.rmtree(path)
    else:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def forget(workdir: str, row):
  """Drops the rows of metrics.jsonl from `row` on: they are made again."""
  path = os.path.join(workdir, 'metrics.jsonl')
  with open(path) as file:
    kept = [
      line for line in file if json.loads(line)['batches'] < row['batches']
    ]
  with files.replacing(path) as partial, open(partial, 'w') as file:
    file.writelines(kept)


def main(prepared):
  settings, keep = prepared
  workdir, control = keep.folder, control_lib.Control()
  if _RESUME.value:
    clear(workdir, FINISHED)
  else:
    clear(workdir, (*FINISHED, *GOING_ON))
    record.save_config(workdir, settings)
    began.save(workdir, keep.about)
  for name in (*record.BEGINNING, began.FILE):
    folders.keep(os.path.join(workdir, name))
  try:
    done = followed(settings, keep, control)
  except setup.NothingDoneError as error:
    print(f'{error}; {how_to_go_on(workdir)}')
  else:
    folders.check()
    record.save(workdir, done)
    folders.check()
    if not (done.summary['stopped'] or keep.checkpoints()):
      clear(workdir, (setup.ROWS,))  # it is in trace.npz now
    digests.write(workdir)
    report(settings, workdir, done.summary)
    if done.summary['stopped'] and not done.summary['diverged']:
      print(f'stopped; {how_to_go_on(workdir)}')
  if control.signal:
    sys.exit(128 + control.signal)


def how_to_go_on(workdir: str) -> str:
  """What a run that was stopped can be gone on with."""
  if not goes_on(workdir):
    return 'nothing to go on with: --checkpoint_every=30s keeps checkpoints'
  here = shlex.quote(f'--workdir={workdir}')
  return f'go on: python -m experiments.train --resume {here}'


def followed(settings, keep, control) -> setup.Run:
  """Trains; shows the progress, and writes the metrics down as they come."""
  workdir, log, resuming = keep.folder, None, _RESUME.value
  log_path = os.path.join(workdir, 'metrics.jsonl')
  with contextlib.ExitStack() as stack:
    shown = stack.enter_context(
      progress.TrainingProgress(progress.title(settings), quiet=launch.quiet())
    )
    control.install(shown.stopping)
    events = None
    if writes_events(workdir):
      events = stack.enter_context(
        tensorboard.Events(workdir, settings, setup.layers_of(settings))
      )

    def observe(now):
      nonlocal log, resuming
      folders.check()
      if now.row:
        if resuming and os.path.exists(log_path):
          forget(workdir, now.row)
        if log is None:
          log = stack.enter_context(files.JsonLines(log_path))
          folders.keep(log_path)
        resuming = False
        log.write(now.row)
        if events:
          events.write(now.row, now.arrivals)
      shown.update(now)

    return train.train(settings, observe=observe, keeping=keep, control=control)


def pace(summary) -> str:
  """How fast the cluster was."""
  if 'simulated_speedup' in summary:
    return f'simulated speed-up {summary["simulated_speedup"]:.1f}'
  workers = summary['worker_seconds'].values()
  mean = sum(one['utilisation'] for one in workers) / len(workers)
  return f'workers computed {100 * mean:.0f} % of their time'


def report(settings, workdir, summary):
  """Prints what came out, and how to use it."""
  if summary['diverged']:
    print(
      f'DIVERGED after {summary["batches"]} batches: a loss or a parameter is '
      'not finite. A smaller --learning_rate, or --method=ga, may help.'
    )
  else:
    loss = f'train loss {summary["train_loss"]:.4f}'
    print(', '.join([*progress.judged(summary), loss]))
  print(
    f'{summary["updates"]} updates from {summary["batches"]} batches of '
    f'{settings.batch_size} by {settings.workers} workers in '
    f'{summary["wall_seconds"]:.1f} s; staleness mean '
    f'{summary["mean_staleness"]:.1f}, max {summary["max_staleness"]}; gap '
    f'{summary["mean_gap"]:.2e}; penalty {summary["mean_penalty"]:.2f}; '
    f'{pace(summary)}; wasted work '
    f'{100 * summary["wasted_work"]:.0f} %; '
    f'{summary["bytes_pushed"] / 1e6:.1f} MB submitted'
  )
  print(f'written to {workdir}')
  print(f'inference: {record.how_to_load(workdir)}')


if __name__ == '__main__':
  launch.launch(
    main, prepare, device_fn=lambda made: train.computes_with(made[0])
  )
