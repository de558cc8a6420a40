"""The panel that a terminal shows of a run."""

import math
import time
from collections.abc import Callable

import rich.box
from rich import panel as rich_panel
from rich import progress_bar as rich_bar
from rich import table as rich_table
from rich import text as rich_text

from experiments import tasks
from experiments.running import compilation, watch


class Panel:
  """What a terminal shows of a run.

  Attributes:
    note: a line below the figures.
  """

  def __init__(
    self, title: str, clock_fn: Callable[[], float] = time.monotonic
  ):
    self.note = ''
    self._title = title
    self._clock_fn = clock_fn
    self._began = None  # (batches, seconds) of the first update
    self._at = 0.0  # seconds of the last one
    self._now = None
    self._row = {}  # the last one

  def update(self, now: watch.Progress):
    """Remembers where the run stands; draws nothing."""
    self._now, self._at = now, self._clock_fn()
    self._row = now.row or self._row
    if self._began is None:
      self._began = now.batches, self._at

  def __rich_console__(self, console, options):
    del console
    yield self._drawn(options.max_width)

  def _drawn(self, width: int) -> rich_panel.Panel:
    grid = rich_table.Table.grid(expand=True)
    compiled = compilation.so_far()
    if self._now is None:
      done = f' ({compiled})' if compiled.programs else ''
      grid.add_row(f'compiling ...{done}')
    else:
      grid.add_row(self._head())
      grid.add_row(_columns(self._figures(), 1 + (width >= 46) + (width >= 66)))
      server = f'; server on {self._now.server}' if self._now.server else ''
      grid.add_row(rich_text.Text(f'{compiled}{server}', 'dim'))
    if self._now is not None and self._now.missing:
      who = ', '.join(map(str, self._now.missing))
      grid.add_row(
        rich_text.Text(f'workers that are not here: {who}', 'yellow')
      )
    if self.note:
      grid.add_row(rich_text.Text(self.note, 'yellow'))
    diverged = self._now is not None and self._now.diverged
    return rich_panel.Panel(
      grid,
      title=rich_text.Text(self._title),
      title_align='left',
      box=rich.box.ROUNDED,
      border_style='red' if diverged else 'none',
    )

  def _head(self) -> rich_table.Table:
    now = self._now
    part = now.batches / now.total_batches
    row = rich_table.Table.grid(
      *(rich_table.Column(no_wrap=True) for _ in range(4)),
      expand=True,
      padding=(0, 1),
    )
    row.columns[1].ratio = 1
    row.add_row(
      f'epoch {now.epoch:.1f} of {now.epoch / part:g}',
      rich_bar.ProgressBar(now.total_batches, now.batches),
      f' {percent(part)} ',
      f'{duration(self._left())} left',
    )
    return row

  def _left(self) -> float | None:
    """Seconds until the end, at the pace since the first update."""
    batches, seconds = self._began
    done, now = self._now.batches - batches, self._now
    if now.batches >= now.total_batches:
      return 0.0
    if not done:
      return None
    return (now.total_batches - now.batches) * (self._at - seconds) / done

  def _figures(self) -> list[tuple[str, str, str]]:
    """What is measured: (name, value, style)."""
    now, row = self._now, self._row
    recent = now.recent or {
      'loss': row.get('train_loss'),
      'staleness': row.get('mean_staleness'),
      'gap': row.get('mean_gap'),
    }
    loss = math.nan if now.diverged else recent['loss']
    bad = loss is not None and not math.isfinite(loss)
    # Updates are counted where a row ends only.
    rate, of = now.batches_per_second, 'batches'
    if rate and row:
      rate, of = rate * row['updates'] / row['batches'], 'updates'
    return [
      ('loss', _known(loss, '.4f') + ' diverged' * bad, 'red' * bad or 'bold'),
      *((name, value, 'bold') for name, value in tasks.judgements(row)),
      (f'{of}/s', _known(rate, ',.0f'), 'bold'),
      ('staleness', _known(recent['staleness'], '.1f'), 'bold'),
      ('gap', _known(recent['gap'], '.2e'), 'bold'),
      ('utilisation', percent(now.utilisation), 'bold'),
    ]


def _columns(figures, number: int) -> rich_table.Table:
  """Figures row by row, columns of the same width."""
  table = rich_table.Table.grid(
    *(rich_table.Column(no_wrap=True, ratio=1) for _ in range(number)),
    expand=True,
  )
  cells = [
    rich_text.Text.assemble((f'{name} ', 'dim'), (value, style))
    for name, value, style in figures
  ]
  for first in range(0, len(cells), number):
    table.add_row(*cells[first : first + number])
  return table


def _known(value: float | None, form: str) -> str:
  return '-' if value is None else format(value, form)


def percent(part: float | None) -> str:
  """A part of 1 as text."""
  return '-' if part is None else f'{100 * part:.0f} %'


def duration(seconds: float | None) -> str:
  """Seconds as h:mm:ss; days where it takes so long."""
  if seconds is None:
    return '-:--'
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours >= 48:
    return f'{hours / 24:.0f} days'
  return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
