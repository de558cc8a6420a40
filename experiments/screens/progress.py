"""Progress: a live panel on a terminal, plain lines elsewhere."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich import console as rich_console
from rich import live as rich_live
from rich import progress as rich_progress
from rich import table as rich_table

from experiments import tasks
from experiments.running import compilation, watch
from experiments.screens import panel as panel_lib
from experiments.settings import table as settings_lib
from ga_jax.live.ray import signals

PER_SECOND = 5  # times that the panel is drawn; a drawing takes some ms


def terminal() -> rich_console.Console:
  """Standard output; interactive where somebody looks at it."""
  seen = sys.stdout.isatty()  # FORCE_COLOR is about colours
  return rich_console.Console(force_interactive=None if seen else False)


class TrainingProgress:
  """Shows one run; give its `update` to `train.train`."""

  def __init__(
    self,
    title: str = '',
    *,
    quiet: bool = False,
    console: rich_console.Console | None = None,
    clock_fn: Callable[[], float] = time.monotonic,
  ):
    """Shows nothing yet.

    Args:
      title: of the panel.
      quiet: whether nothing is to be shown at all.
      console: where; by default `terminal`.
      clock_fn: seconds, for the time that is left.
    """
    console = console or terminal()
    self._quiet, self._told = quiet, False
    self._panel = panel_lib.Panel(title, clock_fn)
    self._live = None
    if console.is_interactive and not quiet:
      self._live = rich_live.Live(
        self._panel, console=console, refresh_per_second=PER_SECOND
      )

  def __enter__(self):
    if self._live:
      self._live.__enter__()
    else:
      self._print('compiling ...')
    return self

  def __exit__(self, *error):
    if self._live:
      self._live.__exit__(*error)

  def update(self, now: watch.Progress):
    """Shows where the run stands."""
    self._panel.update(now)
    if self._live:
      return
    if not self._told:  # the first block is compiled
      self._print(str(compilation.so_far()))
      self._told = True
    if now.row:
      self._print(describe(now.row, now.utilisation))
    elif now.diverged:
      self._print(f'epoch {now.epoch:.1f}  loss nan: diverged')

  def stopping(self):
    """Says that the run is about to stop; for a signal's handler."""
    if self._live:
      self._panel.note = signals.STOPPING
    else:
      os.write(sys.stderr.fileno(), f'\n{signals.STOPPING}\n'.encode())

  def _print(self, line: str):
    if not self._quiet:
      print(line, flush=True)


def title(s: settings_lib.Settings) -> str:
  """What a run is, in a few words."""
  workers = f'{s.workers} worker{"s" if s.workers > 1 else ""}'
  where = {'simulate': 'simulated', 'threads': 'on threads', 'ray': 'on Ray'}
  return (
    f'{s.method}, {s.model} on {s.data_name()}, {workers} {where[s.runtime]}'
  )


def describe(row: dict[str, Any], utilisation: float | None = None) -> str:
  """One epoch's metrics in one line."""
  loss = f'loss {row["train_loss"]:.4f}'
  if not math.isfinite(row['train_loss']):
    loss += ': diverged'
  parts = [f'epoch {row["epoch"]:.1f}', loss, *tasks.judged(row)]
  parts.append(f'staleness {row["mean_staleness"]:.1f}')
  parts.append(f'gap {row["mean_gap"]:.2e}')
  if utilisation is not None:
    parts.append(f'utilisation {panel_lib.percent(utilisation)}')
  if row.get('batches_per_second'):
    parts.append(f'{row["batches_per_second"]:,.0f} batches/s')
  return '  '.join(parts)


class GridProgress:
  """Shows a grid of runs: call it with the name of each that is done."""

  def __init__(
    self,
    total: int | None,
    *,
    quiet: bool = False,
    console: rich_console.Console | None = None,
  ):
    """Shows nothing yet.

    Args:
      total: runs, where it is known.
      quiet: whether nothing is to be shown at all.
      console: where; by default `terminal`.
    """
    console = console or terminal()
    self._total, self._done = total, 0
    self._lines = not (console.is_interactive or quiet)
    self._every = max(1, (total or 200) // 20)
    text = rich_table.Column(no_wrap=True, overflow='ellipsis', ratio=1)
    self._bar = rich_progress.Progress(
      rich_progress.MofNCompleteColumn(),
      rich_progress.BarColumn(20 if console.width >= 80 else 8),
      rich_progress.TimeElapsedColumn(),
      rich_progress.TimeRemainingColumn(),
      rich_progress.TextColumn('{task.description}', table_column=text),
      console=console,
      disable=quiet or not console.is_interactive,
      refresh_per_second=PER_SECOND,
      expand=True,
    )
    self._task = self._bar.add_task('', total=total)

  def __enter__(self):
    self._bar.__enter__()
    return self

  def __exit__(self, *error):
    self._bar.__exit__(*error)

  def __call__(self, name: str):
    """One more is done."""
    self._done += 1
    self._bar.update(self._task, advance=1, description=name)
    last = self._done == self._total
    if self._lines and (self._done % self._every == 0 or last):
      print(f'{self._done}/{self._total or "?"} runs', flush=True)

  def running(self, settings: settings_lib.Settings, now: watch.Progress):
    """Shows where the run in hand stands."""
    s = settings
    what = f'{s.method}, N={s.workers}, rate {s.learning_rate:g}, seed {s.seed}'
    text = f'epoch {now.epoch:.1f} of {s.epochs:g}: {what}'
    self._bar.update(self._task, description=text)


@contextlib.contextmanager
def counting(
  what: str, total: int, *, quiet: bool = False
) -> Iterator[Callable[[int], None] | None]:
  """Shows how far a computation is; yields `reached(number)`.

  Only a terminal shows it: elsewhere None is yielded.
  """
  console = terminal()
  if quiet or not console.is_interactive:
    yield None
    return
  with rich_progress.Progress(
    *rich_progress.Progress.get_default_columns(),
    console=console,
    refresh_per_second=PER_SECOND,
    transient=True,
  ) as bar:
    task = bar.add_task(what, total=total)
    yield lambda number: bar.update(task, completed=number)
