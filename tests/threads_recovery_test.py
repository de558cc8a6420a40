"""A live run that is killed goes on with every row that it wrote."""

import contextlib
import functools
import os
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest

import ga_jax
from ga_jax import compression, policies, programs, rules
from ga_jax.executors import exact
from ga_jax.executors.saving import Checkpoints
from ga_jax.live import threads
from ga_jax.policies.parts.base import Kind
from ga_jax.record import trace
from ga_jax.record.checkpoints import CheckpointStore
from ga_jax.server import recovery
from tests import cases

WORKERS, TICKETS = 3, 100  # a ticket has two rows or more
ROW = trace.ROW_DTYPE.itemsize


class KilledError(Exception):
  """The process ends here, whatever it was about to do."""


def local_sgd(loss_fn):
  """Its workers keep a momentum, and what they did not send."""
  plain = programs.local_sgd(
    loss_fn, learning_rate=0.02, local_steps=2, local_momentum=0.5
  )
  return compression.compressed(plain, compression.topk(0.1))


class Case(NamedTuple):
  """What is run."""

  policy: str = 'asynchronous'
  rule: object = cases.rule('ga', 0.02)
  program: object = programs.gradient
  depth: int = 0


CASES = {
  'plain': Case(),
  'rounds, read ahead': Case('softsync', depth=1),
  'restarts': Case('k_sync'),
  'losses': Case('adasync'),
  'losses and restarts': Case('abs'),
  'states at the workers': Case(
    rule=rules.asgd(1.0, momentum=0.0), program=local_sgd
  ),
}


@functools.cache
def prepared(name):
  """The job of a case."""
  case = CASES[name]
  policy = policies.make(case.policy, WORKERS)
  job = cases.tiny_job(case.rule, policy, program=case.program)
  return job


class Life:
  """What the processes of one run leave, and what they compute."""

  def __init__(self, name, folder, every_updates=None):
    self.name = name
    self.rows_path = str(folder / 'rows')
    self.states = {}  # by batches, of the last process
    self._store = CheckpointStore(str(folder / 'checkpoints'))
    self._every = every_updates

  def rows(self):
    return trace.read_rows(self.rows_path)

  def size(self):
    with contextlib.suppress(FileNotFoundError):
      return os.path.getsize(self.rows_path)
    return 0

  def steps(self):
    return self._store.steps()

  def go_on(self, dies_at=float('inf'), **options):
    """A process; it is killed where the record has so many rows.

    Returns:
      Its result, or None where it was killed.
    """
    job = prepared(self.name)

    def clock_fn():  # asked before every event
      if self.size() >= dies_at * ROW:
        raise KilledError
      return time.monotonic()

    where = None
    if self._every:
      where = Checkpoints(self._store, every_updates=self._every)
    options = {
      'num_batches': TICKETS * job.worker_program.num_batches,
      **options,
    }
    run = threads.Threads(
      job,
      num_workers=WORKERS,
      live=ga_jax.Live(
        pipeline_depth=CASES[self.name].depth,
        trace_path=self.rows_path,
        checkpoints=where,
        recover=True,
      ),
      devices=jax.local_devices()[:2],
      clock_fn=clock_fn,
      **options,
    )
    self.states = {}
    with contextlib.suppress(KilledError):
      return run.run(self._observe, 1)

  def _observe(self, batches, state, metrics):
    del metrics
    self.states[batches] = state
    return False

  def tear(self, lost: int):
    """Cuts off the end of the record."""
    with open(self.rows_path, 'r+b') as file:
      file.truncate(len(self.rows()) * ROW - lost)


def assert_replays(life, result):
  """Every state of the last process, and what came out of it."""
  job = prepared(life.name)
  states = {}

  def observe(batches, state, metrics):
    del metrics
    states[batches] = state
    return False

  state, metrics, _ = exact.execute(job, result.trace, observe)
  assert cases.same_bits(state, result.state)
  assert cases.same_bits(metrics, result.metrics)
  assert len(life.states) > 1
  for batches, state in life.states.items():
    assert cases.same_bits(state, states[batches]), batches


@pytest.mark.parametrize(
  'every_updates', [pytest.param(None, marks=pytest.mark.slow), 15]
)
@pytest.mark.parametrize(
  'name',
  [  # losses and restarts: one case has both
    pytest.param(name, marks=pytest.mark.slow)
    if name in ('restarts', 'losses')
    else name
    for name in CASES
  ],
)
def test_killed_runs_go_on_with_every_row(name, every_updates, tmp_path):
  life = Life(name, tmp_path, every_updates)
  written = []
  for dies_at, lost in ((70, 0), (110, 1), (180, 3 * ROW + 7)):
    assert life.go_on(dies_at) is None
    rows = life.rows()
    assert rows[: len(written)] == written
    if not every_updates:  # else the checkpoint must not be beyond them
      life.tear(lost)
    written = life.rows()
  assert bool(life.steps()) == bool(every_updates)
  result = life.go_on()
  result.trace.verify()
  assert result.trace.events[: len(written)].tolist() == written
  assert result.executed == len(result.trace.applied())
  refused = dict(result.refused)
  refused.pop('late', 0)  # answers of workers that were restarted
  lost = result.trace.number_of(Kind.EXPIRE)
  assert sum(refused.values()) == lost
  # Where rounds take tickets back nothing need be out when it is killed.
  assert lost or name == 'restarts'
  assert set(refused) <= {recovery.UNRECORDED, 'restart'}
  assert_replays(life, result)


def test_rows_beyond_the_checkpoint_are_computed_again(tmp_path):
  """Not from the checkpoint alone: nothing that was applied is lost."""
  life = Life('plain', tmp_path, every_updates=20)
  assert life.go_on(dies_at=150) is None
  arrived = [row for row in life.rows() if row[1] == Kind.ARRIVE]
  newest = life.steps()[-1]
  assert newest < len(arrived)
  # The next one dies before its workers do anything.
  assert life.go_on(dies_at=151) is None
  assert sorted(life.states) == list(range(newest + 1, len(arrived) + 1))
  result = life.go_on()
  assert result.trace.applied()[: len(arrived)].tolist() == arrived
  assert_replays(life, result)


def test_workers_that_died_are_hired_again(tmp_path):
  life = Life('plain', tmp_path)

  def delay(worker_id, seconds):
    if worker_id != 1:
      raise RuntimeError('out of memory, say')
    return 0.0

  assert life.go_on(dies_at=60, delay_fn=delay) is None
  left = [row[2] for row in life.rows() if row[1] == Kind.LEAVE]
  assert sorted(left) == [0, 2]
  result = life.go_on()
  result.trace.verify()
  assert result.trace.num_workers == WORKERS
  joined = [row[2] for row in life.rows() if row[1] == Kind.JOIN]
  assert sorted(joined) == [0, 0, 1, 2, 2]
  assert_replays(life, result)


def test_forged_answers_bring_no_workers(tmp_path):
  life = Life('plain', tmp_path)

  def deliver(deliver, message):
    ticket = message.ticket._replace(worker_id=message.ticket.worker_id + 50)
    deliver(message._replace(ticket=ticket))
    deliver(message)

  assert life.go_on(dies_at=90, deliver_fn=deliver) is None
  assert any(row[2] >= 50 for row in life.rows())
  result = life.go_on()
  result.trace.verify()
  assert result.trace.num_workers == WORKERS
  assert result.refused['forged'] > 5
  assert_replays(life, result)


def test_a_run_that_was_finished_is_only_read(tmp_path):
  life = Life('rounds, read ahead', tmp_path, every_updates=15)
  result = life.go_on()
  size = len(life.rows())
  again = life.go_on()
  assert len(life.rows()) == size
  assert cases.same_bits(again.state, result.state)
  assert cases.same_bits(again.metrics, result.metrics)
  assert not life.states


def test_other_records_are_refused_and_kept(tmp_path):
  life = Life('plain', tmp_path, every_updates=15)
  assert life.go_on(dies_at=150) is None
  rows = life.rows()
  other = Life('restarts', tmp_path)
  with pytest.raises(recovery.RecoveryError, match=r'row \d+ of the record'):
    other.go_on()
  assert life.rows() == rows
  life.tear((len(rows) - 3) * ROW)
  with pytest.raises(recovery.RecoveryError, match=r'holds 3 rows, not \d+'):
    life.go_on()
  assert len(life.rows()) == 3


def test_checkpoints_of_another_run_are_refused(tmp_path):
  life = Life('plain', tmp_path, every_updates=20)
  life.go_on(dies_at=80)
  size, steps = life.size(), life.steps()
  assert steps
  with pytest.raises(ValueError, match=r'num_batches \(100, not 99\): '):
    life.go_on(num_batches=99)
  life.name = 'restarts'
  with pytest.raises(ValueError, match=r'of a run with another policy: '):
    life.go_on()
  assert (life.size(), life.steps()) == (size, steps)


def test_only_a_run_with_a_record_can_go_on():
  job = prepared('plain')
  with pytest.raises(ValueError, match='give a trace_path'):
    threads.Threads(
      job, num_workers=1, num_batches=4, live=ga_jax.Live(recover=True)
    )


def test_times_of_events_grow_though_the_clock_stands_still():
  """Also where the clock stands still."""
  job = prepared('plain')
  run = threads.Threads(
    job, num_workers=WORKERS, num_batches=40, clock_fn=lambda: 7.0
  )
  times = run.run().trace.events['time']
  assert (np.diff(times) > 0).all()
