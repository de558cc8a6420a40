"""Standard output and error of a command: what nobody reads stops nothing.

What a command computes is in its files; the terminal, the pipe or the disk that
it tells of it may be gone, and may know fewer characters.
"""

import contextlib
import io
import os
import sys

from experiments.script import failures


class _Stream(io.FileIO):
  """Standard output or error, which goes on where it cannot be written.

  Attributes:
    error: the first that was met; None without.
  """

  error = None

  def write(self, data) -> int:
    try:
      return super().write(data)
    except OSError as error:
      self.error = self.error or error
      return len(data)


@contextlib.contextmanager
def held():
  """Holds both streams; says at the end where output is lost.

  Characters that standard output does not know are replaced. Nobody is told of
  a reader that has gone (| head), or of an output that was closed before.
  """
  if sys.stderr is sys.__stderr__:  # else they are somebody's, such as a test's
    sys.stderr, _ = _opened(2, sys.stderr, 'backslashreplace')
  raw = None
  if sys.stdout is sys.__stdout__:
    sys.stdout, raw = _opened(1, sys.stdout, 'replace')
  try:
    yield
  except SystemExit as ended:
    sys.stdout.flush()
    lost = raw and raw.error
    if lost and not isinstance(lost, BrokenPipeError) and not ended.code:
      failures.fail(
        f'standard output cannot be written to ({lost.strerror}): what was '
        'computed is kept, but not shown',
        1,
      )
    raise


def _opened(number: int, before, errors: str) -> tuple[io.TextIOBase, _Stream]:
  """A stream in the place of one of Python's, which is None where it is closed.

  Args:
    number: its file descriptor.
    before: that stream.
    errors: what is done with characters that it does not know.

  Returns:
    (the stream, what is below it).
  """
  if before is None:  # the number of what is opened now is often its own
    raw = _Stream(os.devnull, 'w')
    return io.TextIOWrapper(io.BufferedWriter(raw), 'utf-8', errors), raw
  before.flush()
  raw = _Stream(number, 'w', closefd=False)
  text = io.TextIOWrapper(
    io.BufferedWriter(raw),
    before.encoding,
    errors,
    line_buffering=before.line_buffering,
    write_through=before.write_through,
  )
  return text, raw
