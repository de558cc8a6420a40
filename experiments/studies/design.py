"""What a table of a study is made of: lines, columns, and what is shown."""

import os
from collections.abc import Iterable
from typing import NamedTuple

DIVIDED = {'quarter': 4, 'sixteenth': 16}  # scales, and by what
_PRESETS = os.path.join(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'presets'
)


class Line(NamedTuple):
  """A row of a table."""

  label: str
  method: str
  parameters: tuple[tuple[str, object], ...] = ()


class Column(NamedTuple):
  """A column of a table."""

  label: str
  workers: int
  parameters: tuple[tuple[str, object], ...] = ()


class Table(NamedTuple):
  """What is run and shown.

  Attributes:
    about: in one line.
    preset: of experiments/presets, without its ending.
    lines: the rows.
    columns: the columns.
    clocks: a section each.
    rates: learning rates to begin the sweeps with; () for the preset's own rate
      alone, as in the papers.
    seeds: per cell.
    search_seeds: by which rates are chosen.
    baseline_seeds: by which the single worker's is (0: by all).
    baseline: whose single worker sets the unchanged rate.
    published: {(line label, column label): (figure, source)}; '' for all lines.
    flags: beside the preset's.
    note: a sentence under the head of the page.
    pictures: of 'workers', 'rates', 'epochs', 'time'.
    epoch_flops: of the training of one epoch: three times the forward pass.
    smoke: flags that make it small enough to be run in a minute or so.
    short: flags for a run in a fraction of the time.
  """

  about: str
  preset: str
  lines: tuple[Line, ...]
  columns: tuple[Column, ...]
  clocks: tuple[str, ...] = ('homogeneous',)
  rates: tuple[float, ...] = ()
  seeds: int = 5
  search_seeds: int = 2
  baseline_seeds: int = 0
  baseline: str = 'asgd'
  published: dict[tuple[str, str], tuple[str, str]] = {}  # noqa: RUF012
  flags: tuple[str, ...] = ()
  note: str = ''
  pictures: tuple[str, ...] = ('workers',)
  epoch_flops: float = 0.0
  smoke: tuple[str, ...] = ('--epochs=0.01', '--seeds=1', '--columns=2')
  short: tuple[str, ...] = ('--seeds=1',)

  @property
  def curves(self) -> bool:
    """Whether the metrics of every epoch are kept."""
    return bool({'epochs', 'time'} & set(self.pictures))

  def preset_path(self) -> str:
    """The file of the preset."""
    return os.path.join(_PRESETS, f'{self.preset}.flags')

  def given(self) -> dict[str, str]:
    """The values of the preset's flags."""
    with open(self.preset_path(), encoding='utf-8') as file:
      return dict(
        line.strip().removeprefix('--').split('=', 1)
        for line in file
        if line.startswith('--') and '=' in line
      )

  def divided(self, by: int) -> tuple[str, ...]:
    """Flags that divide the epochs of the preset and its milestones."""
    found, given = [], self.given()
    for flag in ('epochs', 'boundaries', 'warmup_epochs'):
      if flag in given:
        parts = [f'{float(v) / by:g}' for v in given[flag].split(',')]
        found.append(f'--{flag}={",".join(parts)}')
    return tuple(found)


def methods(
  names: Iterable[str], momenta: tuple[float, ...] = (), **parameters
) -> tuple[Line, ...]:
  """A line per method, for each momentum."""
  given = tuple(sorted(parameters.items()))
  if not momenta:
    return tuple(Line(name, name, given) for name in names)
  return tuple(
    Line(
      f'{name}, momentum {momentum:g}',
      name,
      tuple(sorted((*given, ('momentum', momentum)))),
    )
    for momentum in momenta
    for name in names
  )


def workers(*numbers: int, **parameters) -> tuple[Column, ...]:
  """A column per number of workers."""
  given = tuple(sorted(parameters.items()))
  return tuple(Column(f'N = {n}', n, given) for n in numbers)
