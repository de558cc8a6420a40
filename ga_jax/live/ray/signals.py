"""SIGINT and SIGTERM of a process that Ray is started in."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What the first one is answered with, whatever computes.
STOPPING = 'stopping after the update in hand; once more stops at once'


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Puts the handlers back that something within replaces, as Ray does."""
  before = {number: signal.getsignal(number) for number in SIGNALS}
  try:
    yield
  finally:
    _install(before)


class Told:
  """The signal that came, and has not been handled yet.

  Attributes:
    number: of it; None where none came.
  """

  def __init__(self):
    self.number = None


@contextlib.contextmanager
def deferred() -> Iterator[Told]:
  """A first signal is told, and comes to its handler at the end of the block.

  A second one comes to its handler at once. One that is ignored stays so. In
  any other thread than the main one no signal is told: Python has no handlers
  there.
  """
  told = Told()
  before = {
    number: handler
    for number in SIGNALS
    if (handler := signal.getsignal(number)) != signal.SIG_IGN
  }

  def first(number, frame):
    del frame
    told.number = number
    print(STOPPING, file=sys.stderr)
    _install(before)

  _install(dict.fromkeys(before, first))
  try:
    yield told
  finally:
    _install(before)
  if told.number:
    signal.raise_signal(told.number)


def _install(handlers):
  """In the main thread only; None is a handler that is not Python's."""
  if threading.current_thread() is not threading.main_thread():
    return
  for number, handler in handlers.items():
    if handler is not None:
      signal.signal(number, handler)
