"""Versioned snapshots, kept as long as a ticket holds them."""

from collections.abc import Callable
from typing import Any

from ga_jax.guards import exclusive


class SnapshotStore(exclusive.Exclusive):
  """Keeps what workers were sent, once per version, by reference count.

  Several threads may call it.
  """

  def __init__(self):
    self._live = {}  # version -> [snapshot, holders]
    self.peak = 0  # most versions ever alive at once
    super().__init__()

  @exclusive.locked
  def __len__(self) -> int:
    return len(self._live)

  @exclusive.locked
  def __contains__(self, version: int) -> bool:
    return version in self._live

  @exclusive.locked
  def hold(self, version: int, make: Callable[[], Any]) -> Any:
    """Takes a hold on a version.

    Args:
      version: the server's version.
      make: called without arguments where nobody holds the version yet.

    Returns:
      The snapshot of that version.
    """
    entry = self._live.get(version)
    if entry is None:
      entry = self._live[version] = [make(), 0]
      self.peak = max(self.peak, len(self._live))
    entry[1] += 1
    return entry[0]

  @exclusive.locked
  def read(self, version: int) -> Any:
    """The snapshot of a version that is held.

    Raises:
      KeyError: nobody holds it.
    """
    if version not in self._live:
      raise KeyError(f'version {version} is held by no ticket')
    return self._live[version][0]

  @exclusive.locked
  def release(self, version: int):
    """Lets go of one hold; the last one frees the snapshot."""
    entry = self._live[version]
    entry[1] -= 1
    if not entry[1]:
      del self._live[version]

  @exclusive.locked
  def holders(self) -> dict[int, int]:
    """By version, how many hold it."""
    return {version: entry[1] for version, entry in self._live.items()}

  @exclusive.locked
  def save(self) -> dict[int, Any]:
    """The live snapshots by version."""
    return {version: entry[0] for version, entry in self._live.items()}

  @exclusive.locked
  def restore(self, saved: dict[int, Any], holders: dict[int, int]):
    """Keeps the snapshots that somebody holds.

    Args:
      saved: what `save` returned.
      holders: tickets that hold a version.
    """
    self._live = {
      version: [saved[version], number] for version, number in holders.items()
    }
    self.peak = max(self.peak, len(self._live))
