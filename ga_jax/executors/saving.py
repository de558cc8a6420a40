"""When a run is saved, and what it goes on with."""

import contextlib
import hashlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ga_jax.guards import checks, forms
from ga_jax.record import checkpoints, values
from ga_jax.server import recovery, statistics

_SHORT = 40  # characters of a value that a message shows

_NAMED = forms.mapped(forms.anything)
_FORM = forms.fields(
  {
    'run': _NAMED,
    'about': forms.optional(_NAMED),
    'observed': forms.integer(0),
  },
  needed=(),
  others=forms.anything,
)  # of a host value, whatever made the run


class Checkpoints:
  """A store, and how often a run is written to it.

  It may be sent to the process that makes the run (pickled), before that.
  """

  def __init__(
    self,
    store: checkpoints.CheckpointStore,
    every_updates: int | None = None,
    every_seconds: float | None = None,
    clock_fn: Callable[[], float] = time.monotonic,
    about: dict[str, Any] | None = None,
  ):
    """Says when.

    A run goes on only with a checkpoint of its own: its seed, `hparams`,
    `stats_momentum`, numbers of batches and (simulated) of workers, policy and
    trace are compared with those that it was saved with. What is inside a rule,
    a loss or a batch function cannot be seen, as `ga_jax.gap_aware(0.01)`'s
    learning rate: give it as `about`, or as `hparams`.

    Args:
      store: where to.
      every_updates: server updates between two checkpoints, at least 1.
      every_seconds: seconds between two checkpoints, positive. With neither,
        only what a run ends with is saved.
      clock_fn: seconds.
      about: what else makes the run what it is, by name, as JSON knows it;
        saved with it, and compared by == where it goes on.

    Raises:
      TypeError: something in `about` is not known to JSON; names it.
      ValueError: a number is out of its range.
    """
    if every_updates is not None:
      every_updates = checks.integer('every_updates', every_updates, 1)
    if every_seconds is not None:
      every_seconds = checks.number(
        'every_seconds', every_seconds, above=0.0, finite=False
      )
    _, arrays = values.split(about, 'about')
    if arrays:
      raise TypeError(
        'about must hold no arrays: they cannot be compared by =='
      )
    self._store = store
    self._every_updates = every_updates
    self._every_seconds = every_seconds
    self._clock_fn = clock_fn
    self._about = about
    self._run = {}  # see `resume`
    self._updates = 0  # where it was saved last
    self._observed = 0  # batches, by an earlier process
    self._time = clock_fn()  # of then; set again by `resume`

  def owned(self):
    """Keeps others out; see `checkpoints.CheckpointStore.owned`."""
    return self._store.owned()

  def due(self, updates: int) -> bool:
    """Whether a run that made so many updates is to be saved now."""
    every, seconds = self._every_updates, self._every_seconds
    if every is not None and updates // every > self._updates // every:
      return True
    return seconds is not None and self._clock_fn() - self._time >= seconds

  def save(
    self, updates: int, arrays: Any, host: dict[str, Any], observed: int
  ):
    """Saves a run; see `checkpoints.CheckpointStore.save`.

    Args:
      updates: that were made.
      arrays: see there.
      host: see there.
      observed: batches that whoever observes the run was told of; kept, so that
        what was written down of them can be missed.
    """
    kept = {**host, 'run': self._run, 'about': self._about}
    kept['observed'] = max(observed, self._observed)
    self._store.save(updates, arrays, kept)
    self.put_off(updates)

  def put_off(self, updates: int):
    """Waits for the next time, as if this one had been saved."""
    self._updates, self._time = updates, self._clock_fn()

  def resume(self, run: dict[str, Any] | None = None):
    """What there is to go on with, after a check that it is of this run.

    Args:
      run: what a resumed run must have in common, by name; saved with every
        checkpoint from now on. What an older version did not save is not
        compared.

    Returns:
      A `checkpoints.Checkpoint`; None where nothing was saved yet.

    Raises:
      RecoveryError: the checkpoint is of another run; names what differs.
    """
    self._run, self._time = run or {}, self._clock_fn()
    newest = self._store.newest()
    if newest is None:
      return None
    with distrusted(newest):
      _FORM(newest.host, 'host')
    was = newest.host.get('run', {})
    others = [
      _other(name, was[name], value)
      for name, value in self._run.items()
      if name in was and was[name] != value
    ]
    about, now = newest.host.get('about'), self._about
    if None not in (about, now):
      others += [
        _other(name, about.get(name), now.get(name))
        for name in about | now
        if about.get(name) != now.get(name)
      ]
    if others:
      raise recovery.RecoveryError(
        f'{newest.path} is of a run with another {", ".join(others)}: resume '
        'with the same arguments, or begin in an empty folder'
      )
    self._updates = newest.step
    self._observed = newest.host.get('observed', 0)
    return newest


@contextlib.contextmanager
def distrusted(saved: checkpoints.Checkpoint):
  """Goes on with what a checkpoint holds, whoever wrote it.

  Args:
    saved: the checkpoint.

  Raises:
    RecoveryError: it holds something else than it must.
  """
  try:
    yield
  except recovery.RecoveryError:
    raise
  except ValueError as error:  # of another form or model, or damaged
    raise recovery.RecoveryError(
      f'{saved.path} is of no run that can go on here: {error}'
    ) from error


def _other(name: str, was: Any, now: Any) -> str:
  """What differs, with its values where they are short."""
  if max(len(repr(was)), len(repr(now))) > _SHORT:
    return name
  return f'{name} ({was!r}, not {now!r})'


def of_job(job, **more) -> dict[str, Any]:
  """What a run of a job must have in common to go on; see `resume`.

  Args:
    job: a `job.Job`.
    **more: what else.
  """
  hparams = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(job.hparams):
    array = np.asarray(leaf)
    hparams.update(f'{path} {array.dtype} {array.shape}'.encode())
    hparams.update(array.tobytes())
  return {
    'seed': int(job.seed),
    'stats_momentum': _of_fold(job.fold),
    'layer_metrics': job.layer_metrics,
    'hparams': hparams.hexdigest(),
    **more,
  }


def _of_fold(fold_fn) -> float | str:
  """The momentum of statistics, or the name of what folds them."""
  if isinstance(fold_fn, statistics.Averages):
    return fold_fn.momentum
  return getattr(fold_fn, '__qualname__', type(fold_fn).__name__)


def of_trace(job, trace, **more) -> dict[str, Any]:
  """As `of_job`, where the trace is known."""
  return of_job(
    job,
    num_workers=int(trace.num_workers),
    num_batches=int(trace.num_batches),
    **more,
  )


def of_policy(policy) -> str:
  """What can be told of a policy: its name and how it makes rounds."""
  name = getattr(policy.decide, '__qualname__', type(policy.decide).__name__)
  return (
    f'{name}(accumulates={policy.accumulates}, needs_loss={policy.needs_loss}, '
    f'round_size={policy.round_size})'
  )


def digest(trace) -> str:
  """The SHA-256 of a trace's events, in hexadecimal."""
  return hashlib.sha256(trace.events.tobytes()).hexdigest()
