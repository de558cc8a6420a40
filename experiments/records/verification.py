"""Checks a trace against settings and summary, and says what happened in it."""

from typing import Any

import numpy as np

import ga_jax
from experiments.records import digests, record
from experiments.settings import table as settings_lib
from ga_jax.policies.parts.base import Action, Kind

_ROWS = 8  # of the histogram
_WIDTH = 40  # of its longest bar


def check(
  trace: ga_jax.Trace,
  settings: settings_lib.Settings,
  summary: dict[str, Any],
  stopped: bool,
):
  """Checks a trace against settings and summary.

  Args:
    trace: right in itself.
    settings: of the run.
    summary: of the run.
    stopped: whether the run ended before its schedule did.

  Raises:
    TraceError: naming what they say differently.
  """
  check_workers(trace, summary)
  per_epoch = record.batches_per_epoch(summary)
  said = [
    ('workers', 'config.json', settings.workers, trace.num_workers),
    (
      'batches',
      'config.json',
      max(1, round(settings.epochs * per_epoch)),
      trace.num_batches,
    ),
  ]
  applied = trace.applied()
  done = int(applied['num_batches'].sum())
  # Version 0.1 kept the whole schedule of a run that ended before its end.
  if not (stopped and done == trace.num_batches):
    said += [
      ('batches', 'summary.json', summary['batches'], done),
      ('updates', 'summary.json', summary['updates'], trace.updates()),
      (
        'max_staleness',
        'summary.json',
        summary['max_staleness'],
        int(applied['staleness'].max(initial=0)),
      ),
    ]
  for name, file, wanted, got in said:
    if wanted != got:
      raise ga_jax.TraceError(f'{name}: {file} says {wanted}, trace.npz {got}')


def check_workers(trace: ga_jax.Trace, summary: dict[str, Any]):
  """Checks that every worker has come, or is said not to have.

  What is computed again holds states of all of them: then no more of it is
  allocated than a file of this size can ask for.

  Args:
    trace: right in itself.
    summary: of the run.

  Raises:
    TraceError: there are others.
  """
  events = trace.events
  came = len(np.unique(events['worker_id'][events['event'] == Kind.JOIN]))
  missing = len(summary.get('missing_workers', ()))
  if trace.num_workers > came + missing:
    raise ga_jax.TraceError(
      f'workers: trace.npz is of {trace.num_workers}, of which {came} came; '
      f'summary.json says that {missing} were missing'
    )


def report(
  trace: ga_jax.Trace, summary: dict[str, Any], stopped: bool
) -> list[str]:
  """What happened, in lines.

  Args:
    trace: checked.
    summary: of the run.
    stopped: see `check`.

  Returns:
    The lines.
  """
  staleness = trace.applied()['staleness']
  actions = trace.events['action']
  counts = {
    'refused': np.sum(actions == Action.REFUSE),
    'discarded': np.sum(actions == Action.DISCARD),
    'restarted': trace.number_of(Kind.RESTART),
    'expired': trace.number_of(Kind.EXPIRE),
  }
  lines = [
    f'{len(trace.events):,} events of {trace.num_workers} workers',
    f'{trace.num_batches:,} batches, each in exactly one applied round',
  ]
  if stopped:
    lines[-1] = (
      f'{trace.num_batches:,} batches, none of them in two applied rounds; '
      f'{summary["batches"]:,} were computed when the run ended'
    )
  return [
    *lines,
    f'{trace.updates():,} updates',
    f'staleness mean {staleness.mean():.1f}, max {staleness.max()}:',
    *histogram(staleness),
    ', '.join(f'{count} {name}' for name, count in counts.items()),
    f'wasted work {100 * trace.wasted():.0f} %',
  ]


def unchanged(compared: digests.Compared | None) -> list[str]:
  """What the digests say where nothing is wrong, in lines."""
  if compared is None:
    return [
      f'no {digests.FILE}, as an older version left it: whether files were '
      'changed after the run is not known'
    ]
  lines = [f'{compared.same} files as the run saved them']
  if compared.others:
    lines.append(f'not of the run: {", ".join(compared.others)}')
  return lines


def histogram(values: np.ndarray) -> list[str]:
  """A text histogram of whole numbers from 0 on; at most `_ROWS` lines."""
  width = -(-(int(values.max()) + 1) // _ROWS)  # values per line
  counts = np.bincount(values // width)
  lines = []
  for i, count in enumerate(counts.tolist()):
    first, last = i * width, (i + 1) * width - 1
    label = f'{first}' if width == 1 else f'{first}-{last}'
    bar = '#' * round(_WIDTH * count / counts.max())
    lines.append(f'{label:>9} {bar:{_WIDTH}} {count:,}')
  return lines
