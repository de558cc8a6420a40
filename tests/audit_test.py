"""What a trace must keep to: true ones pass, and a changed cell is told."""

import collections

import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, policies
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.record import audit, trace
from ga_jax.server import ledger
from tests import cluster

COLUMNS = trace.EVENT_DTYPE.names
SENT = ('worker_id', 'ticket_id', 'first_batch', 'num_batches', 'attempt')
WORKERS, BATCHES = 3, 12


def true_trace(name, seed, batches_per_ticket=1, streams=0):
  """Of a run in which workers leave, join, stall and answer too late."""
  rng = np.random.default_rng(seed)
  book = cluster.play(
    policies.make(name, WORKERS),
    cluster.stalling(seed),
    num_workers=WORKERS,
    num_batches=BATCHES,
    batches_per_ticket=batches_per_ticket,
    streams=streams,
    loss_fn=lambda ticket: rng.random(),
    accidents=rng,
  )
  return book.trace()


def other_values(events, column, i):
  """What a cell might be changed to: neighbours, edges, and other rows'."""
  own = events[column][i]
  dtype = events.dtype[column]
  if dtype.kind == 'f':
    edges = [np.nan, np.inf, -np.inf, -1.0, 0.0, own + 1e-3, own - 1e-3, 1e30]
  else:
    limits = np.iinfo(dtype)
    edges = [-1, 0, 1, int(own) + 1, int(own) - 1, limits.min, limits.max, 4]
    edges = [value for value in edges if limits.min <= value <= limits.max]
  values = np.concatenate([np.array(edges, dtype), np.unique(events[column])])
  return [v for v in np.unique(values) if v != own]


def changed(run, column, i, value):
  events = run.events.copy()
  events[column][i] = value
  return run._replace(events=events)


def told(run, complete=True):
  try:
    run.verify(complete)
  except trace.TraceError:
    return True
  return False


def may_pass(run, column, i, value):
  """Whether a changed cell makes another record that may be true."""
  events = run.events
  row = events[i]
  kind, worker = row['event'], row['worker_id']
  refused = kind == Kind.ARRIVE and row['action'] == Action.REFUSE
  if column == 'time':
    last = len(events) - 1
    low = events['time'][i - 1] if i else -np.inf
    high = events['time'][i + 1] if i < last else np.inf
    return low <= value <= high
  if column == 'weight':
    return kind == Kind.ARRIVE and not refused and value >= 0
  if refused:  # these are what a stranger sent
    return column in SENT
  if column == 'event':
    return {int(kind), int(value)} == {Kind.RESTART, Kind.EXPIRE}
  if column == 'worker_id' and kind in (Kind.JOIN, Kind.LEAVE):
    after = events[i + 1 :]
    idle = [np.all(after['worker_id'] != w) for w in (worker, value)]
    return any(idle) and 0 <= value < run.num_workers
  return False


@pytest.mark.parametrize(
  'number', [60, pytest.param(None, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('name', sorted(policies.POLICIES))
def test_verify_finds_a_changed_cell(name, number):
  """Every cell, or some of them, of two runs."""
  silent, tried = collections.Counter(), 0
  for seed, per_ticket in ((1, 1), (2, 2)):
    run = true_trace(name, seed, per_ticket)
    run.verify()
    changes = [
      (column, i, value)
      for column in COLUMNS
      for i in range(len(run.events))
      for value in other_values(run.events, column, i)
    ]
    if number is not None:
      rng = np.random.default_rng(seed)
      places = rng.choice(len(changes), number, replace=False)
      changes = [changes[place] for place in places]
    tried += len(changes)
    for column, i, value in changes:
      if not told(changed(run, column, i, value)):
        assert may_pass(run, column, i, value), (column, i, value)
        silent[column] += 1
  assert silent.total() < 0.2 * tried, silent


@pytest.mark.parametrize('name', sorted(policies.POLICIES))
def test_verify_accepts_true_traces_and_their_beginnings(name):
  for seed in range(4):
    for given in ({}, {'batches_per_ticket': 3}, {'streams': 4}):
      run = true_trace(name, seed, **given)
      run.verify()
      for end in range(0, len(run.events), 5):
        run._replace(events=run.events[:end]).verify(complete=False)


def a_trace():
  """0: JOIN 0, 1: JOIN 1, 2: ISSUE 0, 3: ISSUE 1, 4: ARRIVE, 5: ISSUE, ..."""
  return ga_jax.schedule(
    policies.asynchronous(), clocks.constant(), num_workers=2, num_batches=4
  )


@pytest.mark.parametrize(
  ('column', 'row', 'value', 'message'),
  [
    ('worker_id', 4, 2147483647, 'worker 2147483647 is none of 2'),
    ('worker_id', 0, 2, 'worker 2 is none of 2'),
    ('worker_id', 0, 1, 'row 1 .* the worker is here already'),
    ('worker_id', 1, -1, 'worker -1 is none of 2'),
    ('event', 0, 7, 'row 0 .* event 7 is none'),
    ('event', 4, -1, 'event -1 is none'),
    ('event', 0, Kind.LEAVE, 'the worker is not here'),
    ('action', 4, 5, 'action 5 is none of this event'),
    ('action', 2, Action.APPLY, 'action 1 is none of this event'),
    ('action', 4, Action.REFUSE, 'weight 1.0'),
    ('ticket_id', 0, 0, 'it concerns no ticket and no batch, but has some'),
    ('first_batch', 0, 0, 'it concerns no ticket and no batch, but has some'),
    ('first_batch', 2, 4, 'batches 4 and following, 1 of them, are outside'),
    ('first_batch', 2, -1, 'batches -1 and following'),
    ('first_batch', 3, 0, 'batch 0 is issued twice'),
    ('num_batches', 2, 0, 'batches 0 and following, 0 of them'),
    ('num_batches', 2, 2, '2 batches from 0|1 batches from 1'),
    ('attempt', 2, 1, 'attempt 1 of batch 0, not 0'),
    ('weight', 4, np.nan, 'weight nan'),
    ('weight', 4, -1, 'weight -1'),
    ('weight', 2, 0.5, 'weight 0.5'),
    ('time', -1, np.inf, 'time inf'),
    ('version', 2, -1, 'read version -1 of 0'),
    ('version', 4, -1, 'not the answer to an outstanding ticket'),
    ('staleness', 4, -1, 'staleness -1, server 0, read 0'),
  ],
)
def test_verify_names_what_is_wrong_in_each_column(column, row, value, message):
  with pytest.raises(trace.TraceError, match=message):
    changed(a_trace(), column, row, value).verify()


def test_verify_follows_members_rounds_and_revoked_tickets():
  book = ledger.Ledger(policies.synchronous(), num_batches=4)
  for worker in range(3):
    book.join(worker)
  tickets = [book.ticket(worker, 1.0) for worker in range(3)]
  book.arrive(tickets[0], 2.0)
  book.leave(2, 3.0)
  run = book.trace()
  events = run.events
  kinds = [Kind(kind).name for kind in events['event'].tolist()]
  assert kinds[6:] == ['ARRIVE', 'EXPIRE', 'LEAVE']
  run.verify(complete=False)
  for rows, message in (
    ([*range(7), 8], 'row 7 .* the worker leaves with a ticket'),
    ([0, 1, *range(3, 9)], r'row 4 .*worker 2.* the worker is not here'),
    ([*range(9), 8], 'row 9 .* the worker is not here'),
    ([*range(8), 7, 8], 'row 8 .* revoked but not outstanding'),
    ([0, 1, 2, 4, 3], 'row 3 .* ticket 0 is the next to be issued'),
  ):
    with pytest.raises(trace.TraceError, match=message):
      run._replace(events=events[rows]).verify(complete=False)
  restart = changed(run, 'event', 7, Kind.RESTART)
  with pytest.raises(trace.TraceError, match='a restart that follows from not'):
    restart.verify(complete=False)
  refused = changed(changed(run, 'action', 6, Action.REFUSE), 'weight', 6, 0.0)
  with pytest.raises(trace.TraceError, match='answers an outstanding ticket'):
    refused.verify(complete=False)
  close = changed(run, 'event', 8, Kind.CLOSE)
  for column, value in (('worker_id', -1), ('action', Action.APPLY)):
    close = changed(close, column, 8, value)
  assert not told(close, complete=False)  # one gradient was held
  twice = np.concatenate([close.events, close.events[-1:]])
  twice['version'][-1] = 1
  with pytest.raises(trace.TraceError, match='closed an empty round'):
    close._replace(events=twice).verify(complete=False)


def test_missing_batches_are_named_without_counting_them_all():
  run = a_trace()
  assert audit.missing_batches(run.events, 4) == []
  with pytest.raises(trace.TraceError, match=r'applied: \[4, 5, 6, 7, 8\] \.'):
    run._replace(num_batches=2**62).verify()
  with pytest.raises(trace.TraceError, match=r'applied: \[0, 1\]$'):
    run._replace(events=run.events[:0], num_batches=2).verify()


def test_a_trace_counts_all_workers_that_ever_joined():
  book = ledger.Ledger(policies.asynchronous(), num_batches=2)
  assert book.trace().num_workers == 0
  for worker in (0, 5):
    book.join(worker)
  book.leave(5)
  assert book.trace().num_workers == 6
  book.trace().verify(complete=False)
