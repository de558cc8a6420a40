"""Ends a run in order: SIGINT and SIGTERM finish the update in hand."""

import os
import signal
import sys
from collections.abc import Callable


class Control:
  """Whether a run is to stop, and who must be told.

  Attributes:
    stopping: whether it is.
  """

  def __init__(self):
    self.stopping = False
    self._hooks = []

  def on_stop(self, hook: Callable[[], None]):
    """Has `hook()` called when the run is to stop."""
    self._hooks.append(hook)

  def stop(self):
    """Tells the run to stop."""
    self.stopping = True
    for hook in self._hooks:
      hook()

  def install(self):
    """Stops on SIGINT and SIGTERM; a second signal ends the process at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, self._handle)

  def _handle(self, number, frame):
    del frame
    if self.stopping:
      os._exit(128 + number)
    os.write(
      sys.stderr.fileno(),
      b'\nstopping after the update in hand; once more stops at once\n',
    )
    self.stop()
