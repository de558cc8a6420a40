"""What a run began with, compared where it goes on or is computed again.

began.json holds the settings and what the inputs are known by (`inputs`), and
so does every checkpoint. Runs of before have none: of them nothing is compared.
"""

import dataclasses
import os
import sys
from typing import Any

from experiments.records import contents, record
from experiments.running import environment, inputs, setup
from experiments.settings import table as settings_lib
from ga_jax.guards import forms
from ga_jax.record import checkpoints, files

FILE = 'began.json'
# Where something is says nothing of what it is: inputs are known by content,
# and who moves them edits config.json. That it was edited is told all the same.
_WHEREABOUTS = ('data_path', 'clock_times', 'address')


def of(settings: settings_lib.Settings) -> dict[str, Any]:
  """What a run begins with, as JSON keeps it.

  Returns:
    {'settings': {name: value}, 'inputs': {name: 'SIZE-DIGEST'}}; of the
    settings, parameters among them, those that are no defaults.

  Raises:
    SettingError: the data cannot be read.
  """
  return {'settings': chosen(settings), 'inputs': inputs.of(settings)}


def chosen(settings: settings_lib.Settings) -> dict[str, Any]:
  """The settings that are no defaults, so that a new one changes nothing."""
  named = {
    name: value
    for name, value in dataclasses.asdict(settings).items()
    if name not in _WHEREABOUTS and value != _default(name)
  }
  parameters = dict(named.pop('parameters', ()))
  return files.to_json({**named, **parameters})


def save(workdir: str, about: dict[str, Any], batches_per_row: int):
  """Writes began.json.

  Args:
    workdir: of the run; what else it begins with is written already.
    about: as `of`.
    batches_per_row: see `setup.batches_per_row`; for `reached`.
  """
  digests = {
    name: files.sha256(os.path.join(workdir, name)) for name in record.BEGINNING
  }
  more = {'batches_per_row': batches_per_row, 'sha256': digests}
  files.write_json(os.path.join(workdir, FILE), {**about, **more})


def changed_files(workdir: str) -> list[str]:
  """The files that a run began with and that are others now, in words.

  Args:
    workdir: of a run that has not ended.

  Raises:
    SettingError: began.json is damaged.
  """
  was, wrong = (load(workdir) or {}).get('sha256', {}), []
  for name in record.BEGINNING:
    path = os.path.join(workdir, name)
    if name in was and not os.path.isfile(path):
      wrong.append(f'{name} is missing')
    elif name in was and files.sha256(path) != was[name]:
      wrong.append(f'{name} was changed after the run began')
  return wrong


def load(workdir: str) -> dict[str, Any] | None:
  """What a run began with, as `of`; None where it was not written down.

  Raises:
    SettingError: began.json is damaged.
  """
  if not os.path.exists(os.path.join(workdir, FILE)):
    return None
  return record.load_json(workdir, FILE)


def saved(workdir: str) -> dict[str, dict[str, Any]]:
  """What was written down of the beginning of a run.

  Args:
    workdir: of the run.

  Returns:
    {path: as `of`}, of began.json and of the newest checkpoint, where they are
    there and hold it.

  Raises:
    SettingError: began.json is damaged.
  """
  was = load(workdir)
  found = {os.path.join(workdir, FILE): was} if was else {}
  last = newest(workdir)
  about = last and _about_of(last)
  return {**found, last.path: about} if about else found


def newest(workdir: str) -> checkpoints.Checkpoint | None:
  """The newest whole checkpoint of a run; None where there is none.

  Raises:
    SettingError: version 0.1 saved it.
  """
  store = checkpoints.CheckpointStore(os.path.join(workdir, setup.CHECKPOINTS))
  try:
    return store.newest(warn=lambda text: None)  # told where it is used
  except checkpoints.PickledError as error:
    version = record.load_json(workdir, 'versions.json').get('ga_jax')
    raise settings_lib.SettingError(
      'resume',
      True,
      f'{workdir} has checkpoints of ga_jax {version}, which are pickled and '
      'may run anything when they are read: go on with that version',
    ) from error


def _about_of(last: checkpoints.Checkpoint) -> dict[str, Any] | None:
  """What a checkpoint says of the beginning, if it does."""
  about = last.host.get('about') if isinstance(last.host, dict) else None
  if about is None:
    return None
  try:
    contents.BY_NAME[FILE](about, 'about')
  except forms.FormError as error:
    raise settings_lib.SettingError(
      'resume', True, f'{last.path} is of no run that can go on: {error}'
    ) from error
  return about


def restore_environment(workdir: str):
  """Makes the environment that a run began in, or says what differs.

  Args:
    workdir: of the run.
  """
  for one in changed_files(workdir):
    print(f'note: {one}', file=sys.stderr)
  variables, remaining = record.environment_of(workdir)
  if remaining:
    named = '; '.join(map(str, remaining))
    print(
      f'note: not as it began: {named}. It will not replay to the same bits.',
      file=sys.stderr,
    )
  elif variables:
    environment.restart(variables)


def check_settings(
  began: dict[str, dict[str, Any]], settings: settings_lib.Settings
):
  """Raises a SettingError that names the settings that are others now.

  Args:
    began: see `saved`.
    settings: as they are read now.
  """
  now = chosen(settings)
  for path, was in began.items():
    changed = [
      environment.Difference(
        f'--{name}', *(_shown(name, one) for one in (was['settings'], now))
      )
      for name in was['settings'] | now
      if was['settings'].get(name) != now.get(name)
    ]
    if changed:
      raise settings_lib.SettingError(
        'resume',
        True,
        f'config.json is not what {path} was made with: '
        f'{"; ".join(map(str, changed))}. Put it back, or begin another run',
      )


def check_inputs(
  began: dict[str, dict[str, Any]], settings: settings_lib.Settings
):
  """Raises a SettingError that names the inputs that hold something else now.

  Args:
    began: see `saved`.
    settings: of the run.
  """
  now = inputs.of(settings) if began else {}
  for path, was in began.items():
    if changed := inputs.differences(was['inputs'], now):
      flag, got = inputs.flag_of(settings, changed)
      raise settings_lib.SettingError(
        flag,
        got,
        f'is not what {path} was made with: {"; ".join(map(str, changed))}. '
        'Give the run what it began with, or begin another one',
      )


def _default(name: str):
  field = settings_lib.Settings.__dataclass_fields__.get(name)
  return None if field is None else field.default


def _shown(name: str, values: dict[str, Any]):
  default = _default(name)
  unset = 'its default' if default is None else files.to_json(default)
  return values.get(name, unset)
