"""One table of all methods: what each gives and what it costs.

Question: test error, time, staleness, wasted work and bytes of every method at
one number of workers?

  python -m experiments.survey \\
    --flagfile=experiments/presets/digits_methods.flags

Both protocols of `experiments.compare` (the single worker's best rate for all,
and each method's own), on each of --clocks, paired. Finished runs are kept
under --workdir and skipped when the command is run again. Written: table.md and
results.json.
"""

import os

from absl import flags

from experiments import tasks
from experiments.records import cells as cells_lib
from experiments.records import folders, record
from experiments.reporting import tables
from experiments.screens import progress
from experiments.script import launch, shared_flags, survey_flags
from experiments.studies import method_survey, rate_search

survey_flags.define()


def prepare() -> tuple[dict[str, rate_search.Plan], str]:
  """Checks every flag and cell; reads the data."""
  plans = method_survey.plans(
    **survey_flags.read(), make=shared_flags.run_settings
  )
  tasks.source_of(next(iter(plans.values())).example())
  return plans, folders.of_grid('workdir', flags.FLAGS.workdir)


def main(prepared):
  plans, workdir = prepared
  with progress.GridProgress(None, quiet=shared_flags.quiet()) as shown:
    path = os.path.join(workdir, record.METRICS)
    cells = cells_lib.Cells(
      path, shown, running=shown.running, mapper=shared_flags.mapper()
    )
    found = {
      clock: rate_search.outcomes(plan, cells) for clock, plan in plans.items()
    }
  results = {
    clock: {outcome.name: outcome.results for outcome in outcomes}
    for clock, outcomes in found.items()
  }
  text = method_survey.page(plans, found, launch.command())
  tables.write(workdir, results, text)


if __name__ == '__main__':
  launch.launch(main, prepare, goes_on=True)
