"""How scripts fail: one line on stderr that says what was wrong.

Exit code 2: a flag cannot be used. 1: something cannot be computed. 130: it was
interrupted.
"""

import contextlib
import os
import re
import sys

from absl import flags

from experiments.settings import table as settings_lib
from ga_jax import data
from ga_jax.guards import locks
from ga_jax.live import server
from ga_jax.server import ledger, recovery

# What a computation may end with that is no mistake of the program.
EXPECTED = (
  *(data.DataError, ledger.NotFiniteError, recovery.RecoveryError),
  *(locks.LostError, server.WorkersMissingError, server.ClusterLostError),
)


def fail(message: str, code: int = 2):
  """Ends the process with one line."""
  first, *_ = message.strip().splitlines() or ['']
  print(f'error: {printable(first)}', file=sys.stderr)
  sys.exit(code)


def printable(text: str) -> str:
  """A text without what a terminal would obey: it may be from any file."""
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def told(command: str = ''):
  """Says what ended the block, where it is no mistake of the program.

  Args:
    command: goes on where Ctrl-C ended it; '' where there is none.
  """
  try:
    yield
  except settings_lib.SettingError as error:
    fail(str(error))
  except locks.OccupiedError as error:
    fail(_said(error))
  except BrokenPipeError:  # | head
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except EXPECTED as error:
    fail(_said(error) or type(error).__name__, 1)
  except server.WorkersLostError as error:
    cause = re.search(r'DataError: (.*)', str(error))
    if not cause:
      raise
    fail(f'{cause[1]} (all workers met it)', 1)
  except KeyboardInterrupt:
    more = f'; go on with: {command}' if command else ''
    print(f'interrupted: what was finished is kept{more}', file=sys.stderr)
    sys.exit(130)


def _said(error: Exception) -> str:
  """What an error says; one from a process of Ray's has it as its cause."""
  return str(getattr(error, 'cause', error))


def of_absl(error: Exception) -> str:
  """What absl says of a flag: which one, what it got and what is accepted."""
  text = str(error).strip()
  if isinstance(error, flags.UnrecognizedFlagError):
    _, _, tip = text.partition('Did you mean: ')
    names = ' or '.join(f'--{name}' for name in tip.strip(' ?').split(', '))
    more = f'did you mean {names}?' if tip else '--helpfull lists all flags'
    return f'--{error.flagname}: no such flag; {more}'
  if isinstance(error, flags.CantOpenFlagFileError):
    return f'--flagfile: {text.removeprefix("ERROR:: ")}'
  if found := re.match('Missing value for flag -*(.*)', text):
    return f'--{found[1]}: takes a value'
  if found := re.match('flag --(.*?)=(.*?): ', text):
    name, got = found.groups()
    accepted = flags.FLAGS[name].parser.syntactic_help or 'true or false'
    return f'--{name}={got}: must be {accepted}'
  return text
