"""The finished runs of a grid: a line each in one file, and never run twice.

Several processes may append to the same file. A line that was cut short, where
a process was killed or the disk was full, is passed over and computed again. So
is one whose data were others than those that are read now (`inputs`), and the
new line takes its place; of lines of before, which do not say, nothing is
compared.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from experiments import tasks
from experiments.records import contents, folders
from experiments.running import (
  environment,
  inputs,
  mapped,
  setup,
  train,
  watch,
)
from experiments.settings import table as settings_lib
from ga_jax.record import files

# Summaries keep them in a run's own folder; in a grid they are most bytes.
_LONG = (
  *('staleness_histogram', 'gap_histogram', 'penalty_histogram'),
  *('worker_seconds', 'refused'),
)


class Cells:
  """Runs settings and remembers their summaries in a file."""

  def __init__(
    self,
    path: str,
    advance: Callable[[str], None] = lambda name: None,
    *,
    running: Callable[
      [settings_lib.Settings, watch.Progress], None
    ] = lambda settings, now: None,
    any_version: bool = False,
    computed_as_fn: Callable[
      [settings_lib.Settings], settings_lib.Settings
    ] = lambda settings: settings,
    kept_fn: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found,
    begins: Callable[[settings_lib.Settings], None] = lambda settings: None,
    computes: bool = True,
    mapper: mapped.Mapper | None = None,
  ):
    """Reads what is there.

    Args:
      path: of the file of JSON lines; its folder is made.
      advance: told the name of every run that is asked for.
      running: told where the run in hand stands.
      any_version: whether runs of other versions and devices count as finished;
        each line says whose it is.
      computed_as_fn: the run that is computed in the place of one that equals
        it.
      kept_fn: what is kept of a summary.
      begins: told of every run before it is computed.
      computes: whether what is missing is computed; else it is passed over.
      mapper: computes runs together; None to do one after the other.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    self._path = path
    self._advance = advance
    self._running = running
    self._any_version = any_version
    self._computed_as_fn = computed_as_fn
    self._kept_fn = kept_fn
    self._begins = begins
    self._computes = computes
    self._mapper = mapper
    self.computed = 0
    self.rows = read(path)
    self._told = False  # of other data

  def summary(
    self, settings: settings_lib.Settings, *, curve: bool = False
  ) -> dict[str, Any] | None:
    """The summary of a run: from the file where it is there, else by running.

    Args:
      settings: checked settings.
      curve: whether it must have the metrics of every epoch, as 'curve'.

    Returns:
      The summary as `train.train` makes it, without its histograms; None where
      it is not there and nothing is to be computed.
    """
    settings = self._computed_as_fn(settings)
    name = cell_name(settings, any_version=self._any_version)
    if not self._computes:
      return self.rows[name] if self._has(name, settings, curve) else None
    if not self._has(name, settings, curve):
      self.rows = read(self._path)  # others may have written
    if not self._has(name, settings, curve):
      self._tell(name, settings)
      self._begins(settings)
      self._keep(name, self._computed(settings, curve))
    self._advance(name)
    return self.rows[name]

  def together(self, settings: Sequence[settings_lib.Settings]):
    """Computes those of several runs that are not there in one program.

    Does nothing without a mapper, nor where one after the other is sooner.

    Args:
      settings: checked ones, which differ in seeds and learning rates alone.
    """
    if not (self._mapper and self._computes):
      return
    missing = {
      cell_name(s, any_version=self._any_version): s
      for s in map(self._computed_as_fn, settings)
    }
    self.rows = read(self._path)  # others may have written
    missing = {n: s for n, s in missing.items() if not self._has(n, s, False)}
    if len(missing) < 2:
      return
    for name, one in missing.items():
      self._tell(name, one)
    runs = [*missing.values()]
    self._begins(runs[0])
    per_epoch = tasks.batches_per_epoch(runs[0])
    total = setup.total_batches(runs[0])

    def observe(batches):
      now = watch.Progress(batches / per_epoch, batches, total, None, None)
      self._running(runs[0], now)

    for name, one, done in zip(
      missing, runs, self._mapper(runs, observe), strict=True
    ):
      if done:
        self._keep(name, self._kept(one, done.summary))

  def _keep(self, name, found):
    folders.check()
    append(self._path, {'cell': name, **found})
    self.rows[name] = files.to_json(found)
    self.computed += 1

  def _has(self, name, settings, curve):
    found = self.rows.get(name)
    if found is None or (curve and 'curve' not in found):
      return False
    return not _other_inputs(found, settings)

  def _tell(self, name, settings):
    """Says once that, and why, finished runs are computed again."""
    found = _other_inputs(self.rows.get(name, {}), settings)
    if found and not self._told:
      flag, got = inputs.flag_of(settings, found)
      print(
        f'note: --{flag}={got} holds something else than finished runs in '
        f'{self._path} had, which are computed again: '
        f'{"; ".join(map(str, found))}',
        file=sys.stderr,
      )
      self._told = True

  def _computed(self, settings, curve):
    epochs = []

    def observe(now):
      self._running(settings, now)
      if now.row:
        epochs.append(now.row)

    done = train.train(settings, observe=observe, evaluate_epochs=curve)
    curves = {'curve': epochs} if curve else {}
    return self._kept(settings, done.summary | curves)

  def _kept(self, settings, summary):
    """What is written of a summary."""
    summary = {k: v for k, v in summary.items() if k not in _LONG}
    summary |= {
      'clock': settings.clock,
      'jax': environment.versions()['jax'],
      'settings': chosen(settings, self._any_version),
      'inputs': inputs.of(settings),
    }
    return self._kept_fn(summary)


def _other_inputs(row, settings) -> list[environment.Difference]:
  """What the inputs of a finished run had else than they have now.

  Nothing where the line does not say. Where they cannot be read nothing could
  be computed again, and what is finished counts.
  """
  if 'inputs' not in row:
    return []
  try:
    return inputs.differences(row['inputs'], inputs.of(settings))
  except settings_lib.SettingError:
    return []


def chosen(settings: settings_lib.Settings, any_version: bool):
  """The settings that are no defaults, so that a new one renames nothing."""
  defaults = dataclasses.asdict(settings_lib.Settings())
  given = {
    name: value
    for name, value in dataclasses.asdict(settings).items()
    if value != defaults[name]
  }
  if any_version:  # wherever the data lie there
    given.pop('data_path', None)
    if settings.data_name() != settings.dataset:
      given['data_path'] = settings.data_name()
  return given


def cell_name(
  settings: settings_lib.Settings, *, any_version: bool = False
) -> str:
  """A name that differs wherever settings (or versions) differ."""
  given = chosen(settings, any_version)
  what = [given, None if any_version else environment.versions()]
  text = json.dumps(files.to_json(what), sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:10]
  s = settings
  momentum = dict(s.parameters).get('momentum')
  tail = '' if momentum is None else f'-m{momentum:g}'
  return (
    f'{s.method}-N{s.workers}-lr{s.learning_rate:g}{tail}-seed{s.seed}-{digest}'
  )


def read(path: str) -> dict[str, dict[str, Any]]:
  """The summaries in a file by the names of their cells; {} where none is."""
  if not os.path.exists(path):
    return {}
  rows, _ = files.read_json_lines(path, contents.CELL)  # some were cut short
  return {row.pop('cell'): row for row in rows}


def append(path: str, row: dict[str, Any]):
  """Appends a line, whole or not at all; several processes may."""
  line = json.dumps(files.to_json(row)).encode() + b'\n'
  with files.of_file(path), open(path, 'ab+', buffering=0) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    if file.seek(0, os.SEEK_END):
      file.seek(-1, os.SEEK_END)
      if file.read(1) != b'\n':
        line = b'\n' + line  # the line before was cut short
    files.write_all(file, line)
