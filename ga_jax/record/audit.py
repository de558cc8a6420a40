"""What a trace must keep to: every column its range, every row its history.

It is said in words, of the first row that does not, so that a record that was
edited, copied half-way or written by a mistake is told from a true one. What
cannot be told from a record alone: a time between those of its neighbours, a
weight (policies may choose any), the ids in an answer that was refused (they
are what a stranger sent), and whether a policy would have decided as it did;
to follow the record (`recovery.follow`) tells the last.
"""

import collections
import itertools

import numpy as np

from ga_jax.policies.parts.base import Action, Kind

_WITHOUT_TICKET = (Kind.JOIN, Kind.LEAVE, Kind.CLOSE)
_ENTERED = (Action.APPLY, Action.ACCUMULATE)


def wrong_row(
  events: np.ndarray, num_workers: int, num_batches: int
) -> str | None:
  """What is wrong with the first row that cannot be.

  Args:
    events: structured array of `trace.EVENT_DTYPE`.
    num_workers: workers have the ids 0 to num_workers − 1.
    num_batches: batches have the ids 0 to num_batches − 1.

  Returns:
    One line that names row, worker and ticket; None where nothing is wrong.
  """
  if not len(events):
    return None
  found = (
    _wrong_range(events, num_workers, num_batches),
    _History(events, num_batches).wrong(),
    _wrong_version(events),
  )
  found = [one for one in found if one is not None]
  if not found:
    return None
  i, what = min(found, key=lambda one: one[0])  # of equal ones the first
  worker, ticket = events['worker_id'][i], events['ticket_id'][i]
  return f'row {i} (worker {worker}, ticket {ticket}): {what}'


def missing_batches(events: np.ndarray, num_batches: int) -> list[int]:
  """The first batches that are in no round, six at most.

  Args:
    events: of which no row is wrong.
    num_batches: of the run.
  """
  entered = events[np.isin(events['action'], _ENTERED)]
  entered = np.sort(
    entered[entered['event'] == Kind.ARRIVE], order='first_batch'
  )
  starts = entered['first_batch'].tolist()
  ends = (entered['first_batch'] + entered['num_batches']).tolist()
  gaps = zip([0, *ends], [*starts, num_batches], strict=True)
  missing = itertools.chain.from_iterable(itertools.starmap(range, gaps))
  return list(itertools.islice(missing, 6))


def round_open(events: np.ndarray) -> bool:
  """Whether the last round was never closed."""
  entered = events['action'][np.isin(events['action'], _ENTERED)]
  return bool(len(entered)) and entered[-1] == Action.ACCUMULATE


def _wrong_range(events, num_workers, num_batches) -> tuple[int, str] | None:
  """The first row of which a column is out of its range, and how."""
  e = {name: events[name] for name in events.dtype.names}
  kind, action, time, worker = (
    e[name] for name in ('event', 'action', 'time', 'worker_id')
  )
  arrive, close = kind == Kind.ARRIVE, kind == Kind.CLOSE
  refused = arrive & (action == Action.REFUSE)
  bare = np.isin(kind, _WITHOUT_TICKET)
  before = np.concatenate([[-np.inf], time[:-1]])
  follows = np.concatenate([[False], kind[:-1] != Kind.ISSUE])
  answers = (action > Action.NONE) & (action <= Action.REFUSE)
  wanted = np.where(close, Action.APPLY, Action.NONE)
  member = (worker >= 0) & (worker < num_workers)
  nothing = (e['ticket_id'] == -1) & (e['first_batch'] == -1)
  nothing &= (e['num_batches'] == 0) & (e['attempt'] == 0)
  batches = (e['first_batch'] >= 0) & (e['num_batches'] >= 1)
  batches &= e['first_batch'] + e['num_batches'].astype(np.int64) <= num_batches
  chosen = np.isfinite(e['weight']) & (e['weight'] >= 0)  # by the policy
  fine = {
    'event {event} is none': np.isin(kind, list(Kind)),
    'time {time} after {before}': np.isfinite(time) & (time >= before),
    'action {action} is none of this event': np.where(
      arrive, answers, action == wanted
    ),
    f'worker {{worker_id}} is none of {num_workers}': np.where(
      close, worker == -1, member | refused
    ),
    'it concerns no ticket and no batch, but has some': nothing | ~bare,
    f'batches {{first_batch}} and following, {{num_batches}} of them, are '
    f'outside the run of {num_batches}': batches | bare | refused,
    'weight {weight}': np.where(
      arrive & ~refused, chosen, e['weight'] == np.where(refused, 0.0, 1.0)
    ),
    'a restart that follows from nothing': (kind != Kind.RESTART)
    | (follows & (time == before)),
  }
  return _first(fine, e | {'before': before})


def _wrong_version(events) -> tuple[int, str] | None:
  """The first row of which version or staleness is not right, and how."""
  action, read = events['action'], events['version'].astype(np.int64)
  staleness = events['staleness']
  updated = action == Action.APPLY
  now = np.cumsum(updated) - updated  # the server's version
  issue = events['event'] == Kind.ISSUE
  past = np.where(issue, read == now, (read >= 0) & (read <= now))
  fine = {
    'read version {read} of {now}': past | (action == Action.REFUSE),
    'staleness {staleness}, server {now}, read {read}': staleness == now - read,
  }
  return _first(fine, {'read': read, 'now': now, 'staleness': staleness})


def _first(fine, columns) -> tuple[int, str] | None:
  """The first row where something is not fine, and what."""
  rows = {what: int(np.argmin(good)) for what, good in fine.items()}
  wrong = [(i, what) for what, i in rows.items() if not fine[what][i]]
  if not wrong:
    return None
  i, what = min(wrong, key=lambda found: found[0])
  return i, what.format(**{name: column[i] for name, column in columns.items()})


class _History:
  """Members, tickets, batches and rounds, from row to row."""

  def __init__(self, events, num_batches):
    issued = events['num_batches'][events['event'] == Kind.ISSUE]
    self._events = events
    self._num_batches = num_batches
    self._per_ticket = int(max(issued.max(initial=1), 1))
    self._members = set()
    self._outstanding = {}  # ticket_id -> (worker, version, batches, attempt)
    self._held = collections.Counter()  # worker -> its tickets
    self._tickets = 0  # issued so far
    self._taken = set()  # first batches that are held, or in a round
    self._attempts = {}  # first batch -> attempt of its next issue
    self._holds = 0  # gradients in the open round

  def wrong(self) -> tuple[int, str] | None:
    """The first row that does not follow from those before, and how."""
    fields = ['event', 'worker_id', 'ticket_id', 'version', 'first_batch']
    fields += ['num_batches', 'attempt', 'action']
    for i, row in enumerate(self._events[fields].tolist()):
      kind, worker, ticket, *own, action = row
      own = (worker, *own)
      if kind == Kind.ISSUE:
        what = self._issue(ticket, own)
      elif kind == Kind.ARRIVE:
        what = self._arrive(ticket, own, action)
      elif kind in (Kind.RESTART, Kind.EXPIRE):
        what = self._end(ticket, own, 'revoked but not outstanding')
        self._give_back(own)
      elif kind == Kind.CLOSE:
        what, self._holds = '' if self._holds else 'closed an empty round', 0
      else:
        what = self._come_or_go(kind, worker)
      if what:
        return i, what
    return None

  def _issue(self, ticket, own) -> str:
    worker, _, first, number, attempt = own
    whole = min(self._per_ticket, self._num_batches - first)
    due = self._attempts.get(first, 0)
    what = ''
    if worker not in self._members:
      what = 'the worker is not here'
    elif ticket != self._tickets:
      what = f'ticket {self._tickets} is the next to be issued'
    elif first in self._taken:
      what = f'batch {first} is issued twice'
    elif first % self._per_ticket or number != whole:
      what = f'{number} batches from {first} are no ticket of this run'
    elif attempt != due:
      what = f'attempt {attempt} of batch {first}, not {due}'
    self._tickets += 1
    self._outstanding[ticket] = own
    self._held[worker] += 1
    self._taken.add(first)
    return what

  def _arrive(self, ticket, own, action) -> str:
    if action == Action.REFUSE:
      stands = self._outstanding.get(ticket) == own
      return 'refused, but it answers an outstanding ticket' if stands else ''
    what = self._end(ticket, own, 'not the answer to an outstanding ticket')
    if action == Action.DISCARD:
      self._give_back(own)
    else:
      self._holds += 1
    if action == Action.APPLY:
      self._holds = 0
    return what

  def _end(self, ticket, own, what) -> str:
    self._held[own[0]] -= 1
    return '' if self._outstanding.pop(ticket, None) == own else what

  def _give_back(self, own):
    _, _, first, _, attempt = own
    self._taken.discard(first)
    self._attempts[first] = attempt + 1

  def _come_or_go(self, kind, worker) -> str:
    here = worker in self._members
    if kind == Kind.JOIN:
      self._members.add(worker)
      return 'the worker is here already' if here else ''
    self._members.discard(worker)
    if not here:
      return 'the worker is not here'
    return 'the worker leaves with a ticket' if self._held[worker] else ''
