"""How scripts fail: one line on stderr that says what was wrong.

Exit code 2: a flag cannot be used. 1: something cannot be computed. 130: it was
interrupted.
"""

import contextlib
import re
import sys

import jax
from absl import flags

from experiments.running import accelerators
from experiments.settings import setting
from experiments.settings import table as settings_lib
from ga_jax import data
from ga_jax.guards import locks, memory
from ga_jax.live import server
from ga_jax.server import ledger, recovery

# What a computation may end with that is no mistake of the program.
EXPECTED = (
  *(data.DataError, ledger.NotFiniteError, recovery.RecoveryError),
  *(locks.LostError, memory.TooLargeError),
  *(server.ServerMissingError, server.WorkersMissingError),
  server.ClusterLostError,
)


def fail(message: str, code: int = 2):
  """Ends the process with one line."""
  first, *_ = message.strip().splitlines() or ['']
  print(f'error: {setting.printable(first)}', file=sys.stderr)
  sys.exit(code)


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
  except (locks.OccupiedError, accelerators.NoDeviceError) as error:
    fail(_said(error))
  except EXPECTED as error:
    fail(_said(error) or type(error).__name__, 1)
  except OSError as error:
    fail(f'{_of_system(error)}; what was finished before is kept', 1)
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
      fail(f'out of memory: {str(error) or "this machine has no more"}', 1)
    raise
  except server.WorkersLostError as error:
    cause = re.search(r'(?:DataError: |Error: (?=\[Errno))(.*)', str(error))
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


def _of_system(error: OSError) -> str:
  """What the system refused, and where."""
  if error.errno is None:
    return str(error)
  where = f'{error.filename}: ' if error.filename else ''
  return f'{where}{error.strerror}'


def of_absl(error: Exception) -> str:
  """What absl says of a flag: which one, what it got and what is accepted."""
  text = str(error)
  if isinstance(error, flags.UnrecognizedFlagError):
    _, _, tip = text.partition('Did you mean: ')
    names = ' or '.join(f'--{name}' for name in tip.strip(' ?').split(', '))
    more = f'did you mean {names}?' if tip else '--helpfull lists all flags'
    return f'--{setting.shown(error.flagname)}: no such flag; {more}'
  if isinstance(error, flags.CantOpenFlagFileError):
    return f'--flagfile: {setting.shown(text.removeprefix("ERROR:: "))}'
  if found := re.match('Missing value for flag -*(.*)', text, re.DOTALL):
    return f'--{setting.shown(found[1])}: takes a value'
  if found := re.match('flag --(.*?)=(.*?): ', text, re.DOTALL):
    name, got = found[1], setting.shown(found[2])
    accepted = flags.FLAGS[name].parser.syntactic_help or 'true or false'
    return f'--{name}={got}: must be {accepted}'
  return setting.shown(text)
