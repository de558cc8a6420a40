"""HTML from text: everything that is not made here is escaped."""

import html
import re
from collections.abc import Iterable, Sequence

escape = html.escape


def paragraph(text: str, kind: str = '') -> str:
  """A paragraph of plain text."""
  return f'<p{_class(kind)}>{escape(text)}</p>'


def items(texts: Iterable[str]) -> str:
  """A list of plain texts; '' for none."""
  texts = list(texts)
  if not texts:
    return ''
  return '<ul>' + ''.join(f'<li>{escape(t)}</li>' for t in texts) + '</ul>'


def code(text: str) -> str:
  """Lines to be copied."""
  return f'<pre><code>{escape(text)}</code></pre>'


def table(
  head: Sequence[str],
  rows: Iterable[Sequence[str]],
  caption: str = '',
  *,
  words: int = 1,
) -> str:
  """A table of plain texts.

  Args:
    head: of the columns.
    rows: texts.
    caption: above it.
    words: how many of the first columns hold words; the others hold numbers.
  """

  def cell(i, text):
    if i == 0:
      return f'<th scope="row">{escape(text)}</th>'
    return f'<td{_class("" if i < words else "number")}>{escape(text)}</td>'

  lines = [
    '<tr>' + ''.join(cell(i, t) for i, t in enumerate(row)) + '</tr>'
    for row in rows
  ]
  named = f'<caption>{escape(caption)}</caption>' if caption else ''
  heads = ''.join(
    f'<th scope="col"{_class("" if i < words else "number")}>{escape(t)}</th>'
    for i, t in enumerate(head)
  )
  return (
    f'<div class="wide"><table>{named}<thead><tr>{heads}</tr></thead>'
    f'<tbody>{"".join(lines)}</tbody></table></div>'
  )


def folded(title: str, inner: str) -> str:
  """What is shown on demand, and on paper."""
  return f'<details><summary>{escape(title)}</summary>{inner}</details>'


def titled(title: str, inner: str) -> str:
  """A part of a section."""
  return f'<h3>{escape(title)}</h3>{inner}'


def figure(inner: str, caption: str, kind: str = '') -> str:
  """A picture with a plain text under it."""
  return (
    f'<figure{_class(kind)}>{inner}'
    f'<figcaption>{escape(caption)}</figcaption></figure>'
  )


def inlined(svg: str, label: str, prefix: str) -> str:
  """An SVG file's text as part of a page.

  Args:
    svg: of a whole file.
    label: what it shows, for those who do not see it.
    prefix: of its ids, which must differ from those of other pictures.
  """
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = re.sub(r'\b(id=")', rf'\1{prefix}', svg)
  svg = re.sub(r'(url\(#|href="#)', rf'\1{prefix}', svg)
  named = f'<svg role="img" aria-label="{escape(label)}" '
  return named + svg.removeprefix('<svg').lstrip()


def _class(kind: str) -> str:
  return f' class="{kind}"' if kind else ''
