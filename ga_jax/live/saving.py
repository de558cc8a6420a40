"""Checkpoints of a live run, and how a run goes on with one and its record.

A checkpoint holds the whole journal but for the rows, which are in the record
already. What the record holds beyond it is computed again, to the same bits.
"""

import collections
import itertools
from collections.abc import Callable
from typing import Any

import jax

from ga_jax.executors import saving as checkpoints_lib
from ga_jax.guards import forms
from ga_jax.job import job as job_lib
from ga_jax.live import journal as journal_lib
from ga_jax.live import observer as observer_lib
from ga_jax.live import options, result
from ga_jax.record import trace
from ga_jax.server import recovery

_ID = forms.integer(0, 2**31 - 1)
_SECONDS = forms.number()
_FORM = forms.fields(
  {
    'book': forms.anything,  # the ledger looks at it
    'rows': forms.integer(0),
    'check': forms.integer(0, 2**32 - 1),
    'elapsed': forms.number(0.0),
    'telemetry': forms.listed(
      forms.row(_ID, _SECONDS, _SECONDS, _SECONDS, forms.integer(0))
    ),
    'largest': forms.integer(-1, 2**31 - 1),
    'observer': observer_lib.FORM,
    'workers': forms.listed(_ID),
    'versions': forms.listed(forms.integer(0)),
  },
  others=forms.anything,
)  # of what `save` keeps beside the arrays


def save(
  journal: journal_lib.Journal,
  checkpoints: checkpoints_lib.Checkpoints,
  fetch_fn: Callable[[int, Any], Any],
):
  """Writes a checkpoint of everything; none where a worker is just lost.

  It may be out of reach for long: nobody waits for it twice.

  Args:
    journal: of the run; all of it is computed.
    checkpoints: where to.
    fetch_fn: see `roster.WorkerPool.fetch`.
  """
  book = journal.book
  journal.writer.flush()
  arrays = journal.execution.save()
  for worker_id, state in arrays['workers'].items():
    fetched = fetch_fn(worker_id, state)
    if fetched is None:
      checkpoints.put_off(book.version)
      return
    arrays['workers'][worker_id] = fetched
  host = {
    'book': book.save(),
    'rows': journal.writer.num_rows,
    'check': journal.writer.check,
    'elapsed': journal.stopwatch.now(),
    'telemetry': [[who, *one] for who, one in journal.telemetry.items()],
    'largest': journal.largest,
    'observer': journal.observer.save(),
    'workers': sorted(arrays['workers']),
    'versions': sorted(arrays['core']['snapshots']),
  }
  checkpoints.save(book.version, arrays, host, journal.observer.observed)


def resume(
  journal: journal_lib.Journal,
  job: job_lib.Job,
  live: options.Live,
  device: Any = None,
):
  """Goes on with the newest checkpoint and the record, if there are any.

  Members stay members, and the batches that were out are issued again.

  Args:
    journal: of the run, begun and empty.
    job: what is trained.
    live: says what to go on with.
    device: where the server's arrays are; by default JAX's default device.

  Raises:
    RecoveryError: the record is of another run than the checkpoint, or one of
      them than this one.
  """
  book, writer = journal.book, journal.writer
  saved, rows, done, check = None, [], 0, None
  if live.checkpoints:
    saved = live.checkpoints.resume(
      checkpoints_lib.of_job(
        job,
        num_batches=book.num_batches,
        policy=checkpoints_lib.of_policy(job.policy),
      )
    )
  if saved:
    with checkpoints_lib.distrusted(saved):
      _FORM(saved.host, 'host')
    done, check = saved.host['rows'], saved.host['check']
  if saved or live.recover:
    try:
      rows = trace.read_rows(live.trace_path, done, check)
    except trace.TraceError as error:
      after = f', after which {saved.path} was saved' if saved else ''
      raise recovery.RecoveryError(
        f'{error}{after}: it is another record'
      ) from error
  writer.keep(done + len(rows))
  if saved:
    with checkpoints_lib.distrusted(saved):
      _restore(journal, saved.host, saved.load, device)
  if rows:
    _follow(journal, rows, job.policy.needs_loss)
  for ticket in list(book.outstanding.values()):
    book.expire(ticket, journal.stopwatch.now(), 'restart')


def _restore(journal, host, load_fn, device):
  """Brings a journal to where it was saved."""
  book, execution = journal.book, journal.execution
  book.restore(host['book'])
  journal.stopwatch.set(host['elapsed'])
  for worker_id, *one in host['telemetry']:
    journal.telemetry[worker_id] = result.Telemetry(*one)
  journal.largest = host['largest']
  journal.observer.restore(host['observer'])
  holders = collections.Counter(
    ticket.version for ticket in book.outstanding.values()
  )
  if not holders.keys() <= set(host['versions']):
    raise forms.FormError('versions lacks some that tickets hold')
  arrays = load_fn(execution.like(host['workers'], host['versions']))
  if device is not None:
    arrays = jax.device_put(arrays, device)
  execution.restore(arrays, holders)


def _follow(journal, rows, needs_loss):
  """Computes what the record holds beyond that."""
  beyond = itertools.count(-len(rows))

  def process(row):
    if next(beyond) >= 0:  # the record ends inside an event
      journal.writer.write([row])
    journal.process(row)

  recovery.follow(
    journal.book,
    rows,
    process=process,
    loss=journal.execution.loss if needs_loss else None,
  )
  journal.book.forget_rows()
  journal.stopwatch.set(max(journal.stopwatch.latest, rows[-1][0]))
