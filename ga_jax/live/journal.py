"""What happened in a live run: told to the ledger, written down, computed."""

import collections

from ga_jax.executors import execution as execution_lib
from ga_jax.live import observer as observer_lib
from ga_jax.live import result
from ga_jax.live import stopwatch as stopwatch_lib
from ga_jax.policies.parts.base import Kind
from ga_jax.record import trace
from ga_jax.server import ledger


class Journal:
  """Ledger, record and arrays of a live run, kept in step.

  All of it outlives the process, see `saving`. It knows nothing of who is
  there, of leases and of messages. Threads other than the server's may read
  the execution's `version` and the `telemetry`, and nothing else.

  Attributes:
    book: the ledger; it is told what happens.
    execution: computes what the ledger wrote.
    stopwatch: the time of the run.
    largest: the largest worker_id so far.
    telemetry: by worker_id, of those that gave an answer.
    writer: the record, from `begin` on.
    observer: sees every gradient's metrics, from `begin` on.
  """

  def __init__(
    self,
    book: ledger.Ledger,
    execution: execution_lib.Execution,
    stopwatch: stopwatch_lib.Stopwatch,
    num_workers: int,
  ):
    """Opens a journal of a run that starts with so many workers."""
    self.book = book
    self.execution = execution
    self.stopwatch = stopwatch
    self.largest = num_workers - 1
    self.telemetry = collections.defaultdict(result.Telemetry)
    self.writer = self.observer = None

  def begin(self, writer: trace.TraceWriter, observer: observer_lib.Observer):
    """From now on there is somewhere to write, and somebody who is told."""
    self.writer, self.observer = writer, observer

  def compute(self):
    """Writes down what is new in the ledger, and then computes it."""
    rows = self.book.rows(self.writer.num_rows)
    if not rows:
      return
    self.writer.write(rows)
    self.book.forget_rows()
    for row in rows:
      self.process(row)

  def process(self, row: tuple):
    """Computes a row that is written down.

    Args:
      row: values in the order of `trace.EVENT_DTYPE`.
    """
    _, event, worker_id, *_ = row
    if event == Kind.JOIN:
      self.largest = max(self.largest, worker_id)
    metrics = self.execution.process(row)
    if metrics is not None:
      self.observer.take(metrics, lambda: self.execution.state)
