"""Folders of runs, made without training: their schedules are real."""

import json
import os

import numpy as np

from experiments.records import finished as runs_lib
from experiments.records import record
from experiments.reporting import figures, history, lines, page, timeline
from experiments.running import setup
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax.record import files
from ga_jax.simulation import virtual_cluster

PER_EPOCH = 10  # batches


def settings_of(**given) -> settings_lib.Settings:
  """Checked settings of a run of 20 batches."""
  return check.check(settings_lib.Settings(**{'epochs': 2.0, **given}))


def schedule(settings: settings_lib.Settings):
  """The trace of a run."""
  total = round(settings.epochs * PER_EPOCH)
  made = setup.assembled(settings, total, PER_EPOCH)
  clock = setup.clock_of(settings, setup.MessageBytes(0, 0))
  return virtual_cluster.schedule(
    made.policy, clock, num_workers=settings.workers, num_batches=total
  )


def trained(folder, *, losses=None, error: float = 0.1, **given) -> str:
  """A folder as `experiments.train` leaves it; returns its path.

  Args:
    folder: to make.
    losses: by arrival; a run whose losses are not all finite diverged.
    error: on the test split.
    **given: settings.
  """
  os.makedirs(folder)
  settings = settings_of(**given)
  record.save_config(str(folder), settings)
  trace = schedule(settings)
  applied = trace.applied()
  number = len(applied)
  random = np.random.default_rng(settings.seed)
  arrivals = {
    'loss': np.linspace(2, 1, number, dtype=np.float32)
    if losses is None
    else np.asarray(losses, np.float32),
    'staleness': applied['staleness'],
    'gap': random.random(number, np.float32),
    'mean_penalty': 1 + random.random(number, np.float32),
    'max_penalty': 2 + random.random(number, np.float32),
    'num_batches': applied['num_batches'],
    'time': applied['time'],
  }
  arrivals = {k: v[: len(arrivals['loss'])] for k, v in arrivals.items()}
  trace.save(os.path.join(folder, 'trace.npz'))
  np.savez(os.path.join(folder, 'arrivals.npz'), **arrivals)
  summary = summary_of(settings, arrivals, error)
  files.write_json(os.path.join(folder, 'summary.json'), summary)
  with files.JsonLines(os.path.join(folder, 'metrics.jsonl')) as log:
    for row in rows_of(arrivals, error):
      log.write(row)
  return str(folder)


def summary_of(settings, arrivals, error: float):
  """What `train.train` sums up."""
  batches = int(arrivals['num_batches'].sum())
  diverged = not np.isfinite(arrivals['loss']).all()
  return {
    'test_error': None if diverged else error,
    'validation_error': None if diverged else error + 0.01,
    'train_loss': None if diverged else 1.0,
    'updates': batches,
    'batches': batches,
    'epochs': batches / PER_EPOCH,
    'mean_staleness': float(arrivals['staleness'].mean()),
    'max_staleness': int(arrivals['staleness'].max()),
    'mean_gap': float(arrivals['gap'].mean()),
    'mean_penalty': float(arrivals['mean_penalty'].mean()),
    'max_penalty': float(arrivals['max_penalty'].max()),
    'staleness_histogram': np.bincount(arrivals['staleness']).tolist(),
    'wasted_work': 0.0,
    'bytes_pulled': 2_000_000,
    'bytes_pushed': 1_000_000,
    'simulated_time': float(arrivals['time'][-1]),
    'simulated_speedup': batches / float(arrivals['time'][-1]),
    'diverged': diverged,
    'stopped': diverged,
    'method': settings.method,
    'workers': settings.workers,
    'learning_rate': settings.learning_rate,
    'seed': settings.seed,
    'wall_seconds': 1.0,
    'device': 'a test',
  }


def rows_of(arrivals, error: float):
  """The rows of the epochs that were completed."""
  for epoch in range(1, len(arrivals['loss']) // PER_EPOCH + 1):
    part = slice((epoch - 1) * PER_EPOCH, epoch * PER_EPOCH)
    yield {
      'epoch': epoch,
      'batches': epoch * PER_EPOCH,
      'time': arrivals['time'][epoch * PER_EPOCH - 1],
      'train_loss': float(arrivals['loss'][part].mean()),
      'mean_gap': float(arrivals['gap'][part].mean()),
      'mean_penalty': float(arrivals['mean_penalty'][part].mean()),
      'test_error': error + 0.1 / epoch,
      'validation_error': None,
    }


def grid(folder, runs) -> str:
  """A folder as `experiments.compare` leaves it; returns its path.

  Args:
    folder: to make.
    runs: (error, settings) pairs; an error of None is a run that diverged.
  """
  os.makedirs(folder)
  with open(os.path.join(folder, 'metrics.jsonl'), 'w') as file:
    for i, (error, given) in enumerate(runs):
      settings = settings_of(**given)
      applied = schedule(settings).applied()
      arrivals = {
        name: applied[name] for name in ('staleness', 'time', 'num_batches')
      }
      for name in ('loss', 'gap', 'mean_penalty', 'max_penalty'):
        arrivals[name] = np.ones(len(applied))
      summary = summary_of(settings, arrivals, error or 0.0)
      del summary['staleness_histogram']
      if error is None:
        summary |= {'diverged': True, 'test_error': None}
        summary |= {'validation_error': None}
      chosen = {**given, 'epochs': settings.epochs}
      row = {'cell': f'cell-{i}', **summary, 'settings': chosen}
      file.write(json.dumps(files.to_json(row)) + '\n')
  return str(folder)


def report(*folders: str, drawn: bool = False, baseline: str = '') -> str:
  """The page about some folders, without its figures unless `drawn`."""
  seen = [one for folder in folders for one in runs_lib.load(folder)]
  comparison = lines.compared(seen, baseline)
  told = history.told(comparison, timeline.MOST)
  shown = figures.of(comparison, told) if drawn else []
  return page.page(comparison, told, shown, 'python -m experiments.report')
