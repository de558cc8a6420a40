"""How scripts end when they are told to: SIGINT and SIGTERM.

A run finishes the update in hand; whatever else is computed stops at once, and
what was finished is kept. A second signal ends the process at once.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable

_SHOW_CURSOR = b'\x1b[?25h\n'


def at_once(number: int):
  """Ends the process now, the terminal in order."""
  if sys.stdout.isatty():
    os.write(sys.stdout.fileno(), _SHOW_CURSOR)
  os._exit(128 + number)


@contextlib.contextmanager
def interruptible():
  """A first SIGINT raises KeyboardInterrupt, a second one ends the process."""

  def first(number, frame):
    del frame
    signal.signal(number, lambda number, frame: at_once(number))
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGINT, first)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


class Control:
  """Whether a run is to stop, and who must be told.

  Attributes:
    stopping: whether it is.
    signal: the number of the one that it was told by, or None.
  """

  def __init__(self):
    self.stopping, self.signal = False, None
    self._hooks = []

  def on_stop(self, hook: Callable[[], None]):
    """Has `hook()` called when the run is to stop."""
    self._hooks.append(hook)

  def stop(self):
    """Tells the run to stop."""
    self.stopping = True
    for hook in self._hooks:
      hook()

  def install(self, tell: Callable[[], None]):
    """Stops on SIGINT and SIGTERM; a second signal ends the process at once.

    Args:
      tell: called by the first signal.
    """

    def handle(number, frame):
      del frame
      if self.stopping:
        at_once(number)
      self.signal = number
      tell()
      self.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, handle)
