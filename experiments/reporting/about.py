"""What a report says beside its numbers: question, settings, environment."""

import dataclasses

from experiments.reporting import lines, markup
from experiments.settings import setting
from experiments.settings import table as settings_lib

_SHOWN = ('dataset', 'model', 'epochs', 'batch_size', 'clock', 'runtime')


def title(comparison: lines.Comparison) -> str:
  """What the report is of, in a few words."""
  methods = list(dict.fromkeys(cell.method for cell in comparison.cells))
  return f'{listed(methods)}, {workers_text(comparison.workers())}'


def question(comparison: lines.Comparison) -> str:
  """What was compared."""
  seen = comparison.seen
  several = len({(c.line, c.workers) for c in comparison.cells}) > 1
  seeds = len({one.settings.seed for one in seen})
  named = listed(list(dict.fromkeys(cell.line for cell in comparison.cells)))
  metric = comparison.metric.label.split(',')[0]
  tail = (
    f'reach, at which staleness and in which time, with '
    f'{workers_text(comparison.workers())}?'
  )
  asked = (
    f'Which {metric} does each method {tail} Compared: {named}.'
    if several
    else f'Which {metric} does {named} {tail}'
  )
  folders = list(dict.fromkeys(one.folder for one in seen))
  parts = [
    f'{", ".join(where(comparison))}.',
    _paired(comparison) if several else '',
    f'{counted(len(seen), "run")} of {counted(seeds, "seed")}, read from '
    f'{", ".join(folders)}.',
  ]
  return markup.paragraph(asked, 'lead') + markup.paragraph(
    ' '.join(filter(None, parts))
  )


def where(comparison: lines.Comparison) -> list[str]:
  """Model, data, length and clock, as far as they are the same in all runs."""
  known = [one.settings for one in comparison.seen if one.known]
  if not known:
    return ['data and model not recorded']
  s, varied, texts = known[0], set(comparison.varied), []
  if not {'dataset', 'data_path', 'model'} & varied:
    texts.append(f'{s.model} on {s.data_name()}')
  if 'epochs' not in varied:
    texts.append(f'{counted(s.epochs, "epoch")} in all')
  if 'batch_size' not in varied:
    texts.append(f'batch {s.batch_size}')
  if 'runtime' not in varied and s.runtime != 'simulate':
    texts.append(f'real workers ({s.runtime})')
  elif not {'runtime', 'clock'} & varied:
    texts.append(f'simulated {s.clock} clock')
  return texts


def _paired(comparison) -> str:
  if any(one.settings.runtime != 'simulate' for one in comparison.seen):
    return ''
  return (
    'Runs of one seed and number of workers meet the same initial parameters, '
    'batches and clock where their settings agree.'
  )


def settings(comparison: lines.Comparison) -> str:
  """What all runs share, what differs, and the defaults behind a fold."""
  known = [one for one in comparison.seen if one.known]
  if not known:
    return markup.paragraph(
      'The settings were not recorded: an older version made these runs.'
    )
  axes = {'workers', 'learning_rate', 'seed', *comparison.varied}
  defaults = dataclasses.asdict(settings_lib.Settings())
  first = lines.flat(known[0])
  shared = {name: v for name, v in first.items() if name not in axes}
  own = {k: v for k, v in shared.items() if v != defaults.get(k, lines.MISSING)}
  shown = {k: v for k, v in shared.items() if k in own or k in _SHOWN}
  rest = {k: v for k, v in shared.items() if k not in shown}
  parts = [_named('The same in all runs', shown)]
  if rest:
    parts.append(markup.folded('Defaults', _named('', rest)))
  parts.append(_own(comparison))
  if len(known) < len(comparison.seen):
    missing = len(comparison.seen) - len(known)
    parts.append(
      markup.paragraph(f'Of {missing} runs the settings were not recorded.')
    )
  return ''.join(parts)


def _named(caption: str, values) -> str:
  rows = [
    [name, setting.text_of(value) or '(none)'] for name, value in values.items()
  ]
  return markup.table(['setting', 'value'], rows, caption, words=2)


def _own(comparison) -> str:
  """What is each line's own."""
  rows, varied = {}, [v for v in comparison.varied if v != 'method']
  for cell in comparison.cells:
    values = lines.flat(cell.runs[0])
    rate = f'{cell.rate:g}'
    row = rows.setdefault(
      cell.line,
      [
        cell.line,
        [],
        [],
        ', '.join(f'{k}: {v}' for k, v in parts_of(cell.runs[0]).items()),
        *(setting.text_of(values.get(v, lines.MISSING)) for v in varied),
      ],
    )
    row[1].append(str(cell.workers))
    if rate not in row[2]:
      row[2].append(rate)
  head = ['line', 'workers', 'learning rates', 'parts', *varied]
  texts = [
    [r[0], ', '.join(r[1]), ', '.join(r[2]), *r[3:]] for r in rows.values()
  ]
  return markup.table(head, texts, 'Each line’s own', words=len(head))


def parts_of(one) -> dict[str, str]:
  """The parts of a run's method, but those that do nothing."""
  method = one.settings.parts()
  idle = {'program': 'gradient', 'compression': 'none'}
  return {
    name: getattr(method, name)
    for name in ('rule', 'policy', 'program', 'compression')
    if getattr(method, name) != idle.get(name)
  }


def environment(comparison: lines.Comparison) -> str:
  """Versions and devices, and what the bits of the runs depend on."""
  parts = []
  for about, name in (
    ('Versions', 'versions'),
    ('What the bits depend on', 'environment'),
  ):
    found = {}
    for one in comparison.seen:
      values = getattr(one, name)
      if values:
        key = tuple((k, str(v)) for k, v in values.items())
        found.setdefault(key, []).append(one.name)
    for pairs, names in found.items():
      whose = '' if len(found) == 1 else f' of {_some(names)}'
      table = markup.table(['name', 'value'], pairs, about + whose, words=2)
      folded = name == 'environment'
      parts.append(markup.folded(about + whose, table) if folded else table)
  if not parts:
    parts.append(markup.paragraph('Versions were not recorded.'))
  return ''.join(parts)


def missing(comparison: lines.Comparison) -> list[str]:
  """What is not there, by folder."""
  return [f'{one.name}: {n}' for one in comparison.seen for n in one.notes]


def _some(names: list[str]) -> str:
  return f'{", ".join(names[:3])}{" and others" if len(names) > 3 else ""}'


def workers_text(numbers: list[int]) -> str:
  """'1, 8 and 32 workers'."""
  named = listed([str(n) for n in numbers])
  return f'{named} worker{"" if numbers == [1] else "s"}'


def counted(number: float, name: str) -> str:
  """'3 runs'."""
  return f'{number:,g} {name}{"" if number == 1 else "s"}'


def listed(names: list[str], most: int = 8) -> str:
  """'a, b and c'; of many names only how many."""
  if len(names) > most:
    return f'{len(names)} lines'
  if len(names) < 2:
    return ''.join(names)
  comma = '; ' if any(',' in name for name in names) else ', '
  return f'{comma.join(names[:-1])} and {names[-1]}'
