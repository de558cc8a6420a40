"""The metrics of arrivals: one by one, joined, and of a whole run."""

from typing import Any

import numpy as np

from ga_jax import programs
from ga_jax.guards import forms
from ga_jax.server import update

_BLOCK = 256  # arrivals that go to the host together


def stacked(log) -> dict[str, np.ndarray]:
  """A list of metric dicts as a dict of host arrays."""
  if not log:
    return {}
  return {k: np.stack([np.asarray(m[k]) for m in log]) for k in log[0]}


def check_columns(value: Any, at: str):
  """A form, see `guards.forms`: metrics of arrivals, host arrays by name.

  Args:
    value: what was read.
    at: the way to it, for the message.

  Raises:
    FormError: it is something else.
  """
  forms.mapped(forms.anything)(value, at)
  lengths = {len(one) if np.ndim(one) else -1 for one in value.values()}
  if len(lengths) > 1 or -1 in lengths:
    raise forms.FormError(f'{at} must be arrays of one length')


def record(
  submission: programs.Submission,
  metrics: update.Metrics,
  layers: update.LayerMetrics | None,
  staleness,
  num_batches,
) -> dict[str, Any]:
  """The metrics of one applied arrival, by name."""
  return {
    'loss': submission.loss,
    'staleness': staleness,
    'num_batches': num_batches,
    **metrics._asdict(),
    **(layers._asdict() if layers else {}),
  }


def joined(blocks) -> dict[str, np.ndarray]:
  """Blocks of metrics by name, one after the other, on the host."""
  if not blocks:
    return {}
  return {
    name: np.concatenate([np.asarray(block[name]) for block in blocks])
    for name in blocks[0]
  }


class Log:
  """The metrics of a run's arrivals in order, on the host.

  A device scalar takes a kilobyte of its own, an entry of a host array 4 bytes.
  The newest arrivals stay as they came: whoever adds one does not wait for the
  device, which has long computed those that go to the host.
  """

  def __init__(self):
    self._columns = {}  # name -> host array with room for more
    self._length = 0  # arrivals in them
    self._newest = []  # metrics of the arrivals after these

  def __len__(self) -> int:
    return self._length + len(self._newest)

  def append(self, metrics: dict[str, Any]):
    """Adds those of one arrival, see `record`."""
    self._newest.append(metrics)
    if len(self._newest) == 2 * _BLOCK:
      self._move(_BLOCK)

  def extend(self, block: dict[str, Any] | list[dict[str, Any]]):
    """Adds those of several arrivals; waits for them.

    Args:
      block: arrays by name, or a `record` for each arrival.
    """
    self._move(len(self._newest))
    self._write(stacked(block) if isinstance(block, list) else block)

  def part(
    self, start: int = 0, stop: int | None = None
  ) -> dict[str, np.ndarray]:
    """Those of some arrivals; waits for them.

    Args:
      start: the first one.
      stop: the one after the last; by default there is none.

    Returns:
      Host arrays by name, the caller's own; {} where nothing was ever added.
    """
    self._move(len(self._newest))
    stop = self._length if stop is None else stop
    return {
      name: column[start:stop].copy() for name, column in self._columns.items()
    }

  def _move(self, number: int):
    """Takes so many of the newest arrivals to the host."""
    self._write(stacked(self._newest[:number]))
    del self._newest[:number]

  def _write(self, block):
    start = self._length
    for name, values in block.items():
      values = np.asarray(values)
      self._length = start + len(values)
      column = self._columns.get(name, values[:0])
      if len(column) < self._length:
        shape = (2 * self._length, *values.shape[1:])
        grown = np.empty(shape, values.dtype)
        grown[:start] = column[:start]
        self._columns[name] = column = grown
      column[start : self._length] = values
