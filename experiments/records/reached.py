"""How far a run came: what its files say of it, each beside the others.

A file that was cut off where a row ends is right in itself. But the newest
checkpoint knows for how many batches metrics.jsonl had its rows, and those and
summary.json know how many batches are in the record of a live run. What comes
after the last of them nobody knows: a run that was killed may have had it or
not, and computes it again.
"""

import os

import numpy as np

from experiments.records import began, record
from experiments.records import rows as rows_lib
from experiments.running import setup
from ga_jax.record import trace


def lost(workdir: str) -> list[str]:
  """The files of a run that end too early, in words.

  What is damaged before their end is told where it is read.

  Args:
    workdir: of a run, whether it has ended or not.

  Raises:
    SettingError: began.json, config.json or summary.json is damaged.
  """
  rows, _ = rows_lib.read(os.path.join(workdir, record.METRICS))
  seen = rows[-1]['batches'] if rows else 0
  found = [_of_metrics(workdir, seen), _of_record(workdir, seen)]
  return [one for one in found if one]


def _of_metrics(workdir: str, seen: int) -> str:
  """What is wrong with metrics.jsonl, whose rows reach so many batches."""
  every = (began.load(workdir) or {}).get('batches_per_row')
  newest = began.newest(workdir) if every else None
  host = newest.host if newest and isinstance(newest.host, dict) else {}
  observed = host.get('observed')
  if not isinstance(observed, int) or seen // every >= observed // every:
    return ''
  return (
    f'{record.METRICS} ends after {seen} batches, and {newest.path} was saved '
    f'after its row of {observed - observed % every}: rows are lost'
  )


def _of_record(workdir: str, seen: int) -> str:
  """What is wrong with trace.rows; arguments as of `_of_metrics`."""
  path = os.path.join(workdir, setup.ROWS)
  known = {record.METRICS: seen}
  if os.path.exists(os.path.join(workdir, 'summary.json')):
    summary = record.load_json(workdir, 'summary.json')
    known['summary.json'] = summary['batches']
    if not (summary.get('stopped') or os.path.exists(path)):
      return ''  # the run needs none any more
  if record.load_settings(workdir).runtime == 'simulate':
    return ''
  try:
    rows = trace.read_rows(path, warn=lambda text: None)
  except trace.TraceError:
    return ''
  events = np.array(rows, trace.EVENT_DTYPE)
  done = int(trace.Trace(events, 0, 0).applied()['num_batches'].sum())
  name = max(known, key=known.get)
  if done >= known[name]:
    return ''
  return (
    f'{setup.ROWS} ends after {done} batches, and {name} after {known[name]}: '
    'rows are lost'
  )
