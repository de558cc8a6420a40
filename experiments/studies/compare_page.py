"""The page of a comparison over numbers of workers, and its pictures."""

import os

from experiments import tasks
from experiments.reporting import statistics, tables
from experiments.running import environment
from experiments.studies import rate_search
from ga_jax import plots


def write(
  plan: rate_search.Plan,
  outcomes: list[rate_search.Outcome],
  workdir: str,
  *,
  baseline: str,
  note: str,
  command: str,
):
  """Writes table.md, results.json and a picture per protocol.

  Args:
    plan: what was compared.
    outcomes: what came out.
    workdir: to write to.
    baseline: method whose single worker sets the unchanged rate.
    note: a line under every table; '' for none.
    command: that made them.
  """
  lines = []
  for outcome in outcomes:
    lines += section(plan, outcome, baseline, note, command)
    lines += [_draw(plan, outcome, workdir), '']
  results = {outcome.name: outcome.results for outcome in outcomes}
  tables.write(workdir, results, '\n'.join(lines))


def section(
  plan: rate_search.Plan,
  outcome: rate_search.Outcome,
  baseline: str,
  note: str,
  command: str,
) -> list[str]:
  """The tables of one protocol, in lines; arguments as of `write`."""
  s = plan.example()
  updates, seconds = statistics.totals(outcome.runs())
  caption = tasks.task_of(s).metric.label.capitalize()
  return [
    f'{caption}, mean ± standard deviation over {len(plan.seeds)} '
    f'seed{"s" if len(plan.seeds) > 1 else ""}: {s.model} on '
    f'{s.data_name()}, {s.epochs:g} epochs in all, batch {s.batch_size}, '
    f'{s.clock} clock.',
    '',
    tables.error_table(outcome.results, plan.columns),
    '',
    rate_search.EXPLAINED[outcome.name].format(
      rate=s.learning_rate, baseline=baseline
    ),
    *([note] if note else []),
    *(
      ['', rate_search.rate_table(outcome, plan.columns)] if plan.rates else []
    ),
    '',
    f'{updates:,} updates in {seconds:.0f} s on '
    f'{environment.versions()["device"]}; command: {command}',
  ]


def _draw(plan, outcome, workdir) -> str:
  s = plan.example()
  picture = os.path.join(workdir, f'error-{outcome.name}.png')
  figure = plots.error_over_workers(
    {
      name: {n: statistics.errors(cell) for n, cell in line.items()}
      for name, line in outcome.results.items()
    },
    title=f'{s.model} on {s.data_name()}, {s.clock} clock, learning rate: '
    + (f'{s.learning_rate:g}' if outcome.name == 'fixed' else outcome.name),
    label=tasks.task_of(s).metric.label,
  )
  plots.save(figure, picture)
  return f'Picture: {picture}'
