"""What a run says when it has ended, in lines of plain text."""

import shlex
from typing import Any

from experiments import tasks
from experiments.records import record, run_folder
from experiments.settings import table as settings_lib


def text(
  settings: settings_lib.Settings, workdir: str, summary: dict[str, Any]
) -> str:
  """What came out of a run, and how to use it.

  Args:
    settings: of the run.
    workdir: of the run.
    summary: of the run.

  Returns:
    Lines.
  """
  if summary['diverged']:
    first = (
      f'DIVERGED after {summary["batches"]} batches: a loss or a parameter is '
      'not finite. A smaller --learning_rate, or --method=ga, may help.'
    )
  else:
    loss = f'train loss {summary["train_loss"]:.4f}'
    first = ', '.join([*tasks.judged(summary), loss])
  return '\n'.join(
    [
      first,
      f'{summary["updates"]} updates from {summary["batches"]} batches of '
      f'{settings.batch_size} by {settings.workers} workers in '
      f'{summary["wall_seconds"]:.1f} s; staleness mean '
      f'{summary["mean_staleness"]:.1f}, max {summary["max_staleness"]}; gap '
      f'{summary["mean_gap"]:.2e}; penalty {summary["mean_penalty"]:.2f}; '
      f'{_pace(summary)}; wasted work '
      f'{100 * summary["wasted_work"]:.0f} %; '
      f'{summary["bytes_pushed"] / 1e6:.1f} MB submitted',
      *_server(summary),
      *_missing(summary),
      f'written to {workdir}',
      f'inference: {record.how_to_load(workdir)}',
    ]
  )


def _pace(summary) -> str:
  """How fast the cluster was."""
  if 'simulated_speedup' in summary:
    return f'simulated speed-up {summary["simulated_speedup"]:.1f}'
  workers = summary['worker_seconds'].values()
  mean = sum(one['utilisation'] for one in workers) / len(workers)
  return f'workers computed {100 * mean:.0f} % of their time'


def _server(summary) -> list[str]:
  """What the server computed with, on Ray."""
  what = summary.get('server_accelerator')
  return [f'server on {what}'] if what else []


def _missing(summary) -> list[str]:
  """Who was asked for and did nothing, on Ray."""
  who = ', '.join(map(str, summary.get('missing_workers', ())))
  return [f'workers that never answered: {who}'] if who else []


def how_to_go_on(settings: settings_lib.Settings, workdir: str) -> str:
  """What a run that was stopped can be gone on with."""
  if not run_folder.goes_on(workdir):
    return 'nothing to go on with: --checkpoint_every=30s keeps checkpoints'
  here = shlex.quote(f'--workdir={workdir}')
  if settings.joins_cluster():
    here += f' {shlex.quote(f"--address={settings.address}")}'
  return f'go on: python -m experiments.train --resume {here}'
