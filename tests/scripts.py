"""Runs scripts in this process, as `python -m` does: a start takes seconds.

Scripts have flags of the same names, so those of one must go before those of
the next are defined.
"""

import contextlib
import io
import runpy
import sys
import warnings
from typing import NamedTuple

import jax
from absl import app, flags
from absl.testing import flagsaver

from experiments.settings import check, table

_TABLES = ('__flags', '__flags_by_module', '__flags_by_module_id')
# Modules that define flags when they are first imported, and whose they are.
_IMPORTED = {
  'experiments.bench.timing': 'bench.',
}
_kept = {}  # their flags: {module: [flag]}


def settings_of(**fields) -> table.Settings:
  """Checked settings of a run of 11 batches, a quarter of an epoch."""
  fields = {'model': 'mlp', 'epochs': 0.25, 'learning_rate': 0.01, **fields}
  return check.check(table.Settings(**fields))


def untimed(summary):
  """A summary without what differs from run to run."""
  times = ('wall_seconds', 'updates_per_second', 'compilation')
  return {k: v for k, v in summary.items() if k not in times}


class Ended(NamedTuple):
  """What a script left: its exit code and what it printed."""

  code: int
  out: str
  err: str


def call(name: str, *arguments: str) -> Ended:
  """Runs `python -m experiments.NAME ARGUMENTS` here.

  Args:
    name: of the script.
    *arguments: its flags.

  Returns:
    Its exit code and its output.
  """
  out, err, argv = io.StringIO(), io.StringIO(), sys.argv
  sys.argv = [f'{name}.py', *arguments]
  try:
    with (
      own_flags(name),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
      jax.numpy_rank_promotion('allow'),
      jax.numpy_dtype_promotion('standard'),
      warnings.catch_warnings(),
    ):
      # It may be imported already.
      warnings.filterwarnings('ignore', '.*found in sys.modules')
      runpy.run_module(
        f'experiments.{name}', run_name='__main__', alter_sys=True
      )
      code = 0
  except SystemExit as ended:
    code = ended.code or 0
  finally:
    sys.argv = argv
  return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def own_flags(name: str):
  """Takes all flags but absl's away for a while; a script adds its own."""
  app.define_help_flags()
  inside = vars(flags.FLAGS)
  before = {table: _copied(inside[table]) for table in _TABLES}
  by_module = inside['__flags_by_module']
  absl = {
    id(flag)
    for module, found in by_module.items()
    if module.startswith('absl.')
    for flag in found
  }
  for flag, value in before['__flags'].items():
    if id(value) not in absl:
      del inside['__flags'][flag]
  for module in list(by_module):
    if not module.startswith('absl.'):
      del by_module[module]
  for module, found in _kept.items():
    if name.startswith(_IMPORTED[module]):
      for flag in found:
        flag.unparse()
        inside['__flags'][flag.name] = flag
        flags.FLAGS.register_flag_by_module(module, flag)
  try:
    with flagsaver.flagsaver():  # which forgets what is defined within it
      try:
        yield
      finally:
        for module in _IMPORTED:
          for where in (by_module, before['__flags_by_module']):
            if where.get(module):
              _kept[module] = list(where[module])
  finally:
    for table in _TABLES:
      inside[table].clear()
      inside[table].update(before[table])


def _copied(table):
  return {k: list(v) if isinstance(v, list) else v for k, v in table.items()}
