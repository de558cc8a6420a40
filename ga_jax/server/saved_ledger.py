"""What a saved ledger must look like, before one goes on with it.

It was in a file, which may hold anything; no JAX, and nothing is changed.
"""

from typing import Any

from ga_jax.guards import forms
from ga_jax.server import streams as streams_lib

_COUNT = forms.integer(0)
_WORKER = forms.integer(0, 2**31 - 1)
_BATCHES = (_COUNT, forms.integer(1), _COUNT)  # first, number, attempt
_FORM = forms.fields(
  {
    'num_batches': forms.integer(1),
    'per_ticket': forms.integer(1),
    'depth': _COUNT,
    'version': _COUNT,
    'rows': _COUNT,
    'next_batch': _COUNT,
    'next_ticket': _COUNT,
    'in_round': _COUNT,
    'refused': forms.mapped(_COUNT),
    'ready': forms.listed(_WORKER),
    'workers': forms.listed(_WORKER),
    'returned': forms.listed(forms.row(*_BATCHES)),
    'reserved': forms.listed(forms.row(_WORKER, *_BATCHES)),
    'outstanding': forms.listed(forms.row(_COUNT, _WORKER, _COUNT, *_BATCHES)),
    'revoked': forms.listed(_COUNT),
    'not_finite': forms.listed(forms.row(_COUNT, _COUNT)),
    'streams': forms.optional(streams_lib.FORM),
    'policy_state': forms.anything,
  }
)  # of what `Ledger.save` returns


def check(
  saved: Any,
  *,
  num_batches: int,
  per_ticket: int,
  depth: int,
  has_streams: bool,
):
  """Checks what `Ledger.save` returned, and that it is of such a ledger.

  Args:
    saved: from a file.
    num_batches: of the run.
    per_ticket: batches of a ticket.
    depth: tickets that a worker may hold beside the one it computes.
    has_streams: whether the batches are segments of streams.

  Raises:
    FormError: it is of another run, or of none.
  """
  _FORM(saved, 'book')
  ours = {'num_batches': num_batches, 'per_ticket': per_ticket, 'depth': depth}
  for name, value in ours.items():
    if saved[name] != value:
      raise forms.FormError(f'book.{name} is {saved[name]}, not {value}')
  if (saved['streams'] is not None) != has_streams:
    raise forms.FormError('book.streams is of other batches')
  tickets = saved['outstanding']  # id, worker, version, first, number, attempt
  held = [ticket[3:5] for ticket in tickets]
  held += [batches[:2] for batches in saved['returned']]
  held += [batches[:2] for _, *batches in saved['reserved']]
  if any(first + number > num_batches for first, number in held):
    raise forms.FormError('book holds batches that are not of the run')
  members = {*saved['ready'], *(worker for _, worker, *_ in tickets)}
  if not members <= set(saved['workers']):
    raise forms.FormError('book has tickets of workers that are not there')
  for ticket_id, _, version, *_ in tickets:
    if ticket_id >= saved['next_ticket'] or version > saved['version']:
      raise forms.FormError('book has tickets that were never issued')
