"""Where a worker computes: one device, or several that share its batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ga_jax.guards import checks

_AXIS = 'batch'


class Placement(NamedTuple):
  """The devices of one worker.

  With several of them parameters are on each, and every batch is cut into equal
  parts along its examples, the second axis of host batches [num_batches, B,
  ...]; XLA sums the gradients.

  Attributes:
    devices: at least one.
  """

  devices: tuple[Any, ...]

  def replicated(self, tree):
    """A tree on every device."""
    return jax.device_put(tree, self.sharding())

  def batches(self, host_batches):
    """Host batches, their examples shared out.

    Raises:
      ValueError: a batch does not divide evenly.
    """
    if len(self.devices) == 1:
      return jax.device_put(host_batches, self.devices[0])
    return jax.tree.map(self._share, host_batches)

  def sharding(self, *axes):
    """On every device; along `axes` shared out."""
    if len(self.devices) == 1:
      return jax.sharding.SingleDeviceSharding(self.devices[0])
    mesh = jax.sharding.Mesh(np.array(self.devices), (_AXIS,))
    spec = jax.sharding.PartitionSpec(*axes)
    return jax.sharding.NamedSharding(mesh, spec)

  def _share(self, leaf):
    leaf = np.asarray(leaf)
    if leaf.ndim < 2:  # one number per batch
      return jax.device_put(leaf, self.sharding())
    if leaf.shape[1] % len(self.devices):
      raise ValueError(
        f'batches of {leaf.shape[1]} examples cannot be shared by the '
        f'{len(self.devices)} devices of a worker: take a multiple'
      )
    return jax.device_put(leaf, self.sharding(None, _AXIS))


def shared_out(devices: Sequence[Any], size: int) -> list[Placement]:
  """Placements of `size` devices each; what is left over is not used.

  Raises:
    ValueError: there are fewer than `size`.
  """
  size = checks.integer(
    'devices_per_worker', size, 1, len(devices), 'the number of devices'
  )
  last = len(devices) - size
  return [
    Placement(tuple(devices[i : i + size])) for i in range(0, last + 1, size)
  ]
