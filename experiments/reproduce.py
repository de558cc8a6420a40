"""Makes the tables and figures of the papers, and ours, again.

Question: what does each method give, over workers, beside what was published?

  python -m experiments.reproduce --list
  python -m experiments.reproduce --table=digits_mlp
  python -m experiments.reproduce --table=cifar10_resnet20

The runs of a table (studies/papers.py) are done one after the other, or as
many at a time as there are accelerators, all methods with one seed first; each
that is finished is a line of metrics.jsonl and is never done again, so a table
that was killed, or whose --seconds were over, goes on where it was. Written:
table.md, which says what is missing, and pictures. Flags given here win over
the preset's.
"""

import math
import os
import sys
import time

from absl import flags

from experiments import tasks
from experiments.records import folders
from experiments.running import train
from experiments.screens import progress
from experiments.script import flag_files, launch, name_flags, shared_flags
from experiments.settings import path_flags
from experiments.settings import table as settings_lib
from experiments.studies import design, listing, papers, study_page
from experiments.studies import processes as processes_lib
from experiments.studies import study as study_lib

shared_flags.define_run_flags(without=(*shared_flags.OF_ONE_RUN, 'clock'))
shared_flags.define_mapped()
SCALES = ('smoke', 'short', *design.DIVIDED, 'full')
_STARTED = time.monotonic()
_TABLE = flags.DEFINE_string('table', '', '|'.join(papers.TABLES))
_SCALE = flags.DEFINE_string('scale', 'full', '|'.join(SCALES))
_LIST = flags.DEFINE_bool('list', False, 'say which tables there are')
_SEEDS = flags.DEFINE_integer('seeds', 0, "per cell (0: the table's)")
_COLUMNS = flags.DEFINE_integer('columns', 0, 'the first so many (0: all)')
_WORKERS = flags.DEFINE_list(
  'workers', [], 'columns with so many workers (none: all)'
)
_METHODS = name_flags.several('methods', [], "some of the table's (none: all)")
_CLOCKS = flags.DEFINE_list('clocks', [], "some of the table's (none: all)")
_PROCESSES = flags.DEFINE_integer(
  'processes', 0, 'runs at a time (0: one per accelerator)'
)
_SECONDS = flags.DEFINE_float(
  'seconds',
  0.0,
  'after which no run is begun and the one in hand is given up; the table then '
  'says what is missing (0: no end)',
)
_FOLDER = path_flags.one(
  'folder', '', 'folder to write to (default: results/TABLE, with the scale)'
)
_RATE = shared_flags.define('learning_rate', 'where the table sweeps none')


def prepare() -> study_lib.Study | None:
  """Reads the preset, checks every cell of the table, reads the data."""
  if _LIST.value:
    return None
  for flag, table in ((_TABLE, papers.TABLES), (_SCALE, SCALES)):
    if flag.value not in table:
      more = '; --list tells of them' if table is papers.TABLES else ''
      raise settings_lib.SettingError(
        flag.name, flag.value, f'must be one of {", ".join(table)}{more}'
      )
  name, scale = _TABLE.value, _SCALE.value
  table = papers.TABLES[name]
  scaled = {
    'smoke': table.smoke,
    'short': table.short,
    'full': (),
    **{name: table.divided(by) for name, by in design.DIVIDED.items()},
  }[scale]
  flag_files.parsed(
    [
      sys.argv[0],
      f'--flagfile={table.preset_path()}',
      *table.flags,
      *scaled,
      *sys.argv[1:],
    ]
  )
  table = _chosen(table)
  _check(table)
  columns = table.columns[: _COLUMNS.value or None]
  plans = {
    clock: study_lib.plan_of(
      table,
      columns,
      _SEEDS.value or table.seeds,
      shared_flags.run_settings,
      clock,
    )
    for clock in table.clocks
  }
  example = next(iter(plans.values())).example()
  tasks.source_of(example)
  if table.rates and not example.holdout:
    raise settings_lib.SettingError(
      'holdout', 0, f'--table={name} sweeps rates: at least 1'
    )
  tail = '' if scale == 'full' else f'-{scale}'
  if _METHODS.value or _CLOCKS.value or _COLUMNS.value or _WORKERS.value:
    tail += '-part'  # beside the whole one
  folder = _FOLDER.value or os.path.join('results', name + tail)
  folder = folders.of_grid('folder', folder)
  return study_lib.Study(
    name, table, plans, folder, scale, flags.FLAGS.mapped_seeds
  )


def _check(table: design.Table):
  """Raises a SettingError where a flag has no meaning for a table."""
  shared_flags.check_seeds(_SEEDS.value, 0)
  for flag in (_COLUMNS, _PROCESSES, _SECONDS):
    if not 0 <= flag.value < math.inf:
      raise settings_lib.SettingError(
        flag.name, flag.value, 'must be at least 0'
      )
  row = settings_lib.Settings.rows()['learning_rate']
  given = {one.lstrip('-').partition('=')[0] for one in sys.argv}
  if table.rates and given & {'learning_rate', row.alias}:
    raise settings_lib.SettingError(
      'learning_rate', _RATE.value, f'--table={_TABLE.value} sweeps rates'
    )
  if flags.FLAGS.mapped_seeds and table.curves:
    why = f'--table={_TABLE.value} shows epochs, which need a run at a time'
    raise settings_lib.SettingError('mapped_seeds', True, why)
  if flags.FLAGS.runtime != 'simulate' and 'time' in table.pictures:
    raise settings_lib.SettingError(
      'runtime',
      flags.FLAGS.runtime,
      f'--table={_TABLE.value} is of the simulated cluster alone',
    )


def _chosen(table: design.Table) -> design.Table:
  """The table with the methods, workers and clocks that are wanted."""
  if _METHODS.value:
    there = dict.fromkeys(line.method for line in table.lines)
    shared_flags.check_names('methods', _METHODS.value, there)
    kept = (line for line in table.lines if line.method in _METHODS.value)
    table = table._replace(lines=tuple(kept))
  if _WORKERS.value:
    there = dict.fromkeys(str(column.workers) for column in table.columns)
    shared_flags.check_names('workers', _WORKERS.value, there)
    kept = (c for c in table.columns if str(c.workers) in _WORKERS.value)
    table = table._replace(columns=tuple(kept))
  if _CLOCKS.value:
    shared_flags.check_names('clocks', _CLOCKS.value, table.clocks)
    table = table._replace(clocks=tuple(_CLOCKS.value))
  if flags.FLAGS.runtime != 'simulate':  # its times are what they are
    table = table._replace(clocks=(settings_lib.Settings().clock,))
  return table


def computing(study: study_lib.Study | None) -> object:
  """What computes: several processes have a device each, and this one none."""
  if study is None:
    return None
  settings = next(iter(study.plans.values())).example()
  if settings.runtime == 'ray' or _PROCESSES.value == 1:
    return train.computes_with(settings)
  return processes_lib.devices_here()


def main(study: study_lib.Study | None):
  if study is None:
    print(listing.listing())
    return
  processes = _PROCESSES.value or processes_lib.processes_here()
  with progress.GridProgress(None, quiet=shared_flags.quiet()) as shown:
    ends = _STARTED + _SECONDS.value if _SECONDS.value else math.inf
    if not processes_lib.compute(study, processes, shown, ends):
      print(
        f'{_SECONDS.value:g} seconds are over: the same command goes on with '
        'what is missing'
      )
  study_page.write(study, launch.command())


if __name__ == '__main__':
  launch.launch(main, prepare, goes_on=True, device_fn=computing)
