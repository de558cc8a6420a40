"""What diverged, where, and what stood there: the learning rate, staleness."""

import numpy as np

from experiments.records import finished as runs_lib
from experiments.reporting import commands, history, lines, markup
from ga_jax.policies.parts.base import Action

_BEFORE = 5  # losses that are shown before the first that is not finite


def section(comparison: lines.Comparison) -> str:
  """What diverged and why, what got worse, and what did not end."""
  parts = []
  diverged = [one for one in comparison.seen if one.diverged]
  shown = [
    one for cell in comparison.cells for one in cell.runs if one.diverged
  ]
  others = len(diverged) - len(shown)
  if not diverged:
    parts.append(markup.paragraph('No run diverged.'))
  if others:
    parts.append(
      markup.paragraph(
        f'{others} more runs diverged, at learning rates that were not chosen.'
      )
    )
  for cell in comparison.cells:
    parts += [_of_run(comparison, cell, one) for one in _once(cell)]
  worse = [w for one in comparison.seen for w in _worse(comparison, one)]
  if worse:
    parts.append(
      markup.paragraph(
        'Finite to the end, but with a higher training loss than at the start:'
      )
    )
    parts.append(markup.items(worse))
  parts.append(markup.items(_unfinished(comparison)))
  return ''.join(parts)


def _once(cell: lines.Cell) -> list[runs_lib.SavedRun]:
  """A cell's first run that diverged, rather one that says where."""
  found = [one for one in cell.runs if one.diverged]
  found.sort(key=lambda one: one.arrivals is None)
  return found[:1]


def _of_run(comparison, cell, one) -> str:
  times = sum(other.diverged for other in cell.runs)
  seed = f'seed {one.settings.seed}'
  if len(cell.runs) > 1:
    seed = f'{times} of {len(cell.runs)} runs; {seed}, for example'
  title = f'{name_of(cell)}: diverged ({seed})'
  return markup.titled(
    title,
    markup.items(where(one))
    + markup.paragraph('What to try:')
    + markup.items(advice(comparison, cell, one)),
  )


def name_of(cell: lines.Cell) -> str:
  """A cell in words."""
  plural = 's' if cell.workers > 1 else ''
  return f'{cell.line}, {cell.workers} worker{plural}, rate {cell.rate:g}'


def where(one: runs_lib.SavedRun) -> list[str]:
  """Which loss was the first that was not finite, and what stood there."""
  losses = one.arrivals and one.arrivals.get('loss')
  if losses is None:
    return _by_rows(one)
  bad = np.flatnonzero(~np.isfinite(losses))
  if not len(bad):
    return [
      f'all {len(losses):,} losses are finite: the parameters, or the metric '
      'on the test split, stopped being so after the last one'
    ]
  first = int(bad[0])
  texts = [f'the loss of arrival {first + 1:,} is the first that is not finite']
  if one.trace is not None and first < len(one.trace.applied()):
    texts[0] += _there(one, first)
  before = losses[max(0, first - _BEFORE) : first]
  if len(before):
    shown = ', '.join(f'{loss:.3g}' for loss in before)
    texts.append(f'losses before it: {shown}')
  texts += _before(one, first)
  return texts


def _there(one, arrival: int) -> str:
  """Worker, update, staleness and learning rate of an arrival."""
  applied = one.trace.applied()
  row = applied[arrival]
  updates = int(np.sum(applied['action'][:arrival] == Action.APPLY))
  batches = int(applied['num_batches'][:arrival].sum())
  rate = rate_at(one, batches)
  return (
    f': worker {row["worker_id"]}, after {updates:,} updates and {batches:,} '
    f'batches, staleness {row["staleness"]} (parameters of version '
    f'{row["version"]})' + (f', learning rate {rate:.3g}' if rate else '')
  )


def _before(one, first: int) -> list[str]:
  """What else was unusual of the arrivals just before."""
  texts = []
  for name, about in (('gap', 'gap'), ('max_penalty', 'largest penalty')):
    values = one.arrivals.get(name)
    if values is not None and first and np.ptp(values[:first]):
      middle = np.nanmedian(values[:first])
      last = values[first - 1]
      texts.append(f'{about} just before: {last:.3g}; median {middle:.3g}')
  return texts


def _by_rows(one) -> list[str]:
  """What summary and rows say, where no losses were recorded."""
  summary, texts = one.summary, []
  if 'batches' in summary:
    texts.append(
      f'it was ended after {summary["batches"]:,} batches (epoch '
      f'{summary["epochs"]:.2f}); staleness mean '
      f'{summary["mean_staleness"]:.1f}, max {summary["max_staleness"]}'
    )
  losses = [
    (r['epoch'], r['train_loss']) for r in one.rows if 'train_loss' in r
  ]
  bad = [epoch for epoch, loss in losses if loss is None]
  if bad:
    texts.append(f'a loss was not finite in the epoch up to {bad[0]:g}')
  elif losses:
    epoch, loss = losses[-1]
    texts.append(
      f'the last finite mean loss: {loss:.3g} in the epoch up to {epoch:g}'
    )
  return [*texts, 'which gradient was the first is not recorded']


def rate_at(one: runs_lib.SavedRun, batches: int) -> float | None:
  """The learning rate of a run after so many batches."""
  if not one.known:
    return None
  try:
    made = history.assembled(one)
  except history.UnknownHistoryError:
    return None
  steps = made.program_fn.schedule is not None  # the workers take them
  spec, part = (made.program_fn, 'program') if steps else (made.rule_fn, 'rule')
  peak = float(made.hparams[part]['learning_rate'])
  return float(spec.schedule.at(peak)(batches))


def advice(comparison, cell, one) -> list[str]:
  """What may help: what held beside it, and flags to begin with."""
  s, texts = one.settings, []
  held = [
    name_of(other)
    for other in comparison.cells
    if other.workers == cell.workers
    and other.line != cell.line
    and not any(o.diverged or not o.summary for o in other.runs)
  ]
  if held:
    texts.append(f'What did not diverge beside it: {"; ".join(held)}.')
  smaller = s.learning_rate / 10**0.5
  texts.append(f'A smaller step: --learning_rate={smaller:.2g}')
  if not s.warmup_epochs and s.workers > 1:
    texts.append(
      f'A warm-up from rate / N: --warmup_epochs={s.epochs / 10:.2g}'
    )
  if s.method != 'ga' and s.workers > 1:
    texts.append('A penalty on stale gradients: --method=ga')
  if s.workers > 1 and dict(s.parameters).get('momentum', 0.9):
    texts.append('No momentum, which staleness adds to: --momentum=0')
  if one.known and commands.is_trained(one):
    texts.append(
      'The same arrivals at another rate, without waiting for a new schedule: '
      f'python -m experiments.replay --workdir={one.folder} '
      f'--learning_rate={smaller:.2g}'
    )
  return texts


def _worse(comparison, one) -> list[str]:
  """Whether training lost ground without a number that is not finite."""
  losses = [row['train_loss'] for row in one.rows if row.get('train_loss')]
  if one.diverged or len(losses) < 2 or losses[-1] <= losses[0]:
    return []
  return [
    f'{one.name}: from {losses[0]:.3g} in the first epoch to {losses[-1]:.3g} '
    'in the last'
  ]


def _unfinished(comparison) -> list[str]:
  texts = []
  for one in comparison.seen:
    planned = f'{one.settings.epochs:g}'
    if one.summary is None:
      epoch = one.rows[-1]['epoch'] if one.rows else 0
      texts.append(
        f'{one.name} has not ended (no summary.json): it stands at epoch '
        f'{epoch:.1f} of {planned}.'
      )
    elif one.summary.get('stopped') and not one.diverged:
      texts.append(
        f'{one.name} was stopped at epoch {one.summary["epochs"]:.1f} of '
        f'{planned}.'
      )
  return texts
