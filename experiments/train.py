"""Trains once with N asynchronous workers on the simulated cluster.

Question: what does one method do to one model, with how many workers?

  python -m experiments.train --method=ga --workers=16 --workdir=runs/ga16

trains an MLP with BatchNorm on scikit-learn's digits in a few seconds of CPU.
The working folder then holds config.json, versions.json, metrics.jsonl (one row
per epoch), trace.npz (everything that happened), params/ (Orbax) and
summary.json.
"""

import contextlib
import os
import shutil
import time

from absl import flags

from experiments import cli, methods, progress, run, task
from experiments import settings as settings_lib
from ga_jax import metrics

cli.define_run_flags()
_METHOD = flags.DEFINE_string(
  'method',
  'ga',
  '|'.join(methods.METHODS) + '; python -m experiments.methods explains them',
)
_WORKERS = flags.DEFINE_integer('workers', 1, 'simulated workers')
_LEARNING_RATE = flags.DEFINE_float('learning_rate', 0.1, 'peak learning rate')
_MOMENTUM = flags.DEFINE_float('momentum', None, 'momentum (default 0.9)')
_SEED = flags.DEFINE_integer('seed', 0, 'of model, batches and clock')
_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'what to write to (default runs/METHOD-TIME)'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'replace an earlier run in --workdir'
)


def prepare() -> tuple[settings_lib.Settings, str]:
  """Checks every flag; reads the data and makes the folder."""
  settings = cli.run_settings(
    _METHOD.value,
    workers=_WORKERS.value,
    learning_rate=_LEARNING_RATE.value,
    seed=_SEED.value,
  )
  task.source_of(settings)  # reads the data, or says why it cannot
  workdir = _WORKDIR.value or os.path.join(
    'runs', f'{_METHOD.value}-{time.strftime("%Y%m%d-%H%M%S")}'
  )
  finished = os.path.exists(os.path.join(workdir, 'summary.json'))
  if finished and not _OVERWRITE.value:
    raise settings_lib.SettingError(
      'workdir', workdir, 'holds a run already; add --overwrite to replace it'
    )
  cli.writable_folder('workdir', workdir)
  return settings, workdir


def clear(workdir: str):
  """Removes what an earlier run left; what it finished last goes first."""
  for name in ('summary.json', 'metrics.jsonl', 'trace.npz'):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(os.path.join(workdir, name))
  shutil.rmtree(os.path.join(workdir, 'params'), ignore_errors=True)


def main(prepared):
  settings, workdir = prepared
  clear(workdir)
  run.save_config(workdir, settings)
  log_path = os.path.join(workdir, 'metrics.jsonl')
  with metrics.JsonLines(log_path) as log, progress.TrainingProgress() as shown:

    def observe(now):
      if now.row:
        log.write(now.row)
      shown.update(now)

    done = run.train(settings, observe=observe)
  run.save(workdir, done)
  report(settings, workdir, done.summary)


def report(settings, workdir, summary):
  """Prints what came out, and how to use it."""
  if summary['diverged']:
    print(
      f'DIVERGED after {summary["batches"]} batches: a loss or a parameter is '
      'not finite. A smaller --learning_rate, or --method=ga, may help.'
    )
  else:
    print(f'test error {100 * summary["test_error"]:.2f} %', end='')
    if summary['validation_error'] is not None:
      error = 100 * summary['validation_error']
      print(f', validation error {error:.2f} %', end='')
    print(f', train loss {summary["train_loss"]:.4f}')
  print(
    f'{summary["updates"]} updates from {summary["batches"]} batches of '
    f'{settings.batch_size} by {settings.workers} workers in '
    f'{summary["wall_seconds"]:.1f} s; staleness mean '
    f'{summary["mean_staleness"]:.1f}, max {summary["max_staleness"]}; gap '
    f'{summary["mean_gap"]:.2e}; penalty {summary["mean_penalty"]:.2f}; '
    f'simulated speed-up {summary["simulated_speedup"]:.1f}; wasted work '
    f'{100 * summary["wasted_work"]:.0f} %; '
    f'{summary["bytes_pushed"] / 1e6:.1f} MB submitted'
  )
  print(f'written to {workdir}')
  print(
    'inference: from experiments import run; '
    f'predict = run.load({workdir!r}); classes = predict(images)'
  )


if __name__ == '__main__':
  cli.launch(main, prepare)
