"""Takes a picture of a report in a real browser, for the documents.

  python -m experiments.documents.screenshot \\
    --report=runs/compare/report.html \\
    --picture=docs/pictures/report.png --section=results

needs Chromium in the path and Playwright (pip install playwright).
"""

import os

from absl import flags

from experiments.records import folders
from experiments.reporting import browser
from experiments.script import launch, shared_flags
from experiments.settings import path_flags
from experiments.settings import table as settings_lib

SECTIONS = ('question', 'settings', 'results', 'figures', 'timelines')
_REPORT = path_flags.one('report', '', 'report.html to open')
_PICTURE = path_flags.output('picture', 'report.png', 'PNG file to write')
_SECTION = flags.DEFINE_string('section', '', '|'.join(SECTIONS))
_EVENT = flags.DEFINE_integer(
  'event', -1, 'of the first timeline, that is pointed at (none)'
)
_WIDTH = flags.DEFINE_integer('width', 1280, 'of the window, in pixels')
_HEIGHT = flags.DEFINE_integer('height', 900, 'of the window')
_DARK = flags.DEFINE_bool('dark', False, 'in dark colours')


def prepare():
  """Checks every flag."""
  why = browser.missing()
  if why:
    raise settings_lib.SettingError('picture', _PICTURE.value, why)
  if not os.path.isfile(_REPORT.value):
    raise settings_lib.SettingError('report', _REPORT.value, 'no such file')
  if _SECTION.value:
    shared_flags.check_names('section', [_SECTION.value], SECTIONS)
  for flag in (_WIDTH, _HEIGHT):
    if flag.value < 1:
      raise settings_lib.SettingError(
        flag.name, flag.value, 'must be at least 1'
      )
  folder = os.path.dirname(os.path.abspath(_PICTURE.value))
  folders.writable('picture', folder)


def main(prepared):
  del prepared
  browser.screenshot(
    _REPORT.value,
    _PICTURE.value,
    section=_SECTION.value,
    event=_EVENT.value,
    width=_WIDTH.value,
    height=_HEIGHT.value,
    dark=_DARK.value,
  )
  print(f'written to {_PICTURE.value}')


if __name__ == '__main__':
  launch.launch(main, prepare)
