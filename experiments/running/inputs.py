"""What a run reads from files, known by what it holds, not by its path.

These are the data, see `fingerprint` of `ga_jax.data`'s classes, and the trace
whose times --clock=recorded plays. Both are kept with every run and every cell,
and compared where one goes on, is replayed, or is taken as finished.
"""

from typing import Any

import ga_jax
from experiments import tasks
from experiments.running import environment
from experiments.settings import table as settings_lib
from ga_jax.data import fingerprint

_TIMES = 'recorded times'


def of(settings: settings_lib.Settings) -> dict[str, str]:
  """What the inputs of a run are known by.

  Returns:
    {name: 'SIZE-DIGEST'}: 'train data' and what else the data have, and
    'recorded times' where the run plays some.

  Raises:
    SettingError: the data or the times cannot be read.
  """
  data = tasks.fingerprint_of(settings)
  found = {f'{part} data': known for part, known in data.items()}
  if settings.clock_times:
    try:
      events = ga_jax.Trace.load(settings.clock_times).events
    except (OSError, ga_jax.TraceError) as error:
      raise settings_lib.SettingError(
        'clock_times', settings.clock_times, str(error)
      ) from error
    found[_TIMES] = fingerprint.of_arrays(
      *(events[name] for name in events.dtype.names)
    )
  return found


def differences(
  recorded: dict[str, Any], now: dict[str, str]
) -> list[environment.Difference]:
  """What differs of recorded inputs, by name."""
  return [
    environment.Difference(name, recorded.get(name), now.get(name))
    for name in recorded | now
    if recorded.get(name) != now.get(name)
  ]


def flag_of(
  settings: settings_lib.Settings, found: list[environment.Difference]
) -> tuple[str, str]:
  """The flag that names inputs that differ, and what it is set to."""
  if {one.name for one in found} == {_TIMES}:
    return 'clock_times', settings.clock_times
  if settings.data_path:
    return 'data_path', settings.data_path
  return 'dataset', settings.dataset
