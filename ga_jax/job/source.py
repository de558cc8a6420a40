"""Where batches come from."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


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
  """The host batches of a ticket, stacked on a leading axis [num_batches]."""
  batches = [
    source.batch_fn(batch_id)
    for batch_id in range(first_batch, first_batch + num_batches)
  ]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


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
