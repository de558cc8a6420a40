"""Command lines with flag files, such as the presets."""

from absl import flags


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
