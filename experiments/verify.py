"""Checks the record of a run: did every batch count exactly once?

  python -m experiments.verify --workdir=runs/ga16

reads trace.npz, config.json and summary.json, and compares every file of the
run with the digest that it was saved with; nothing is computed. It prints what
happened in a few lines, or what is wrong, with exit code 1.
"""

import sys

import ga_jax
from experiments.records import digests, folders, reached, record, verification
from experiments.script import launch
from experiments.settings import path_flags

_WORKDIR = path_flags.one('workdir', '', 'of a finished run')


def prepare():
  """Reads everything but the trace, which may be wrong in itself."""
  workdir = _WORKDIR.value
  folders.look('workdir', workdir)
  settings = record.load_settings(workdir)
  summary = record.load_json(workdir, 'summary.json')
  compared, lost = digests.compare(workdir), reached.lost(workdir)
  return workdir, settings, summary, compared, lost


def main(prepared):
  workdir, settings, summary, compared, lost = prepared
  wrong = lost if compared is None else [*compared.wrong, *lost]
  try:
    trace = record.load_trace(workdir)
    stopped = summary['batches'] < trace.num_batches
    trace.verify(complete=not stopped)
    verification.check(trace, settings, summary, stopped)
  except ga_jax.TraceError as error:
    wrong = [str(error), *wrong]
  if wrong:
    print('\n'.join(f'WRONG: {one}' for one in wrong))
    sys.exit(1)
  print(
    '\n'.join(
      [
        *verification.report(trace, summary, stopped),
        *verification.unchanged(compared),
      ]
    )
  )


if __name__ == '__main__':
  launch.launch(main, prepare)
