"""The tables of methods, as the documentation and the command show them."""

import functools

from experiments.catalogue import facts, methods
from experiments.reporting import tables


@functools.cache
def rows() -> list[list[str]]:
  """A row per method, in the order of `HEAD`."""
  table = []
  for name, method in methods.METHODS.items():
    found = facts.facts(method)
    table.append(
      [
        name,
        ' · '.join(
          part
          for part in (
            method.rule,
            method.policy,
            method.program,
            method.compression,
          )
          if part not in ('asynchronous', 'gradient', 'none')
        ),
        method.about,
        method.paper or '-',
        found.state,
        found.snapshots,
        found.worker,
        f'{found.message:,}',
        ', '.join(found.needs) or '-',
      ]
    )
  return table


HEAD = [
  'method',
  'parts',
  'an arriving gradient / a round',
  'paper',
  'state',
  'snapshots',
  'per worker',
  'bytes per 1 M',
  'needs',
]
# Columns of the index, and of the pages of the families.
_INDEX, _PAGE = (0, 2, 4, 5, 6, 7), (0, 1, 3, 4, 5, 6, 7, 8)


def markdown(family: str = '') -> str:
  """The table of a page of docs/methods.

  Args:
    family: of `methods.FAMILIES`; '' for the index, which links to the others.

  Returns:
    A Markdown table.
  """
  page = {name: page for page, f in methods.FAMILIES.items() for name in f}
  table = []
  for name, *rest in rows():
    if not family:
      row = [f'[`{name}`]({page[name]}.md#{name})', *rest]
      table.append([row[i] for i in _INDEX])
    elif family == page[name]:
      row = [f'`{name}`', *rest]
      table.append([row[i] for i in _PAGE])
  return tables.markdown(
    [HEAD[i] for i in (_PAGE if family else _INDEX)], table
  )
