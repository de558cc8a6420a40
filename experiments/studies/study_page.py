"""The page of a table: our figures beside the published ones, and pictures."""

import os
from typing import Any

import numpy as np

from experiments import tasks
from experiments.records import record
from experiments.reporting import statistics, tables
from experiments.studies import design, rate_search, study_pictures
from experiments.studies import study as study_lib

REFERENCE = 'ga'  # the method that the others are compared with
# How many times chance alone is above it: Student's t with so many seeds.
_CHANCE = {2: 'three', 3: 'five', 4: 'seven', 5: 'nine'}
_MARK = 2.0  # standard errors below which nothing is claimed


def write(study: study_lib.Study, command: str):
  """Writes table.md and the pictures of a study, of the finished runs."""
  found = study_lib.outcomes(study)
  if not _all_runs(found):
    print('no run that is shown is finished: no page is written')
    return
  text = page(study, found, command)
  tables.write_page(os.path.join(study.folder, 'table.md'), text)


def page(study, found, command: str) -> str:
  """The whole page; draws the pictures that it shows."""
  plan = next(iter(study.plans.values()))
  s = plan.example()
  metric = tasks.metric_of(_all_runs(found)[:1])
  sources = list(dict.fromkeys(v[1] for v in study.table.published.values()))
  lines = [
    f'`{command}` made this page.',
    '',
    f'# {study.table.about[0].upper()}{study.table.about[1:]}',
    '',
    _settings(study, s, metric, len(plan.seeds)),
    '',
  ]
  if missing := _missing(study, found):
    lines += [missing, '']
  if study.table.note:
    lines += [study.table.note, '']
  if sources:
    numbered = '; '.join(f'[{i + 1}] {name}' for i, name in enumerate(sources))
    lines += [
      'In brackets what was published, for another implementation and in part '
      f'other hyper-parameters: {numbered}.'
      ' Where there is no bracket no figure was available to us.',
      '',
    ]
  for clock, outcomes in found.items():
    if len(found) > 1:
      lines += [f'## {clock.capitalize()} clock', '']
    for outcome in outcomes:
      lines += _section(study, plan, clock, outcome, sources)
    lines += study_pictures.draw(study, clock, outcomes, metric)
  lines += [_origin(found), '']
  return '\n'.join(lines)


def _settings(study, s, metric, seeds: int) -> str:
  """What all runs of a page share, and what is shown of them."""
  beside = ''.join(f' and {flag}' for flag in study.table.flags)
  shown = (
    f'mean ± standard deviation over {seeds} seeds' if seeds > 1 else 'one seed'
  )
  return ' '.join(
    [
      f'{s.model} on {s.data_name()}, {s.epochs:g} epochs in all (all workers '
      f'together), batch {s.batch_size} per worker; the rest of the settings '
      f'stands in experiments/presets/{study.table.preset}.flags, but for what '
      f'the command gives{beside}.',
      *([_divided(study, s)] if study.scale in design.DIVIDED else []),
      f'{metric.label.capitalize()}: {shown}.',
      _pairing(s),
      'The parameters of the server are what is judged.',
      'Policies that average a round use a rate larger by its size.'
      if s.scale_lr
      else 'Policies that average a round use the same rate as the others.',
    ]
  )


def _divided(study, s) -> str:
  """What a schedule is that was cut down."""
  milestones = [f'{s.warmup_epochs:g} epochs of warm-up']
  if s.boundaries:
    at = ' and '.join(f'{epoch:g}' for epoch in s.boundaries)
    milestones += [f'the rate multiplied by {s.decay_factor:g} at {at}']
  return (
    f'This is the {study.scale} schedule: all epochs and milestones of the '
    f'preset divided by {design.DIVIDED[study.scale]} '
    f'({", ".join(milestones)}).'
  )


def _missing(study, found) -> str:
  """What is not finished, by protocol and column; '' for nothing."""
  parts = []
  for clock, outcomes in found.items():
    plan = study.plans[clock]
    for outcome in outcomes:
      columns = []
      for column in plan.columns:
        rows = [row[column] for row in outcome.results.values()]
        there, all_ = sum(map(len, rows)), len(rows) * len(plan.seeds)
        if there < all_:
          columns.append(f'{all_ - there} of {all_} at {column}')
      if columns:
        at = f'{outcome.name}, {clock} clock'
        parts.append(f'{at}: {", ".join(columns)}')
  if not parts:
    return ''
  return f'**Not finished.** Runs that are missing: {"; ".join(parts)}.'


def _pairing(s) -> str:
  """What the runs of one column have in common."""
  if s.runtime == 'simulate':
    return (
      'All methods of one seed and number of workers meet the same initial '
      'parameters, batches and clock.'
    )
  return (
    f'They ran on real devices (--runtime={s.runtime}): the same initial '
    'parameters and batches, but each its own order of arrivals.'
  )


def _section(study, plan, clock, outcome, sources) -> list[str]:
  s = study.plans[clock].example()
  explained = rate_search.EXPLAINED[outcome.name].format(
    rate=s.learning_rate, baseline=study.table.baseline
  )
  if not outcome.runs():
    return [explained, '', 'Not begun.', '']
  lines = [explained, '', _errors(study, plan, outcome, sources), '']
  if plan.rates:
    lines += [rate_search.rate_table(outcome, plan.columns), '']
    lines += [_chosen_by(plan, outcome), '']
  if 'time' in study.table.pictures:
    lines += [_times(outcome, plan), '']
  if len(plan.seeds) > 1:
    lines += _differences(study, plan, outcome)
  return lines


def _chosen_by(plan, outcome) -> str:
  """How the rates were chosen, and how clearly."""
  if outcome.name == 'best':
    return f'Chosen by {_seeds(len(plan.search_seeds))}.'
  searches = {tuple(scores.items()) for scores in outcome.scores.values()}
  metric = tasks.metric_of(outcome.runs()[:1])
  number = len(plan.baseline_seeds or plan.seeds)
  by = 'all seeds' if number == len(plan.seeds) else _seeds(number)
  return f'Chosen by {by}; the single worker on the validation split: ' + (
    '; '.join(
      ', '.join(
        f'{rate:g}: {metric.text(score)}' for rate, score in sorted(search)
      )
      for search in sorted(searches)
    )
    + '.'
  )


def _seeds(number: int) -> str:
  return f'{number} seed{"s" if number > 1 else ""}'


def _errors(study, plan, outcome, sources) -> str:
  def text(line, column):
    for key in ((line, column), ('', column)):
      if key in study.table.published:
        figure, source = study.table.published[key]
        return f' [{sources.index(source) + 1}: {figure}]'
    return ''

  head = ['method', *plan.columns]
  rows = [
    [
      line,
      *(
        tables.cell_text(row[c], len(plan.seeds)) + text(line, c)
        for c in plan.columns
      ),
    ]
    for line, row in outcome.results.items()
  ]
  return tables.markdown(head, rows)


def _differences(study, plan, outcome) -> list[str]:
  """Against GA at the same momentum, and of momentum, in standard errors."""
  method = {line.label: line.method for line in study.table.lines}
  momentum = {
    line.label: dict(line.parameters).get('momentum')
    for line in study.table.lines
  }
  at = {(method[label], momentum[label]): label for label in outcome.results}
  sections = []
  for title, other in (
    (f'minus `{REFERENCE}`', lambda label: (REFERENCE, momentum[label])),
    ('momentum minus none', lambda label: (method[label], 0.0)),
  ):
    rows = [
      [label, *(tables.difference(line[c], theirs[c]) for c in plan.columns)]
      for label, line in outcome.results.items()
      for theirs in [outcome.results.get(at.get(other(label)))]
      if theirs is not None and theirs is not line
    ]
    if any(cell for _, *cells in rows for cell in cells):
      sections += [tables.markdown([title, *plan.columns], rows), '']
  if not sections:
    return []
  return [
    'Differences, the mean over seeds and in how many standard errors of it '
    f'(paired). Under {_MARK:g} they say nothing. Of so many cells some are '
    f'above it by chance: with {len(plan.seeds)} seeds one in '
    f'{_CHANCE.get(len(plan.seeds), "twenty")} where there is no difference.',
    '',
    *sections,
  ]


TIMES = [
  *('method', 'time', '× one worker', 'updates', 'messages', 'MB', 'wasted %'),
  *('staleness', 'time to the target'),
]


def _times(outcome, plan) -> str:
  """Wall-clock, and what was sent, in the first column of the table."""
  column = plan.columns[0]
  runs = {
    line: row[column] for line, row in outcome.results.items() if row[column]
  }
  if not runs:
    return ''
  target = target_of(runs)
  rows = []
  for line, summaries in runs.items():
    sent = [s['bytes_pushed'] + s['bytes_pulled'] for s in summaries]
    reached = [
      None if target is None else statistics.time_to(s, target)
      for s in summaries
    ]
    rows.append(
      [
        line,
        f'{statistics.mean(summaries, "simulated_time"):.0f}',
        f'{statistics.mean(summaries, "simulated_speedup"):.2f}',
        f'{statistics.mean(summaries, "updates"):.0f}',
        f'{statistics.mean(summaries, "messages"):.0f}',
        f'{np.mean(sent) / 1e6:.0f}',
        f'{100 * statistics.mean(summaries, "wasted_work"):.0f}',
        f'{statistics.mean(summaries, "mean_staleness"):.1f}',
        f'{np.mean(reached):.0f}' if None not in reached else 'not reached',
      ]
    )
  metric = tasks.metric_of(next(iter(runs.values())))
  text = tables.markdown(TIMES, rows)
  if target is None:
    return text
  return (
    f'{text}\n\nTime in mean batch times. The target is {metric.text(target)}, '
    'half a point above what the best method ends with; it counts as reached '
    'at the end of an epoch, and by all seeds or not at all.'
  )


def target_of(runs: dict[str, list[dict[str, Any]]]) -> float | None:
  """Half a point above the lowest mean over seeds at the end of training."""
  name = f'test_{tasks.metric_of(next(iter(runs.values()))).name}'
  ends = [
    statistics.by_epoch(summaries, name)[-1]
    for summaries in runs.values()
    if not any(s['diverged'] for s in summaries)
  ]
  return min(ends) + 0.005 if ends else None


def _origin(found) -> str:
  """Updates, seconds, devices and versions of the runs that are shown."""
  runs = _all_runs(found)
  unique = {id(run): run for run in runs}.values()
  updates, seconds = statistics.totals(unique)
  where = sorted({f'{run["device"]} (JAX {run["jax"]})' for run in unique})
  searched = any(o.scores for outcomes in found.values() for o in outcomes)
  return (
    f'{len(unique):,} different runs are shown, {updates:,} updates in '
    f'{seconds / 60:.0f} minutes of machine time on {", ".join(where)}'
    + ('; the searches for learning rates took more' if searched else '')
    + f'. Every run is a line of {record.METRICS}.'
  )


def _all_runs(found) -> list[dict[str, Any]]:
  return [
    run
    for outcomes in found.values()
    for outcome in outcomes
    for run in outcome.runs()
  ]
