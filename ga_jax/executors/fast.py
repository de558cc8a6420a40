"""The fast executor: blocks of whole events in compiled code.

Gradient, update and snapshot buffer of a block of arrivals are one program, see
`blocks`. It is the same mathematics as the exact executor with other fusion, so
equal to rounding only, and rounding grows along a trajectory.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ga_jax.executors import blocks, lengths, saving, slots
from ga_jax.guards import forms, memory
from ga_jax.job import job as job_lib
from ga_jax.job import metrics as metrics_lib
from ga_jax.job import source
from ga_jax.server import update

_FORM = forms.fields(
  {'done': forms.integer(0), 'metrics': metrics_lib.check_columns},
  others=forms.anything,
)  # of the host value of a checkpoint


def execute(
  job: job_lib.Job,
  trace,
  observe: Callable[[int, update.ServerState, Any], bool] | None = None,
  block: int | None = None,
  align: int | None = None,
  checkpoints: saving.Checkpoints | None = None,
) -> tuple[update.ServerState, dict[str, np.ndarray], int]:
  """Computes a trace.

  Args:
    job: what to compute.
    trace: a `Trace`.
    observe: `observe(batches_so_far, state, metrics) -> stop`, called after
      each block with that block's metrics as device arrays. The state is
      donated to the next block: it must be used before `observe` returns.
    block: arrivals per block; by default `lengths.block_length` decides. It is
      cut by `lengths.parts`.
    align: see `lengths.block_length`.
    checkpoints: where to go on from the newest checkpoint, if there is one, and
      to save at ends of blocks, after `observe`. The result has the bits of a
      run that was never interrupted; `observe` is called for the blocks that
      are computed now. The job must be the same: `Checkpoints` says what of it
      is compared.

  Returns:
    The final state, metrics per executed arrival, and how many there are.

  Raises:
    RecoveryError: the newest checkpoint is of another run or block length.
    ValueError: its parameters have other shapes.
  """
  source.expect(job.source, trace)
  plan = blocks.plan_of(job, trace)
  _check_memory(job, plan, trace.num_workers)
  unrolled = lengths.unrolled_convolutions(job)
  length = block or lengths.block_length(unrolled, align)
  run_block = blocks.block_of(job, plan.reset.any(), unrolled)
  progress = _Progress(plan, checkpoints)
  carry = progress.resume(job, trace, length)
  held, key = plan.arrivals['num_batches'], jax.random.key(job.seed)
  for part in lengths.parts(held, length, progress.done):
    steps = blocks.steps_of(job, plan, part)
    carry, metrics = run_block(
      carry, steps, job.hparams, job.source.resident, key
    )
    batches = progress.add(metrics, part)
    if observe:
      if observe(batches, carry.state, metrics):
        break
      progress.observed = batches
    progress.save_where_due(carry)
  progress.save(carry)
  state = carry.state
  if progress.done == len(held):
    state = blocks.left_at_end(state, plan)
  return state, progress.metrics(), progress.done


def _check_memory(job: job_lib.Job, plan: slots.Plan, num_workers: int):
  """Raises a TooLargeError where the versions alive at once do not fit."""
  if jax.default_backend() == 'cpu':  # elsewhere they are in another memory
    leaves = jax.tree.leaves((job.params, job.model_state))
    needed = plan.rows * sum(getattr(leaf, 'nbytes', 0) for leaf in leaves)
    what = f'holding {plan.rows} versions of the parameters'
    memory.check('num_workers', num_workers, needed, what)


class _Progress:
  """How far a run is, and its checkpoints.

  Attributes:
    done: arrivals that are computed.
    observed: batches that were, by this process.
  """

  def __init__(self, plan: slots.Plan, checkpoints: saving.Checkpoints | None):
    self.done = self.observed = 0
    self._plan = plan
    self._checkpoints = checkpoints
    self._log = metrics_lib.Log()  # of all blocks but the newest
    self._newest = {}  # metrics, on the device that may still compute them
    self._saved = 0  # arrivals that the newest checkpoint holds
    self._batches = np.cumsum(plan.arrivals['num_batches'])
    self._versions = np.cumsum(plan.close)

  def resume(self, job: job_lib.Job, trace, length: int) -> blocks.Carry:
    """What the run begins or goes on with; see `execute`."""
    carry = blocks.first_carry(job, self._plan, trace.num_workers)
    run = {
      **saving.of_trace(job, trace, executor='fast'),
      'trace': saving.digest(trace),
      'block length': length,
    }
    if self._checkpoints and (saved := self._checkpoints.resume(run)):
      with saving.distrusted(saved):
        _FORM(saved.host, 'host')
        carry = saved.load(carry)
      self._log.extend(saved.host['metrics'])
      self.done = self._saved = saved.host['done']
    return carry

  def add(self, metrics: dict[str, Any], part: slice) -> int:
    """Keeps the metrics of a block, with its times; returns batches so far."""
    metrics['time'] = self._plan.arrivals['time'][part]
    self._log.extend(self._newest)
    self._newest = metrics
    self.done = part.stop
    return int(self._batches[self.done - 1])

  def save_where_due(self, carry: blocks.Carry):
    """Saves the run where a checkpoint is due."""
    if self._checkpoints and self._checkpoints.due(self._version()):
      self.save(carry)

  def save(self, carry: blocks.Carry):
    """Saves the run where there is something new."""
    if self._checkpoints and self.done > self._saved:
      host = {'done': self.done, 'metrics': self.metrics()}
      self._checkpoints.save(self._version(), carry, host, self.observed)
      self._saved = self.done

  def metrics(self) -> dict[str, np.ndarray]:
    """Those of all arrivals so far, on the host."""
    self._log.extend(self._newest)
    self._newest = {}
    return self._log.part()

  def _version(self) -> int:
    return int(self._versions[self.done - 1])
