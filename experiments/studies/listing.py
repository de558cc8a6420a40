"""The tables that there are, and what each costs."""

from experiments.reporting import tables
from experiments.settings import table as settings_lib
from experiments.studies import design, papers


def listing() -> str:
  """A Markdown table of all tables: runs, and hours of an accelerator."""
  rows = []
  for name, table in papers.TABLES.items():
    cells = len(table.lines) * len(table.columns) * len(table.clocks)
    runs = cells * table.seeds * (2 if table.rates else 1)
    if table.rates:
      runs += 4 * cells * table.search_seeds
    hours = runs * _epochs(table) * table.epoch_flops / papers.FLOPS / 3600
    cost = f'{hours:,.0f}' if table.epoch_flops else 'CPU'
    rows.append([name, table.about, f'{runs:,}', cost])
  head = ['table', 'what', 'runs, about', 'GPU hours']
  return (
    f'{tables.markdown(head, rows)}\n\nGPU hours are estimates, not measured: '
    'three forward passes of floating-point operations per example at '
    f'{papers.FLOPS / 1e12:g} TFLOP/s.'
  )


def _epochs(table: design.Table) -> float:
  """Of the preset, or the default."""
  return float(table.given().get('epochs', settings_lib.Settings.epochs))
