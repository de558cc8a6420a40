"""The flags of a survey: all methods at one number of workers."""

from typing import Any

from absl import flags

from experiments.catalogue import methods
from experiments.script import name_flags, shared_flags
from experiments.settings import path_flags
from experiments.settings import table as settings_lib


def define():
  """Defines them, with those of `Settings`."""
  shared_flags.define_run_flags(
    without=(*shared_flags.OF_ONE_RUN, 'clock'), live=False
  )
  shared_flags.define_mapped()
  name_flags.several('methods', list(methods.METHODS), 'default: all')
  flags.DEFINE_list(
    'clocks', ['homogeneous', 'heterogeneous'], ','.join(settings_lib.CLOCKS)
  )
  flags.DEFINE_integer('workers', 16, 'simulated workers')
  flags.DEFINE_integer('seeds', 5, 'runs per cell: seeds 0, 1, ...')
  flags.DEFINE_list(
    'learning_rates', ['0.01', '0.03', '0.1'], 'increasing, to begin with'
  )
  name_flags.one(
    'baseline', 'asgd', 'method whose single worker sets the unchanged rate'
  )
  path_flags.one('workdir', 'runs/survey', 'folder to write to')


def read() -> dict[str, Any]:
  """What is asked for, as `method_survey.plans` takes it.

  Raises:
    SettingError: a flag cannot be used.
  """
  values = flags.FLAGS
  rates = shared_flags.number_list(
    'learning_rates', values.learning_rates, float
  )
  shared_flags.check_names('methods', values.methods, methods.METHODS)
  shared_flags.check_names('clocks', values.clocks, settings_lib.CLOCKS)
  shared_flags.check_names('baseline', [values.baseline], methods.METHODS)
  shared_flags.check_rates(rates)
  if not rates:
    raise settings_lib.SettingError(
      'learning_rates', '', 'must name at least one'
    )
  shared_flags.check_seeds(values.seeds)
  return {
    'names': values.methods,
    'clocks': values.clocks,
    'workers': values.workers,
    'rates': rates,
    'seeds': tuple(range(values.seeds)),
    'baseline': values.baseline,
  }
