"""Draws what a terminal shows of a run, from a run.

  python -m experiments.documents.screens

trains for some seconds and writes the panel as it stood half-way, as a picture.
"""

import io
import re

from absl import flags
from rich import console as rich_console

from experiments.running import compilation, train
from experiments.screens import panel as panel_lib
from experiments.screens import progress
from experiments.script import launch
from experiments.settings import check, path_flags
from experiments.settings import table as settings_lib
from ga_jax.record import files

compilation.define_flag()
_PICTURE = path_flags.output(
  'picture', 'docs/pictures/progress.svg', 'file to write'
)
_EPOCHS = flags.DEFINE_float('epochs', 1000.0, 'of the run')

WIDTH = 84  # columns


def prepare() -> tuple[str, settings_lib.Settings]:
  """Checks the flags."""
  path = _PICTURE.value
  if not path.endswith('.svg'):
    raise settings_lib.SettingError('picture', path, 'must end in .svg')
  settings = settings_lib.Settings(
    method='ga',
    workers=16,
    clock='heterogeneous',
    epochs=_EPOCHS.value,
    learning_rate=0.03,
  )
  return path, check.check(settings)


def main(prepared):
  path, settings = prepared
  files.write_text(path, picture(settings))
  print(f'written to {path}')


def picture(settings: settings_lib.Settings) -> str:
  """The panel half-way through a run, as SVG."""
  panel = panel_lib.Panel(progress.title(settings))
  console = rich_console.Console(
    file=io.StringIO(), record=True, force_terminal=True, width=WIDTH
  )
  drawn = False

  def observe(now):
    nonlocal drawn
    panel.update(now)
    if not drawn and now.row and 2 * now.batches >= now.total_batches:
      console.print(panel)
      drawn = True

  train.train(settings, observe=observe)
  svg = console.export_svg(title='python -m experiments.train')
  # No font is fetched: any monospaced one will do.
  return re.sub(r'@font-face \{.*?\}', '', svg, flags=re.DOTALL)


if __name__ == '__main__':
  launch.launch(main, prepare)
