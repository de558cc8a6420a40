"""What every worker did, and when: spans of time, read from a trace.

A trace says when a ticket was issued and how it ended; what stands between is
told from that. A worker computes one ticket at a time, in the order in which
they end, and waits where it holds none. A stall is part of the computation that
it delays: no row tells of it.
"""

from typing import NamedTuple

import numpy as np

# policies.Kind and policies.Action, which plots do not import.
_ISSUE, _ARRIVE, _RESTART, _EXPIRE, _JOIN, _LEAVE, _CLOSE = range(7)
_NONE, _APPLY, _ACCUMULATE, _DISCARD, _REFUSE = range(5)
_ENDS = {_ARRIVE: 'compute', _RESTART: 'restart', _EXPIRE: 'lost'}
_REVOKED = ('restart', 'lost')

KINDS = {
  'compute': 'computes a gradient that entered a round',
  'discarded': 'computes a gradient that was thrown away',
  'restart': 'computes what was then revoked: it began again',
  'lost': 'holds a ticket that expired: lease, death, no use',
  'unfinished': 'computes when the record ends',
  'wait': 'waits for a ticket',
  'away': 'is not there',
  'apply': 'the server closes a round: one update',
}


class Span(NamedTuple):
  """What a worker did from `begin` to `end`.

  Attributes:
    worker_id: who; of an update that no arrival caused -1.
    begin: in the trace's units of time.
    end: the same; an update takes no time.
    kind: one of `KINDS`.
    version: the version read; of an update the one it made; -1 without one.
    staleness: in server updates, when the ticket ended; -1 without a ticket.
    ticket_id: -1 without one.
    arrival: index into `Trace.applied()`; -1 where nothing entered a round.
  """

  worker_id: int
  begin: float
  end: float
  kind: str
  version: int = -1
  staleness: int = -1
  ticket_id: int = -1
  arrival: int = -1


def spans_of(events: np.ndarray) -> list[Span]:
  """Reads a trace.

  Every ticket has one span, spans of one worker do not overlap, and they leave
  no time out: from the first row to the last one a worker computes, waits or is
  away. A ticket that a live worker still computed after it was revoked ends
  when the late answer came.

  Args:
    events: a trace's structured array, `Trace.events`.

  Returns:
    Spans in order of their beginning, updates (kind 'apply') among them.
  """
  fields = ['time', 'event', 'worker_id', 'ticket_id', 'version', 'action']
  rows = events[[*fields, 'staleness']].tolist()
  workers, updates = {}, []
  entered = 0  # arrivals that entered a round
  for time, event, worker_id, ticket_id, version, action, staleness in rows:
    worker = workers.get(worker_id) or _Worker(worker_id, rows[0][0])
    if event != _CLOSE and action != _REFUSE:
      workers[worker_id] = worker
    arrival = -1
    if action in (_APPLY, _ACCUMULATE) and event == _ARRIVE:
      arrival, entered = entered, entered + 1
    if event == _ISSUE:
      worker.issue(time, ticket_id, version)
    elif action == _REFUSE:
      worker.late(time, ticket_id)
    elif event in (_ARRIVE, _RESTART, _EXPIRE):
      kind = 'discarded' if action == _DISCARD else _ENDS[event]
      worker.end(time, kind, (version, staleness, ticket_id, arrival))
    elif event in (_JOIN, _LEAVE):
      worker.come_or_go(time, event == _JOIN)
    if action == _APPLY:
      marks = len(updates) + 1, -1, -1, arrival
      updates.append(Span(worker_id, time, time, 'apply', *marks))
  for worker in workers.values():
    worker.stop(rows[-1][0])
    updates += worker.spans
  return sorted(updates, key=lambda span: (span.begin, span.end))


class _Worker:
  """One worker, as the rows tell of it."""

  def __init__(self, worker_id: int, begin: float):
    self.spans = []
    self._worker_id = worker_id
    self._free = begin  # when the last span ended
    self._out = {}  # ticket_id -> (time of issue, version)
    self._here = False
    self._silent = False  # since its ticket expired

  def come_or_go(self, time, here):
    """It joins or leaves."""
    self._fill(time)
    self._here, self._silent = here, False

  def issue(self, time, ticket_id, version):
    """It gets a ticket; whether it waited for it is told by how that ends."""
    if not self._here:
      self.come_or_go(time, True)
    self._out[ticket_id] = time, version

  def end(self, time, kind, ticket):
    """A ticket (version, staleness, ticket_id, arrival) ends."""
    issued, _ = self._out.pop(ticket[2], (self._free, None))
    self._fill(issued)
    self._add(time, kind, ticket)
    self._silent = kind == 'lost'

  def late(self, time, ticket_id):
    """An answer is refused: until now it was computed for nothing."""
    last = self.spans[-1] if self.spans else None
    busy = last is None or self._out or not self._here
    if not busy and last.ticket_id == ticket_id and last.kind in _REVOKED:
      self.spans[-1] = last._replace(end=time)
      self._free, self._silent = time, False

  def stop(self, time):
    """The record ends."""
    for ticket_id, (_, version) in list(self._out.items()):
      self.end(time, 'unfinished', (version, -1, ticket_id, -1))
    self._here = self._here and not self._silent
    self._fill(time)

  def _fill(self, time):
    """From its last span until now it waited, or was not there."""
    if time > self._free:
      self._add(time, 'wait' if self._here else 'away', (-1, -1, -1, -1))

  def _add(self, end, kind, ticket):
    span = Span(self._worker_id, self._free, end, kind, *ticket)
    self.spans.append(span)
    self._free = end
