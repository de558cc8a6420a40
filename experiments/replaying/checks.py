"""Whether a record is whole, and its files and data are as the run had them."""

import ga_jax
from experiments.records import began, digests, record, verification
from experiments.running import environment, inputs, setup
from experiments.settings import table as settings_lib

# What is read of the record.
_READ = ('config.json', 'environment.json', 'trace.npz', 'summary.json')
_READ += (began.FILE, digests.PARAMS)


def trace_of(workdir: str, settings: settings_lib.Settings) -> ga_jax.Trace:
  """The trace, which must be right in itself and be of this run.

  Args:
    workdir: of the run.
    settings: of the run.

  Raises:
    SettingError: it is not.
  """
  try:
    trace = record.load_trace(workdir)
    trace.verify(complete=False)
    summary = record.load_json(workdir, 'summary.json')
    verification.check_workers(trace, summary)
  except ga_jax.TraceError as error:
    raise settings_lib.SettingError(
      'workdir', workdir, f'trace.npz is wrong: {error}'
    ) from error
  wanted = settings.workers, setup.total_batches(settings)
  if (trace.num_workers, trace.num_batches) != wanted:
    raise settings_lib.SettingError(
      'workdir',
      workdir,
      f'trace.npz is of {trace.num_workers} workers and {trace.num_batches} '
      f'batches, config.json of {wanted[0]} and {wanted[1]}',
    )
  return trace


def changed_files(workdir: str) -> list[str]:
  """The files to be read that are not as the run saved them, in words."""
  compared = digests.compare(workdir, _READ)
  return [] if compared is None else compared.wrong


def changed_inputs(
  workdir: str, settings: settings_lib.Settings
) -> list[environment.Difference]:
  """What the data hold else than they did."""
  was = began.load(workdir)
  return inputs.differences(was['inputs'], inputs.of(settings)) if was else []
