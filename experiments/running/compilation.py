"""Compiled programs: kept for the next run, and how long they took.

JAX keeps them in a folder of the user's. What it knows a program by holds the
program, XLA's flags, the versions, the machine and the number of its devices,
but not the size of XLA's CPU thread pool, by which XLA cuts loops into parts
that round differently. There is a folder for each size inside that folder, so
that a program from it gives the bits of one that was compiled now.
"""

import contextlib
import glob
import os
import sys
import threading
import warnings
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from experiments.running import environment
from experiments.settings import path_flags
from ga_jax.data import corpus

FOLDER = 'JAX_COMPILATION_CACHE_DIR'
NONE = 'none'
# Small programs too: a start has about ten of them.
_LIMITS = {
  'jax_persistent_cache_min_compile_time_secs': 0,
  'jax_persistent_cache_min_entry_size_bytes': -1,
}
_COMPILED = '/jax/core/compile/backend_compile_duration'
_FOUND = '/jax/compilation_cache/cache_hits'


class Compiled(NamedTuple):
  """Programs that this process compiled, or parts of it did.

  Attributes:
    programs: how many.
    cached: how many of them were in the folder.
    seconds: for all of them; threads that compile side by side add up.
  """

  programs: int = 0
  cached: int = 0
  seconds: float = 0.0

  def since(self, before: 'Compiled') -> 'Compiled':
    """What came after `before`."""
    return Compiled(*(a - b for a, b in zip(self, before, strict=True)))

  def __str__(self):
    found = f', {self.cached} of them from the cache' if self.cached else ''
    return f'compiled {self.programs} programs in {self.seconds:.1f} s{found}'


_so_far, _lock = Compiled(), threading.Lock()


def so_far() -> Compiled:
  """What this process has compiled since this module was imported."""
  return _so_far


def _count(event: str, seconds: float = 0.0, **_):
  global _so_far
  compiled, found = event == _COMPILED, event == _FOUND
  if compiled or found:
    with _lock:
      programs, cached, before = _so_far
      _so_far = Compiled(programs + compiled, cached + found, before + seconds)


jax.monitoring.register_event_duration_secs_listener(_count)
jax.monitoring.register_event_listener(_count)


def define_flag():
  """Defines --compilation_cache."""
  path_flags.one(
    'compilation_cache',
    None,
    'folder where compiled programs are kept for the next run, which only you '
    f'should be able to write to; {NONE}: nowhere (default ${FOLDER}, or '
    '~/.cache/ga_jax/compiled)',
  )


def default_folder() -> str:
  """Where compiled programs are kept unless something else is said."""
  return os.path.join(os.path.expanduser(corpus.cache_folder()), 'compiled')


def keep(given: str | None = None):
  """Keeps compiled programs from now on, in this process and those it starts.

  A folder that cannot be used, or holds something damaged, stops nothing: it is
  said in one line. Processes that this one starts are told of the folder; which
  of those inside it theirs is, they find out themselves.

  Args:
    given: the folder; '' or 'none' for no folder; by default what JAX's own
      variable says, else `default_folder`.
  """
  if given is None:
    given = os.environ.get(FOLDER, default_folder())
  folder = ''
  if path_flags.is_elsewhere(given):
    _not_kept(given, 'it is none of this machine')
  elif given not in ('', NONE):
    folder = _usable(os.path.abspath(os.path.expanduser(given)))
  os.environ[FOLDER] = folder
  if folder:
    folder = _usable(of_pool(folder, environment.wanted_threads()))
  jax.config.update('jax_compilation_cache_dir', folder or None)
  compilation_cache.reset_cache()  # or a folder said after a compilation is
  if not folder:  # not used
    return
  for name, value in _LIMITS.items():
    if name.upper() not in os.environ:  # the user's own stay
      os.environ[name.upper()] = str(value)
      jax.config.update(name, value)
  _watch(folder)


def of_pool(folder: str, threads: int) -> str:
  """Where the programs of processes with such a thread pool are kept.

  Args:
    folder: where all programs are kept; '' for nowhere.
    threads: see `environment.wanted_threads`.

  Returns:
    A folder inside it, or ''.
  """
  return os.path.join(folder, f'threads-{threads}') if folder else ''


def _usable(folder: str) -> str:
  """The folder, made where it is not there; '' where it cannot be used."""
  try:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    probe = os.path.join(folder, f'.probe-{os.getpid()}')
    with open(probe, 'w', encoding='utf-8'):
      pass
    os.unlink(probe)
  except OSError as error:
    _not_kept(folder, error.strerror)
    return ''
  return folder


def _not_kept(folder: str, why: str):
  print(
    f'note: compiled programs are not kept: {folder} cannot be written to '
    f'({why}); --compilation_cache names another folder',
    file=sys.stderr,
  )


def _watch(folder: str):
  """Says in one line that an entry is damaged, and removes it.

  JAX compiles what it cannot read, but never writes over it, and would warn in
  every run.
  """
  shown, told = warnings.showwarning, False

  def show(message, *where, **how):
    nonlocal told
    text = str(message)
    if 'persistent compilation cache entry' not in text:
      shown(message, *where, **how)
      return
    quoted = text.split("'")
    if text.startswith('Error reading') and len(quoted) > 1:
      for path in glob.glob(os.path.join(folder, f'{quoted[1]}-*')):
        with contextlib.suppress(OSError):  # another process did
          os.unlink(path)
    if not told:
      told = True
      print(
        f'note: {folder}: {text.splitlines()[0]}; compiled anew',
        file=sys.stderr,
      )

  warnings.showwarning = show
