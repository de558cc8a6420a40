"""How scripts are started."""

import shlex
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from experiments.records import folders
from experiments.running import accelerators, compilation, control
from experiments.script import failures
from experiments.settings import help_screens


def define_quiet_flag():
  """Defines --quiet."""
  flags.DEFINE_bool('quiet', False, 'show no progress, only what came out')


def quiet() -> bool:
  """Whether no progress is to be shown."""
  return flags.FLAGS.quiet


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
      rest = parsed(argv)
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
      compilation.keep(flags.FLAGS.compilation_cache)
    prepared = prepare()
    if computes and (found := device_fn(prepared)):
      quietly = 'quiet' in flags.FLAGS and quiet()
      accelerators.say(found, quiet=quietly)
    main(prepared)

  again = command() if goes_on else ''
  with control.interruptible(), failures.told(again), folders.held():
    app.run(checked, flags_parser=parse)


def parsed(argv: list[str]) -> list[str]:
  """Parses a command line, with the flag files that it names.

  The data_path of a flag file is that of its data set: where another data set
  is asked for beside it, the path is forgotten.

  Args:
    argv: the script's name and its arguments.

  Returns:
    What are no flags, after the script's name.
  """
  rest = flags.FLAGS(argv)
  if 'data_path' in flags.FLAGS and 'dataset' in flags.FLAGS:
    own, files = _without_files(argv[1:])
    ours, theirs = _data_flags(own), _data_flags(files)
    name, path = flags.FLAGS['dataset'], flags.FLAGS['data_path']
    if (
      path.value == theirs.data_path
      and path.value != ours.data_path
      and name.value != (theirs.dataset or name.default)
    ):
      path.value = ours.data_path or path.default
  return rest


def _without_files(arguments: list[str]) -> tuple[list[str], list[str]]:
  """Arguments as (those that name no flag files, those that do)."""
  own, files, rest = [], [], iter(arguments)
  for argument in rest:
    name, equals, _ = argument.lstrip('-').partition('=')
    if not (argument.startswith('-') and name == 'flagfile'):
      own.append(argument)
    else:
      files += [argument] if equals else [argument, next(rest)]
  return own, files


def _data_flags(arguments: list[str]) -> flags.FlagValues:
  """What arguments alone say of the data; None where they do not."""
  found = flags.FlagValues()
  for name in ('dataset', 'data_path'):
    flags.DEFINE_string(name, None, '', flag_values=found)
  found(['', *arguments], known_only=True)
  return found


def _is_ours(script) -> bool:
  name = script.__spec__.name if script.__spec__ else ''
  return name.startswith('experiments.')


def command() -> str:
  """The command that started this process."""
  spec = sys.modules['__main__'].__spec__
  name = spec.name if spec else sys.argv[0]
  return f'python -m {shlex.join([name, *sys.argv[1:]])}'
