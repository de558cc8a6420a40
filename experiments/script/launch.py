"""How scripts are started."""

import os
import shlex
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from experiments.records import folders
from experiments.running import accelerators, compilation, control
from experiments.script import failures, flag_files, shared_flags, streams
from experiments.settings import help_screens, path_flags


def launch(
  main: Callable[[Any], None],
  prepare: Callable[[], Any],
  *,
  goes_on: bool = False,
  device_fn: Callable[[Any], object | None] = lambda _: accelerators.here(),
):
  """Parses the flags and runs a script.

  One that computes (it has --compilation_cache) says first with what.

  Args:
    main: `main(prepared)`; Ctrl-C in it ends with exit code 130, a second one
      at once.
    prepare: reads and checks every flag before anything is computed.
    goes_on: whether the same command goes on where it was interrupted.
    device_fn: `device_fn(prepared)` is what the script computes with, for
      `accelerators.say`; None where it says so itself, or computes nothing.
  """
  script = sys.modules['__main__']
  if not _is_ours(script):  # a test
    script = sys.modules[main.__module__]

  def parse(argv):
    help_screens.define(script)
    try:
      rest = flag_files.parsed(argv)
    except (flags.Error, ValueError) as error:  # absl lets some through
      failures.fail(failures.of_absl(error))
    if len(rest) > 1:
      failures.fail(
        f'unexpected argument {rest[1]!r}: all settings are --flags'
      )
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    return rest

  def checked(argv):
    del argv
    computes = 'compilation_cache' in flags.FLAGS
    if computes:
      accelerators.check()
      compilation.keep(flags.FLAGS.compilation_cache)
    for flag, path in path_flags.outputs().items():
      folders.writable_file(flag, path)
    prepared = prepare()
    if computes and (found := device_fn(prepared)):
      accelerators.say(found, quiet=shared_flags.quiet())
    main(prepared)

  again = command() if goes_on else ''
  # Figures are files: no window is opened, whatever backend there is.
  os.environ['MPLBACKEND'] = 'agg'
  with (
    streams.held(),
    control.interruptible(),
    failures.told(again),
    folders.held(),
  ):
    app.run(checked, flags_parser=parse)


def _is_ours(script) -> bool:
  name = script.__spec__.name if script.__spec__ else ''
  return name.startswith('experiments.')


def command() -> str:
  """The command that started this process."""
  spec = sys.modules['__main__'].__spec__
  name = spec.name if spec else sys.argv[0]
  return f'python -m {shlex.join([name, *sys.argv[1:]])}'
