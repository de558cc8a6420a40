"""Writes one page about runs: question, settings, table, figures, timelines.

Question: what came out of these runs, and how did it come about?

  python -m experiments.report --workdir=runs/ga16
  python -m experiments.report --workdir=runs/asgd,runs/sa,runs/ga
  python -m experiments.report --workdir=runs/compare --figures=pictures

reads folders of experiments.train, compare, survey and reproduce, computes no
gradient, and writes report.html: one file that needs no network, with the
commands that make it again. docs/report.md says what each part means.
"""

import os

from experiments.catalogue import methods
from experiments.records import finished as runs_lib
from experiments.records import folders
from experiments.reporting import figures, history, lines, page, timeline
from experiments.script import launch, name_flags, shared_flags
from experiments.settings import path_flags
from experiments.settings import table as settings_lib
from ga_jax.record import files

_WORKDIR = path_flags.several(
  'workdir', 'FOLDER,...: runs of train, compare, survey or reproduce'
)
_OUTPUT = path_flags.output(
  'output', '', 'file to write (default: report.html in the first folder)'
)
_FIGURES = path_flags.one(
  'figures', '', 'folder for every figure as PNG, SVG and PDF (none)'
)
_BASELINE = name_flags.one(
  'baseline', '', 'method that the others are compared with (asgd if there)'
)


def prepare() -> tuple[lines.Comparison, str]:
  """Reads the runs; where the page goes to."""
  if not _WORKDIR.value:
    raise settings_lib.SettingError('workdir', '', 'must name at least one')
  if _BASELINE.value:
    shared_flags.check_names('baseline', [_BASELINE.value], methods.METHODS)
  named = list(dict.fromkeys(os.path.normpath(f) for f in _WORKDIR.value))
  seen = [one for folder in named for one in runs_lib.load(folder)]
  comparison = lines.compared(seen, _BASELINE.value)
  output = _OUTPUT.value or os.path.join(named[0], 'report.html')
  folders.writable_file('output', output)
  if _FIGURES.value:
    folders.writable('figures', _FIGURES.value)
  return comparison, output


def main(prepared):
  comparison, output = prepared
  told = history.told(comparison, timeline.MOST)
  drawn = figures.of(comparison, told)
  text = page.page(comparison, told, drawn, launch.command())
  files.write_text(output, text)
  print(
    f'{len(comparison.seen):,} runs, {os.path.getsize(output) / 1e6:.2f} MB'
  )
  if _FIGURES.value:
    figures.save(drawn, _FIGURES.value)
    print(f'figures written to {_FIGURES.value}')
  print(f'written to {output}')


if __name__ == '__main__':
  launch.launch(main, prepare)
