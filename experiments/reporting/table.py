"""The table of a report: what came out, per line and number of workers."""

from collections.abc import Callable

import numpy as np

from experiments.reporting import lines, markup, statistics

Columns = dict[str, Callable[[lines.Cell], str]]
UNITS = (
  'Mean ± standard deviation over seeds, of the runs that did not diverge. '
  'Differences are to the baseline with as many workers, mean over the seeds '
  'that both have, and in brackets how many standard errors that is; under two '
  'it says nothing. Simulated time is in mean batch times of one worker; '
  'staleness in server updates; the gap is the root mean square distance per '
  'parameter between the parameters a gradient was computed at and those it '
  'met; wasted is the part of the workers’ busy time whose gradient entered no '
  'round; utilisation the part of their time that real workers computed; MB '
  'are megabytes submitted (up) and sent out (down).'
)

CHOSEN = (
  'Several learning rates were run: a row is at the one that is best on the '
  'validation split. Edge: it is the lowest or highest that was run, so that a '
  'better one may lie beyond it.'
)


def section(comparison: lines.Comparison) -> str:
  """The tables, with what their columns are."""
  parts = [
    markup.table(*contents(comparison, columns), caption)
    for caption, columns in (
      ('What came out', outcome(comparison)),
      ('How it came about', course()),
    )
  ]
  parts.append(markup.paragraph(UNITS, 'note'))
  if comparison.rates:
    parts.append(markup.paragraph(CHOSEN, 'note'))
  return ''.join(parts)


def contents(comparison: lines.Comparison, columns):
  """Head and rows; columns that nothing is known of are left out."""
  made = {
    name: [text_fn(cell) for cell in comparison.cells]
    for name, text_fn in columns.items()
  }
  kept = {name: texts for name, texts in made.items() if any(texts)}
  return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]


def outcome(comparison: lines.Comparison) -> Columns:
  """Error, difference, loss and time of a cell."""
  return {
    'method': lambda cell: cell.line,
    'workers': lambda cell: str(cell.workers),
    'learning rate': _rate,
    'runs': _runs,
    comparison.metric.label: lambda cell: error_text(comparison, cell),
    **_unchanged(comparison),
    f'minus {comparison.baseline}': lambda cell: difference(comparison, cell),
    'train loss': _mean('train_loss', '{:.4g}'),
    'simulated time': _simulated_time,
    '× one worker': _mean('simulated_speedup', '{:.2f}'),
    '× ssgd': lambda cell: _over_synchronous(comparison, cell),
    'wall time, s': _mean('wall_seconds', '{:,.1f}'),
  }


def course() -> Columns:
  """Staleness, gap, penalty, waste and bytes of a cell."""
  return {
    'method': lambda cell: cell.line,
    'workers': lambda cell: str(cell.workers),
    'updates': _mean('updates', '{:,.0f}'),
    'staleness': _mean('mean_staleness', '{:.1f}'),
    'max staleness': _most('max_staleness', '{:.0f}'),
    'gap': _mean('mean_gap', '{:.2e}'),
    'penalty': _mean('mean_penalty', '{:.2f}'),
    'max penalty': _most('max_penalty', '{:.3g}'),
    'wasted, %': _mean('wasted_work', '{:.1f}', 100),
    'utilisation, %': _utilisation,
    'MB up': _mean('bytes_pushed', '{:,.1f}', 1e-6),
    'MB down': _mean('bytes_pulled', '{:,.1f}', 1e-6),
  }


def error_text(comparison: lines.Comparison, cell: lines.Cell) -> str:
  """'mean ± sd', what diverged, and what has not ended."""
  errors = [comparison.error(one) for one in cell.finished()]
  errors = [error for error in errors if error is not None]
  text = statistics.mean_text(errors) if errors else ''
  diverged = sum(one.diverged for one in cell.runs)
  if diverged:
    of = f' of {len(cell.runs)}' if len(cell.runs) > 1 else ''
    text += f' ({diverged}{of} diverged)' if text else 'diverged'
  unfinished = sum(not one.summary for one in cell.runs)
  if unfinished:
    text += f' ({unfinished} of {len(cell.runs)} unfinished)'
  return text.strip()


def difference(comparison: lines.Comparison, cell: lines.Cell) -> str:
  """The paired difference to the baseline; '' where there is none."""
  other = comparison.partner(cell)
  if other is None:
    return ''
  theirs = {o.settings.seed: comparison.error(o) for o in other.runs}
  apart = [
    mine - theirs[one.settings.seed]
    for one in cell.runs
    for mine in [comparison.error(one)]
    if mine is not None and theirs.get(one.settings.seed) is not None
  ]
  if not apart:
    return ''
  return statistics.difference_text(apart)


def _unchanged(comparison) -> Columns:
  """A column at the single worker's best rate, where rates were swept."""
  single = {
    cell.line: cell.rate
    for cell in comparison.cells
    if cell.workers == 1 and cell.method == comparison.baseline
  }
  if not (comparison.rates and single):
    return {}

  def text(cell):
    label = comparison.baseline + cell.line.removeprefix(cell.method)
    rate = single.get(label)
    if rate is None and len(set(single.values())) == 1:
      rate = next(iter(single.values()))
    runs = comparison.rates.get((cell.line, cell.workers), {}).get(rate)
    if not runs:
      return ''
    return f'{error_text(comparison, cell._replace(runs=runs))} at {rate:g}'

  return {'at the single worker’s rate': text}


def _rate(cell) -> str:
  return f'{cell.rate:g}' + (' (edge)' if cell.edge else '')


def _runs(cell) -> str:
  return str(len(cell.runs))


def known(cell: lines.Cell, name: str) -> list[float]:
  """A number of the summaries of the finished runs that have it."""
  found = [one.summary.get(name) for one in cell.finished()]
  return [value for value in found if value is not None]


def _mean(name: str, form: str, scale: float = 1):
  def text(cell):
    values = known(cell, name)
    if not any(values):
      return '0' if values else ''
    return form.format(scale * np.mean(values))

  return text


def _simulated_time(cell) -> str:
  """In the clock's units, whatever these are."""
  values = known(cell, 'simulated_time')
  if not values:
    return ''
  mean = np.mean(values)
  return f'{mean:,.0f}' if mean >= 100 else f'{mean:.3g}'


def _utilisation(cell) -> str:
  """The part of their time that real workers computed."""
  seen = [
    one['utilisation']
    for workers in known(cell, 'worker_seconds')
    for one in workers.values()
  ]
  return f'{100 * np.mean(seen):.0f}' if seen else ''


def _most(name: str, form: str):
  def text(cell):
    values = known(cell, name)
    return form.format(max(values)) if values else ''

  return text


def _over_synchronous(comparison, cell) -> str:
  """How many times sooner a batch is done than with a barrier."""
  other = comparison._replace(baseline=statistics.SYNCHRONOUS).partner(cell)
  ours, theirs = (
    np.mean(pace) if c and (pace := _pace(c)) else None for c in (cell, other)
  )
  return f'{theirs / ours:.2f}' if ours and theirs else ''


def _pace(cell) -> list[float]:
  """Simulated time per batch of every run."""
  found = [statistics.pace(one.summary) for one in cell.finished()]
  return [pace for pace in found if pace is not None]
