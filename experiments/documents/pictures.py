"""Makes every picture of the documentation, from runs.

  python -m experiments.documents.pictures

draws docs/pictures anew in a minute: the figures of docs/methods and
docs/gap.md from runs that were kept (results/), the progress panel from a run,
the report from three runs in Chromium (pip install playwright; a browser in the
path).
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from experiments.documents import method_pictures
from experiments.records import folders
from experiments.reporting import browser
from experiments.script import launch
from experiments.settings import path_flags
from experiments.settings import table as settings_lib

_FOLDER = path_flags.one('folder', 'docs/pictures', 'folder to write to')

ROOT = pathlib.Path(__file__).parents[2]
COMPARED = ('asgd', 'sa', 'ga')
RUNS = ','.join(f'runs/{method}' for method in COMPARED)
# What is run for the pictures of the scripts: without a name, to be looked at.
STEPS = (
  ('progress.svg', 'documents.screens'),
  *(
    ('', f'train --method={method} --workers=32 --learning_rate=0.03 '
         f'--workdir=runs/{method}')
    for method in COMPARED
  ),
  ('', f'report --workdir={RUNS} --output=report.html'),
  ('report.png', 'documents.screenshot --report=report.html --section=results '
                 '--height=1100'),
  ('report-timeline.png', 'documents.screenshot --report=report.html '
                          '--section=timelines --event=200 --height=780'),
)  # fmt: skip


def names() -> list[str]:
  """The names of all pictures."""
  scripts = [name for name, _ in STEPS if name]
  return sorted([*method_pictures.names(), *scripts])


def prepare() -> pathlib.Path:
  """Where the pictures go to; whether there is a browser."""
  why = browser.missing()
  if why:
    raise settings_lib.SettingError('folder', _FOLDER.value, why)
  return pathlib.Path(folders.writable('folder', _FOLDER.value))


def main(folder: pathlib.Path):
  method_pictures.make(folder)
  with tempfile.TemporaryDirectory() as scratch:
    for name, command in STEPS:
      script, *given = command.split()
      if name:
        given.append(f'--picture={folder.resolve() / name}')
      print(f'experiments.{command}', flush=True)
      subprocess.run(
        [sys.executable, '-m', f'experiments.{script}', *given],
        cwd=scratch,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.DEVNULL,
        check=True,
      )
  print(f'{len(names())} pictures written to {folder}')


if __name__ == '__main__':
  launch.launch(main, prepare)
