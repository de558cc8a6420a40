"""The exact executor: a trace, event by event, with a live run's functions.

Gradient and update are compiled separately and dispatched one event at a time,
as a live run does, so the result has its bits.
"""

import array
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ga_jax.executors import execution as execution_lib
from ga_jax.executors import saving
from ga_jax.guards import forms
from ga_jax.job import job as job_lib
from ga_jax.job import metrics as metrics_lib
from ga_jax.job import source as source_lib
from ga_jax.server import ledger, recovery, update
from ga_jax.workers.placement import Placement

_COUNT = forms.integer(0)
_FORM = forms.fields(
  {
    'rows': _COUNT,
    'digest': forms.text,
    'losses': metrics_lib.check_columns,
    'log': metrics_lib.check_columns,
    'workers': forms.listed(_COUNT),
    'holders': forms.listed(forms.row(_COUNT, _COUNT)),  # by version
  },
  others=forms.anything,
)  # of the host value of a checkpoint


def execute(
  job: job_lib.Job,
  trace,
  observe: Callable[[int, update.ServerState, Any], bool] | None = None,
  block: int | None = None,
  align: int | None = None,
  checkpoints: saving.Checkpoints | None = None,
  device=None,
  placement: Placement | None = None,
  shards: int = 1,
) -> tuple[update.ServerState, dict[str, np.ndarray], int]:
  """Computes a trace.

  Args:
    job: what to compute.
    trace: a `Trace`.
    observe: `observe(batches_so_far, state, metrics) -> stop`, called every
      `block` applied arrivals with those arrivals' metrics.
    block: arrivals between two observations, the last one may be shorter;
      `align` or 1 by default.
    align: see `block`.
    checkpoints: where to save the run, and how often; what is there already is
      gone on with, to the same bits.
    device: of the server, see `execution.Execution`.
    placement: of the workers, see `execution.Execution`.
    shards: of the server, see `execution.Execution`.

  Returns:
    The final state, metrics per applied arrival, and how many were executed.

  Raises:
    RecoveryError: the checkpoint is of another run.
  """
  source_lib.expect(job.source, trace)
  execution = execution_lib.Execution(job, device, placement, shards)
  run = saving.of_trace(job, trace, executor='exact')
  return Run(execution, checkpoints, run).consume(
    trace.rows(), trace.num_batches, observe, block or align
  )


class Run:
  """An execution of rows that can be saved and gone on with."""

  def __init__(
    self,
    execution: execution_lib.Execution,
    checkpoints: saving.Checkpoints | None = None,
    run: dict[str, Any] | None = None,
  ):
    """Goes on where there is something to go on with.

    Args:
      execution: of the rows.
      checkpoints: see `execute`.
      run: see `Checkpoints.resume`.

    Raises:
      RecoveryError: what is there is of another run.
    """
    self._execution = execution
    self._checkpoints = checkpoints
    self._log = metrics_lib.Log()  # of entered arrivals
    # What `loss` returned; it stands for the computations of an earlier
    # process, which are asked for again in the same order.
    self._losses = array.array('d')
    self._asked = 0  # how many of them by this process
    self._rows = 0  # processed
    self._observed = 0  # batches, by this process
    self._digest = hashlib.sha256()  # of them
    self._saved = checkpoints and checkpoints.resume(run)
    if self._saved:
      with saving.distrusted(self._saved):
        _FORM(self._saved.host, 'host')
      self._losses.extend(self._saved.host['losses']['loss'].tolist())
      self._log.extend(self._saved.host['log'])

  def loss(self, ticket: ledger.Ticket) -> float:
    """The loss of a ticket that is about to be answered."""
    if self._asked == len(self._losses):
      self._losses.append(self._execution.loss(ticket))
    self._asked += 1
    return self._losses[self._asked - 1]

  def consume(
    self, rows: Iterable, num_batches: int, observe, block
  ) -> tuple[update.ServerState, dict[str, np.ndarray], int]:
    """Computes rows as they come; see `execute`."""
    execution, log = self._execution, self._log
    observed = len(log)
    batches = int(sum(log.part().get('num_batches', ())))
    for row in rows:
      metrics = self._process(row)
      if metrics is None:
        continue
      log.append(metrics)
      batches += metrics['num_batches']
      full = len(log) % (block or 1) == 0
      if observe and full and batches < num_batches:
        fresh, observed = log.part(observed), len(log)
        if observe(batches, execution.state, fresh):
          break
        self._observed = batches
      if self._checkpoints and self._checkpoints.due(execution.version):
        self._save()
    if self._saved:
      raise recovery.RecoveryError(
        f'the checkpoint {self._saved.path} is of another run: it was saved '
        f'after {self._saved.host["rows"]} events, and there are only '
        f'{self._rows}'
      )
    # Only now: after the last arrival its round may still have been closed.
    if observe and batches == num_batches and observed < len(log):
      ended = observe(batches, execution.state, log.part(observed))
      self._observed = self._observed if ended else batches
    if self._checkpoints and self._rows:
      self._save()
    return execution.state, log.part(), len(log)

  def _process(self, row):
    """Computes a row, unless an earlier process did."""
    self._rows += 1
    self._digest.update(repr(tuple(row)).encode())
    if not self._saved:
      return self._execution.process(row)
    if self._rows == self._saved.host['rows']:
      self._restore()
    return None

  def _restore(self):
    host = self._saved.host
    if self._digest.hexdigest() != host['digest']:
      raise recovery.RecoveryError(
        f'the checkpoint {self._saved.path} is of another run: its events '
        'differ from this one'
      )
    holders = dict(host['holders'])
    like = self._execution.like(host['workers'], holders)
    with saving.distrusted(self._saved):
      self._execution.restore(self._saved.load(like), holders)
    self._saved = None

  def _save(self):
    arrays = self._execution.save()
    host = {
      'rows': self._rows,
      'digest': self._digest.hexdigest(),
      'losses': {'loss': np.array(self._losses)},
      'log': self._log.part(),
      'workers': sorted(arrays['workers']),
      'holders': [list(pair) for pair in self._execution.holders().items()],
    }
    self._checkpoints.save(
      self._execution.version, arrays, host, self._observed
    )
