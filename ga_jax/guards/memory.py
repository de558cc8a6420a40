"""Memory: what surely does not fit is refused before it is asked for."""

import os
import resource

# Where Linux keeps the limit of a container, in its two versions.
_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


class TooLargeError(ValueError):
  """A run that this machine cannot hold."""


def total() -> int:
  """The bytes that this process could have at most."""
  found = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
  for path in _LIMITS:
    if os.path.exists(path):
      with open(path, encoding='utf-8') as file:
        limit = file.read().strip()
      found += [int(limit)] if limit.isdecimal() else []  # 'max': none
  soft, _ = resource.getrlimit(resource.RLIMIT_AS)
  if soft != resource.RLIM_INFINITY:
    found.append(soft)
  return min(found)


def check(name: str, value: int, needed: int, what: str):
  """Refuses an argument for what it would take.

  Args:
    name: of the argument.
    value: what it was set to.
    needed: bytes that are needed at least.
    what: needs them, for the message.

  Raises:
    TooLargeError: there are not so many; names the argument.
  """
  there = total()
  if needed > there:
    raise TooLargeError(
      f'{name}={value} is too large: {what} needs at least '
      f'{needed / 1e9:,.1f} GB of memory, and this machine has '
      f'{there / 1e9:,.1f} GB'
    )
