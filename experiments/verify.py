"""Checks the record of a run: did every batch count exactly once?

  python -m experiments.verify --workdir=runs/ga16

reads trace.npz, config.json and summary.json, and compares every file of the
run with the digest that it was saved with; nothing is computed. It prints what
happened in a few lines, or what is wrong, with exit code 1.
"""

import sys

import numpy as np
from absl import flags

import ga_jax
from experiments.records import digests, folders, record
from experiments.script import launch
from ga_jax.policies.parts.base import Action, Kind

_WORKDIR = flags.DEFINE_string('workdir', '', 'of a finished run')

_ROWS = 8  # of the histogram
_WIDTH = 40  # of its longest bar


def prepare():
  """Reads everything but the trace, which may be wrong in itself."""
  workdir = _WORKDIR.value
  folders.look('workdir', workdir)
  settings = record.load_settings(workdir)
  summary = record.load_json(workdir, 'summary.json')
  return workdir, settings, summary, digests.compare(workdir)


def main(prepared):
  workdir, settings, summary, compared = prepared
  wrong = [] if compared is None else compared.wrong
  try:
    trace = record.load_trace(workdir)
    stopped = summary['batches'] < trace.num_batches
    trace.verify(complete=not stopped)
    check(trace, settings, summary, stopped)
  except ga_jax.TraceError as error:
    wrong = [str(error), *wrong]
  if wrong:
    print('\n'.join(f'WRONG: {one}' for one in wrong))
    sys.exit(1)
  print('\n'.join([*report(trace, summary, stopped), *unchanged(compared)]))


def check(trace: ga_jax.Trace, settings, summary, stopped: bool):
  """Checks a trace against settings and summary.

  Args:
    trace: right in itself.
    settings: of the run.
    summary: of the run.
    stopped: whether the run ended before its schedule did.

  Raises:
    TraceError: naming what they say differently.
  """
  per_epoch = round(summary['batches'] / summary['epochs'])
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


def report(trace: ga_jax.Trace, summary, stopped: bool) -> list[str]:
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


if __name__ == '__main__':
  launch.launch(main, prepare)
