"""Where batches come from."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ga_jax.guards import memory
from ga_jax.server import alike

_NO_NUMBERS = 'OUSMm'  # kinds of NumPy: objects, texts, bytes, dates


class Source(NamedTuple):
  """Where batches come from: pure functions of the batch's id.

  Attributes:
    batch_fn: `batch_fn(batch_id) -> pytree of NumPy arrays`, on the host.
    load_fn: `load_fn(resident, host_batch, key) -> batch`, in compiled code; by
      default the host batch as it is.
    resident: pytree of arrays kept on the device and handed to `load_fn`.
    streams: S where batch b is what comes after batch b − S, for a program that
      remembers (`programs.recurrent`); 0 where batches know no order.
    expect_fn: `expect_fn(batch_ids)`, told where it is known in which order
      batches will be asked for, so that they can be made ahead of time.
  """

  batch_fn: Callable[[int], Any]
  load_fn: Callable[..., Any] = lambda resident, host_batch, key: host_batch
  resident: Any = ()
  streams: int = 0
  expect_fn: Callable[[Sequence[int]], None] = lambda batch_ids: None


def source_of(batches: Source | Callable[[int], Any]) -> Source:
  """A source of what may be a `batch_fn` alone.

  Raises:
    TypeError: it is neither.
  """
  if isinstance(batches, Source):
    return batches
  if not callable(batches):
    raise TypeError(
      'batches must be a function of the batch id, batch_fn(batch_id) -> '
      f'batch, or a Source, got {type(batches)}'
    )
  return Source(batches)


def host_batches(source: Source, first_batch: int, num_batches: int):
  """The host batches of a ticket, stacked on a leading axis [num_batches].

  Raises:
    TypeError: a batch is no pytree of arrays; names it.
    ValueError: they are not alike; names the first that differs.
    TooLargeError: there is no memory for so many.
  """
  batch_ids = range(first_batch, first_batch + num_batches)
  batches = []
  for batch_id in batch_ids:
    batch = source.batch_fn(batch_id)
    leaves = jax.tree.leaves(batch)
    if not leaves or any(map(_is_no_number, leaves)):
      raise TypeError(
        f'batch_fn({batch_id}) must return a pytree of arrays of numbers, got '
        f'{_shown(batch)}'
      )
    if not batches and num_batches > 1:
      needed = num_batches * sum(np.asarray(leaf).nbytes for leaf in leaves)
      memory.check('batches_per_ticket', num_batches, needed, 'a ticket')
    batches.append(batch)
  return stacked(batches, batch_ids)


def stacked(batches: Sequence[Any], batch_ids: Sequence[int]) -> Any:
  """Batches, or those of tickets, as one: each leaf has a leading axis.

  Args:
    batches: pytrees of arrays.
    batch_ids: which they are, or the first of each.

  Raises:
    ValueError: they are not alike; names the first that differs.
  """
  try:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
  except (ValueError, TypeError):
    for batch_id, batch in zip(batch_ids, batches, strict=True):
      who = f'batch_fn({batch_id}) returns'
      alike.check(who, 'a batch', batch, batches[0])
    raise


def _is_no_number(leaf: Any) -> bool:
  dtype = getattr(leaf, 'dtype', None) or np.asarray(leaf).dtype
  return getattr(dtype, 'kind', '') in _NO_NUMBERS


def _shown(batch: Any) -> str:
  first, *rest = repr(batch).splitlines() or ['']
  return f'{first[:60]} ...' if rest or len(first) > 60 else first


def expect(source: Source, trace):
  """Tells a source in which order a trace needs its batches."""
  arrivals = trace.applied()
  source.expect_fn(
    [
      first_batch + i
      for first_batch, number in zip(
        arrivals['first_batch'].tolist(),
        arrivals['num_batches'].tolist(),
        strict=True,
      )
      for i in range(number)
    ]
  )
