"""The pictures of a study: over workers, learning rates, epochs and time."""

import os

from experiments import tasks
from experiments.reporting import statistics
from experiments.studies import rate_search
from experiments.studies import study as study_lib
from ga_jax import plots


def draw(
  study: study_lib.Study,
  clock: str,
  outcomes: list[rate_search.Outcome],
  metric: tasks.Metric,
) -> list[str]:
  """Draws what the table asks for.

  Args:
    study: whose folder the pictures go to.
    clock: of the outcomes.
    outcomes: what is drawn.
    metric: what the runs are judged by.

  Returns:
    Markdown lines that show the pictures.
  """
  s = study.plans[clock].example()
  title = f'{s.model} on {s.data_name()}, {clock} clock'
  lines = []

  def show(kind, figure):
    tail = f'-{clock}' if len(study.plans) > 1 else ''
    name = f'{kind}{tail}.png'
    lines.extend([f'![{kind.replace("-", " ")}]({name})', ''])
    plots.save(figure, os.path.join(study.folder, name))

  if 'workers' in study.table.pictures:
    for outcome in filter(rate_search.Outcome.runs, outcomes):
      figure = plots.error_over_workers(
        _by_workers(study, outcome),
        title=f'{title}, learning rate: {outcome.name}',
        label=metric.label,
      )
      show(f'error-{outcome.name}', figure)
  if 'rates' in study.table.pictures and outcomes[-1].scores:
    figure = plots.error_over_rates(
      _by_rates(outcomes[-1], metric),
      title=title,
      label=metric.label.replace('test', 'validation'),
    )
    show('error-over-rate', figure)
  if {'epochs', 'time'} & set(study.table.pictures):
    outcome = outcomes[-1]
    columns = study.plans[clock].columns
    across = 'time' if 'time' in study.table.pictures else 'epoch'
    figure = plots.curves(
      {c: _by_epochs(outcome, c, across, metric) for c in columns},
      title=title,
      label={'epoch': 'epoch', 'time': 'time in mean batch times'}[across],
    )
    show(f'over-{across}', figure)
  return lines


def _by_workers(study, outcome):
  number = {c.label: c.workers for c in study.table.columns}
  return {
    line: {
      number[c]: statistics.errors(runs) for c, runs in row.items() if runs
    }
    for line, row in outcome.results.items()
    if any(row.values())
  }


def _by_rates(outcome, metric):
  """{column: {line: {rate: validation metric, None where it diverged}}}."""
  panels = {}
  for (line, column), scores in outcome.scores.items():
    panels.setdefault(column, {})[line] = {
      rate: None if score >= metric.worst else metric.scale * score
      for rate, score in sorted(scores.items())
    }
  return panels


def _by_epochs(outcome, column, across, metric):
  """{what: {line: (x, mean over seeds)}} of the runs that did not diverge."""
  shown = {
    metric.label: (f'test_{metric.name}', metric.scale),
    'gap (RMS)': ('mean_gap', 1.0),
    'penalty': ('mean_penalty', 1.0),
    'staleness': ('mean_staleness', 1.0),
  }
  if across == 'time':
    shown = {metric.label: shown[metric.label]}
  return {
    label: {
      line: (
        statistics.by_epoch(row[column], across),
        scale * statistics.by_epoch(row[column], name),
      )
      for line, row in outcome.results.items()
      if row[column] and not any(s['diverged'] for s in row[column])
    }
    for label, (name, scale) in shown.items()
  }
