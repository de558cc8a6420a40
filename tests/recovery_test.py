"""A ledger that is told its record again arrives at the same place."""

import copy
import functools
from typing import NamedTuple

import numpy as np
import pytest

from ga_jax import policies
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.record import trace
from ga_jax.server import ledger, recovery

WORKERS, BATCHES, PER_TICKET = 4, 101, 2
SEEDS = (0, 1)
CAUSES = ('lease', 'non-finite', 'misshapen', 'restart')


class Played(NamedTuple):
  """A run: its record, and the ledger as it was after each event."""

  rows: list[tuple]  # as a file keeps them
  saves: dict[int, dict]  # by the number of rows
  losses: dict[int, float]  # by ticket_id


def ledger_of(name: str, depth: int = 0) -> ledger.Ledger:
  return ledger.Ledger(
    policies.make(name, WORKERS),
    num_batches=BATCHES,
    batches_per_ticket=PER_TICKET,
    depth=depth,
  )


def as_kept(rows) -> list[tuple]:
  return np.array(rows, trace.EVENT_DTYPE).tolist()


class Player:
  """Does to a ledger what a live run may do, in any order, by a seed."""

  def __init__(self, book: ledger.Ledger, seed: int):
    self.book = book
    self.rng = np.random.default_rng(seed)
    self.now = 0.0
    self.saves, self.losses, self.old = {}, {}, []

  def play(self) -> Played:
    for worker_id in range(WORKERS):
      self.told(self.book.join, worker_id)
    steps = 0
    while not self.book.done:
      steps += 1
      self.step(calm=steps > 250)
      assert steps < 900
    if self.book.finish(self.tick()):
      self.saves[self.book.num_rows] = self.book.save()
    return Played(as_kept(self.book.rows()), self.saves, self.losses)

  def step(self, calm: bool):
    """Something happens."""
    waiting = sorted(set(self.book.ready)) if self.book.has_batches else []
    if waiting and self.rng.random() < 0.7:
      ticket = self.told(self.book.ticket, self.any_of(waiting), reserves=True)
      self.losses[ticket.ticket_id] = float(self.rng.exponential())
      self.old.append(ticket)
    elif not calm and self.rng.random() < 0.3:
      self.accident()
    elif self.book.outstanding:
      self.arrive(self.any_of(self.book.outstanding.values()))

  def accident(self):
    """A worker joins, leaves or is late, an answer is doubled or forged."""
    what, book = self.rng.random(), self.book
    gone = sorted(set(range(WORKERS + 2)) - book.workers)
    if what < 0.2 and len(book.workers) > 1:
      self.told(book.leave, self.any_of(sorted(book.workers)))
    elif what < 0.4 and gone:
      self.told(book.join, self.any_of(gone))
    elif what < 0.6 and book.outstanding:
      ticket = self.any_of(book.outstanding.values())
      self.told(book.expire, ticket, cause=str(self.rng.choice(CAUSES)))
    elif self.old:
      ticket = self.any_of(self.old)
      if what < 0.8:
        ticket = ticket._replace(
          **self.any_of(
            [
              {'version': ticket.version + 1},
              {'ticket_id': ticket.ticket_id + 10**6},
              {'ticket_id': -1},
              {'worker_id': ticket.worker_id + 50},
              {'attempt': 7},
            ]
          )
        )
      self.arrive(ticket)

  def any_of(self, values):
    values = list(values)
    return values[self.rng.integers(len(values))]

  def arrive(self, ticket):
    loss = self.losses.get(ticket.ticket_id, 1.0)
    self.told(self.book.arrive, ticket, loss=loss)

  def tick(self) -> float:
    self.now += float(self.rng.exponential())
    return self.now

  def told(self, event, argument, *, reserves=False, **more):
    """An event at a time of its own; the ledger after it is kept."""
    result = event(argument, time=self.tick(), **more)
    if reserves:
      self.book.reserve(argument)
    self.saves[self.book.num_rows] = self.book.save()
    return result


# (policy, snapshots read ahead)
EVERY = [
  (name, depth)
  for name in policies.POLICIES
  for depth in (0, 2)
  if not depth or policies.make(name, WORKERS).pipelines
]


@functools.cache
def played(name: str, depth: int, seed: int) -> Played:
  return Player(ledger_of(name, depth), seed).play()


def followed(name, depth, run, rows, book=None):
  """A ledger that was told rows, and the rows it wrote."""
  book, written = book or ledger_of(name, depth), []
  recovery.follow(
    book,
    rows,
    process=written.append,
    loss=lambda ticket: run.losses[ticket.ticket_id],
  )
  return book, as_kept(written)


def assert_same_place(book, saved):
  """Everything but why tickets expired, of which there are as many."""
  now, saved = book.save(), copy.deepcopy(saved)
  refused, told = now.pop('refused'), saved.pop('refused')
  assert now == saved
  expired = sum(told.pop(cause, 0) for cause in CAUSES)
  assert refused.pop(recovery.UNRECORDED, 0) == expired
  assert refused == told


def torn_leave(rows, cut) -> bool:
  """Whether a record ends with the first of the rows of a leave."""
  last, after = rows[cut - 1], rows[cut]
  return (
    last[1] == Kind.EXPIRE
    and after[1] in (Kind.EXPIRE, Kind.LEAVE)
    and (after[0], after[2]) == (last[0], last[2])
    and rows[cut - 2][:3] != last[:3]
  )


@pytest.mark.parametrize(('name', 'depth'), EVERY)
def test_any_prefix_of_a_record_restores_the_ledger(name, depth):
  for seed in SEEDS:
    run = played(name, depth, seed)
    whole, written = followed(name, depth, run, run.rows)
    assert written == run.rows
    assert_same_place(whole, run.saves[len(run.rows)])
    rng = np.random.default_rng(seed)
    torn = [n for n in range(1, len(run.rows)) if n not in run.saves]
    cuts = {*rng.choice(len(run.rows), 8).tolist(), *rng.permutation(torn)[:6]}
    for cut in map(int, cuts):
      rows = run.rows[:cut]
      if cut and torn_leave(run.rows, cut):
        continue  # see below
      book, written = followed(name, depth, run, rows)
      end = min(n for n in (0, *run.saves) if n >= cut)
      assert written == run.rows[:end]  # the rest of the event too
      if end:
        assert_same_place(book, run.saves[end])
      _, after = followed(name, depth, run, run.rows[end:], book)
      assert after == run.rows[end:]
      assert_same_place(book, run.saves[len(run.rows)])


def test_the_runs_played_here_have_every_kind_of_event():
  refused = set()
  for name, depth in EVERY:
    kinds, torn, leaves = set(), 0, 0
    for seed in SEEDS:
      run = played(name, depth, seed)
      kinds |= {row[1] for row in run.rows}
      torn += sum(n not in run.saves for n in range(1, len(run.rows)))
      leaves += sum(torn_leave(run.rows, n) for n in range(2, len(run.rows)))
      refused |= set(run.saves[len(run.rows)]['refused'])
    wanted = {Kind.ISSUE, Kind.ARRIVE, Kind.EXPIRE, Kind.JOIN, Kind.LEAVE}
    assert wanted <= kinds
    assert torn >= leaves > 0
    # More rows of an event: tickets that are revoked, rounds that are closed.
    assert Kind.RESTART in kinds or name not in ('k_sync', 'ringmaster_stops')
    assert Kind.CLOSE in kinds or name != 'synchronous'
  assert refused == {'forged', 'late', 'doubled', *CAUSES}


@pytest.mark.parametrize(('name', 'depth'), EVERY)
def test_a_leave_that_was_cut_short_is_recovered_as_an_expiry(name, depth):
  """No ticket is lost by it: the run goes on to its end, and is right."""
  for seed in SEEDS:
    run = played(name, depth, seed)
    cuts = [n for n in range(2, len(run.rows)) if torn_leave(run.rows, n)]
    for cut in cuts[:2]:
      book, written = followed(name, depth, run, run.rows[:cut])
      assert written[:cut] == run.rows[:cut]
      time, _, worker_id, *_ = written[cut - 1]
      assert worker_id in book.workers
      player = Player(book, seed)
      player.now, player.losses = time, dict(run.losses)
      while not book.done:
        player.step(calm=True)
      book.finish(player.tick())
      book.trace().verify()


def test_another_run_is_refused_and_its_row_named():
  for name, other in (
    ('asynchronous', 'softsync'),
    ('k_sync', 'synchronous'),
    ('abs', 'synchronous'),
    ('ssp', 'asynchronous'),
  ):
    run = played(other, 0, 0)
    before = []
    with pytest.raises(recovery.RecoveryError, match=r'^row \d+ of') as error:
      recovery.follow(
        ledger_of(name),
        run.rows,
        process=before.append,
        loss=lambda ticket, run=run: run.losses[ticket.ticket_id],
      )
    number = int(str(error.value).split()[1])
    assert as_kept(before) == run.rows[: len(before)]  # nothing else was done
    assert len(before) == number


def changed(row, **fields):
  values = dict(zip(trace.EVENT_DTYPE.names, row, strict=True))
  return tuple({**values, **fields}.values())


@pytest.mark.parametrize(
  ('kind', 'fields', 'reason'),
  [
    (Kind.JOIN, {'worker_id': 0}, 'worker 0 is already here'),
    (Kind.LEAVE, {'worker_id': 99}, 'worker 99 is not here'),
    (Kind.EXPIRE, {'ticket_id': 10**9}, 'is not outstanding'),
    (Kind.ISSUE, {'first_batch': 3}, 'would have written'),
    (Kind.ISSUE, {'worker_id': 99}, 'would have written nothing'),
    (Kind.ISSUE, {'event': Kind.RESTART}, 'would have written nothing'),
    (Kind.ISSUE, {'event': Kind.CLOSE}, 'queued or outstanding'),
    (Kind.ISSUE, {'event': 99}, 'would have written nothing'),
    (Kind.ARRIVE, {'action': Action.DISCARD}, 'would have written'),
    (Kind.ARRIVE, {'weight': 0.5}, 'would have written'),
    (Kind.ARRIVE, {'staleness': 77}, 'would have written'),
    (Kind.ARRIVE, {'time': float('nan')}, 'would have written'),
    (Kind.ARRIVE, {'time': 0.0}, r'time 0\.0 after \d'),
  ],
)
def test_an_impossible_row_is_refused_by_number(kind, fields, reason):
  run = played('asynchronous', 0, 0)
  events = [row[1] for row in run.rows]
  last = len(events) - 1 - events[::-1].index(kind)
  rows = list(run.rows)
  rows[last] = changed(rows[last], **fields)
  with pytest.raises(recovery.RecoveryError, match=reason) as error:
    followed('asynchronous', 0, run, rows)
  assert str(error.value).startswith(f'row {last} of the record')


def test_rows_are_counted_from_the_start_of_the_record():
  """Also where a ledger goes on from a checkpoint."""
  run = played('abs', 0, 1)
  number = sorted(run.saves)[len(run.saves) // 2]
  book = ledger_of('abs')
  book.restore(run.saves[number])
  rows = list(run.rows[number:])
  rows[4] = changed(rows[4], time=0.0)
  with pytest.raises(recovery.RecoveryError, match=f'^row {number + 4} of'):
    followed('abs', 0, run, rows, book)
  book.restore(run.saves[number])
  followed('abs', 0, run, run.rows[number:], book)
  assert_same_place_from(book, run, number)


def assert_same_place_from(book, run, number):
  """Causes that the checkpoint knows stay known."""
  saved = run.saves[len(run.rows)]
  before = run.saves[number]['refused']
  now = book.save()
  assert now['outstanding'] == saved['outstanding']
  for cause in CAUSES:
    assert now['refused'].get(cause) == before.get(cause)
  later = sum(
    saved['refused'].get(cause, 0) - before.get(cause, 0) for cause in CAUSES
  )
  assert now['refused'].get(recovery.UNRECORDED, 0) == later


# The file.


def test_a_torn_tail_of_a_record_is_cut_off(tmp_path):
  run = played('k_sync', 0, 0)
  path, size = str(tmp_path / 'rows'), trace.ROW_DTYPE.itemsize
  assert trace.read_rows(path) == []
  writer = trace.TraceWriter(path)
  writer.write(run.rows)
  writer.close()
  assert trace.read_rows(path) == run.rows
  assert trace.read_rows(path, 7) == run.rows[7:]
  assert trace.read_rows(path, len(run.rows)) == []
  with pytest.raises(trace.TraceError, match=f'holds {len(run.rows)} rows'):
    trace.read_rows(path, len(run.rows) + 1)
  for lost in (1, size - 1, size, size + 1):
    with open(path, 'r+b') as file:
      file.truncate(len(run.rows) * size - lost)
    kept = run.rows[: len(run.rows) - -(-lost // size)]
    assert trace.read_rows(path) == kept
  # What was torn is cut off, and the rest is written behind what was whole.
  writer = trace.TraceWriter(path, len(kept))
  writer.write(run.rows[len(kept) :])
  writer.close()
  assert trace.read_rows(path) == run.rows
  assert writer.trace(WORKERS, BATCHES).events.tolist() == run.rows


@pytest.mark.parametrize('bytes_left', [0, 1, 30, 49])
def test_zeros_at_the_end_are_no_rows(bytes_left, tmp_path):
  """A file system may have the length of a file, and not its last blocks."""
  run = played('asynchronous', 0, 0)
  path, size = str(tmp_path / 'rows'), trace.ROW_DTYPE.itemsize
  writer = trace.TraceWriter(path)
  writer.write(run.rows)
  writer.close()
  with open(path, 'r+b') as file:
    file.truncate(100 * size + bytes_left)
    file.truncate(120 * size)  # longer again
  kept = trace.read_rows(path)
  assert kept == run.rows[: len(kept)]
  assert 99 <= len(kept) <= 100
