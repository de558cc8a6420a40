"""Follows a run: on the terminal, in metrics.jsonl, in TensorBoard."""

import contextlib

from experiments.records import folders, run_folder
from experiments.running import control as control_lib
from experiments.running import setup, train
from experiments.screens import progress, tensorboard
from experiments.settings import table as settings_lib


def followed(
  settings: settings_lib.Settings,
  keep: setup.Keeping,
  control: control_lib.Control,
  *,
  events: bool,
  quiet: bool,
) -> setup.Run:
  """Trains; shows the progress, and writes the metrics down as they come.

  Args:
    settings: of the run.
    keep: what is written while it goes on, and where.
    control: ends the run on SIGINT and SIGTERM.
    events: whether TensorBoard is to see the run too.
    quiet: whether the terminal shows nothing.

  Returns:
    The run.

  Raises:
    NothingDoneError: it was ended before its first gradient was applied.
  """
  with contextlib.ExitStack() as stack:
    shown = stack.enter_context(
      progress.TrainingProgress(progress.title(settings), quiet=quiet)
    )
    control.install(shown.stopping)
    write = stack.enter_context(
      run_folder.rows_written(keep.folder, resume=keep.resume)
    )
    board = None
    if events:
      layers = setup.layers_of(settings)
      board = stack.enter_context(
        tensorboard.Events(keep.folder, settings, layers)
      )

    def observe(now):
      folders.check()
      if now.row:
        write(now.row)
        if board:
          board.write(now.row, now.arrivals)
      shown.update(now)

    return train.train(settings, observe=observe, keeping=keep, control=control)
