"""Progress on the terminal: a live bar, or plain lines where there is none."""

import contextlib

from rich import console as rich_console
from rich import progress as rich_progress

from experiments import compilation, tasks


class TrainingProgress:
  """Shows one run; give its `update` to `run.train`."""

  def __init__(self):
    self._console = rich_console.Console()
    self._live = self._console.is_terminal
    self._bar = rich_progress.Progress(
      rich_progress.TextColumn('epoch {task.fields[epoch]:.1f}'),
      rich_progress.BarColumn(),
      rich_progress.TimeRemainingColumn(),
      rich_progress.TextColumn('{task.fields[text]}'),
      console=self._console,
      disable=not self._live,
    )
    self._task = self._bar.add_task(
      'train', total=None, epoch=0.0, text='compiling'
    )
    self._text, self._told = '', False

  def __enter__(self):
    self._bar.__enter__()
    if not self._live:
      print('compiling ...', flush=True)
    return self

  def __exit__(self, *error):
    self._bar.__exit__(*error)

  def update(self, now):
    if not self._told:  # the first block is compiled
      self._console.print(str(compilation.so_far()), highlight=False)
      self._told = True
    if now.row:
      self._text = describe(now.row)
      if not self._live:
        print(self._text, flush=True)
    speed = now.batches_per_second
    rate = f'{speed:,.0f} batches/s  ' if speed else ''
    self._bar.update(
      self._task,
      total=now.total_batches,
      completed=now.batches,
      epoch=now.epoch,
      text=rate + self._text,
    )


def describe(row) -> str:
  """One epoch's metrics in one line."""
  parts = [f'epoch {row["epoch"]:.1f}', f'loss {row["train_loss"]:.4f}']
  parts += judged(row)
  parts.append(f'staleness {row["mean_staleness"]:.1f}')
  parts.append(f'gap {row["mean_gap"]:.2e}')
  if row.get('batches_per_second'):
    parts.append(f'{row["batches_per_second"]:,.0f} batches/s')
  return '  '.join(parts)


def judged(row) -> list[str]:
  """What a row or a summary says of the task's metric, as text."""
  return [
    f'{split} {name} {metric.text(row[f"{split}_{name}"])}'
    for name, metric in tasks.METRICS.items()
    for split in ('test', 'validation')
    if row.get(f'{split}_{name}') is not None
  ]


@contextlib.contextmanager
def grid_progress(total: int | None):
  """Shows a grid of runs, `total` where it is known; yields `advance(name)`."""
  console = rich_console.Console()
  bar = rich_progress.Progress(
    rich_progress.MofNCompleteColumn(),
    rich_progress.BarColumn(),
    rich_progress.TimeElapsedColumn(),
    rich_progress.TimeRemainingColumn(),
    rich_progress.TextColumn('{task.description}'),
    console=console,
    disable=not console.is_terminal,
  )
  task = bar.add_task('', total=total)
  every = max(1, (total or 200) // 20)
  done = 0

  def advance(name):
    nonlocal done
    done += 1
    bar.update(task, advance=1, description=name)
    if not console.is_terminal and (done % every == 0 or done == total):
      print(f'{done}/{total or "?"} runs', flush=True)

  with bar:
    yield advance
