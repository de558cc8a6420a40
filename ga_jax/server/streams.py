"""Streams: batches whose order matters, and which worker computes which.

Batch `b` of S streams is segment `b // S` of stream `b % S`: the piece of text
after segment `b // S − 1`. A worker whose program remembers (`recurrent`) holds
one stream and is given its segments in order. A batch that was taken back comes
before the later ones of its stream. A worker that finds its stream at its end,
or in another's hands, takes the one that the fewest others hold, of these its
own (worker_id mod S), else that with most left.
"""

import heapq
from typing import Any

from ga_jax.guards import forms

_PAIR = forms.row(forms.integer(0), forms.integer(0))
FORM = forms.fields(
  {
    'next': forms.listed(forms.integer(0)),
    'returned': forms.listed(forms.listed(_PAIR)),
    'left': forms.listed(forms.integer(0)),
    'held': forms.listed(_PAIR),
  }
)  # of what `Streams.save` returns


class Streams:
  """The batches that nobody computes, by stream; plain values throughout.

  Attributes:
    left: how many batches there are.
  """

  def __init__(self, number: int, num_batches: int):
    """Begins with all of them.

    Args:
      number: S, at least 1.
      num_batches: ids 0 to num_batches − 1.
    """
    self.left = num_batches
    self._number = number
    self._next = list(range(number))  # the first batch never issued
    self._returned = [[] for _ in range(number)]  # heaps of (batch, attempt)
    self._left = [len(range(s, num_batches, number)) for s in range(number)]
    self._held = {}  # worker_id -> stream

  def save(self) -> dict[str, Any]:
    """All it knows, as JSON does."""
    return {
      'next': list(self._next),
      'returned': [[list(pair) for pair in heap] for heap in self._returned],
      'left': list(self._left),
      'held': [list(pair) for pair in self._held.items()],
    }

  def restore(self, saved: dict[str, Any]):
    """Goes on where `save` was called.

    Args:
      saved: of the form `FORM`.

    Raises:
      FormError: it is of another number of streams.
    """
    numbers = {len(saved[name]) for name in ('next', 'returned', 'left')}
    streams = {stream for _, stream in saved['held']}
    if numbers != {self._number} or max(streams, default=0) >= self._number:
      raise forms.FormError(f'streams must be {self._number}')
    self._next, self._left = list(saved['next']), list(saved['left'])
    self._returned = [[tuple(one) for one in h] for h in saved['returned']]
    self._held = dict(saved['held'])
    self.left = sum(self._left)

  def next(self, worker_id: int) -> tuple[int, int, int] | None:
    """What `take` would return now."""
    if not self.left:
      return None
    stream = self._choose(worker_id)
    if self._returned[stream]:
      batch, attempt = self._returned[stream][0]
      return batch, 1, attempt
    return self._next[stream], 1, 0

  def take(self, worker_id: int) -> tuple[int, int, int] | None:
    """The worker's next batch.

    Returns:
      (batch, 1, attempt), or None where there are none.
    """
    batches = self.next(worker_id)
    if batches is None:
      return None
    stream = batches[0] % self._number
    if self._returned[stream]:
      heapq.heappop(self._returned[stream])
    else:
      self._next[stream] += self._number
    self.left -= 1
    self._left[stream] -= 1
    self._held[worker_id] = stream
    return batches

  def give_back(self, batch: int, attempt: int):
    """A batch is to be issued again."""
    stream = batch % self._number
    heapq.heappush(self._returned[stream], (batch, attempt))
    self.left += 1
    self._left[stream] += 1

  def leave(self, worker_id: int):
    """A worker goes, and with it what it remembers."""
    self._held.pop(worker_id, None)

  def _choose(self, worker_id):
    """The stream of the worker's next batch; one has batches."""
    held = self._held.get(worker_id)
    if held is not None and self._left[held]:
      return held
    holders = [0] * self._number
    for worker, stream in self._held.items():
      holders[stream] += worker != worker_id
    own = worker_id % self._number
    return min(
      (s for s in range(self._number) if self._left[s]),
      key=lambda s: (holders[s], s != own, -self._left[s], s),
    )
