"""Docstrings as the pages want them.

Formulas and links of reStructuredText become those of Markdown. The fields of a
class that are explained by comments get a section of its docstring.
"""

import inspect
import re
import textwrap

import griffe

FORMULA = re.compile(
  r'^(?P<indent> *)\.\. math::(?P<line> .*)?\n'
  r'(?P<lines>(?:\n*(?P=indent) +\S.*\n?)*)',
  re.MULTILINE,
)
INLINE = re.compile(r':math:`([^`]+)`')
LINK = re.compile(r'`([^`<]+?)\s*<(https?:[^>]+)>`_')


class Docstrings(griffe.Extension):
  """Rewrites what griffe reads from the sources."""

  def on_instance(self, *, obj, **kwargs):
    if obj.docstring:
      obj.docstring.value = markdown(obj.docstring.value)

  def on_class(self, *, cls, **kwargs):
    if cls.docstring and 'Attributes:' not in cls.docstring.value:
      fields = [_field(a) for a in cls.attributes.values() if _is_field(a)]
      if fields:
        text = cls.docstring.value.rstrip()
        cls.docstring.value = '\n'.join([text, '', 'Attributes:', *fields])


def _is_field(attribute) -> bool:
  hidden = attribute.name.startswith('_') or 'property' in attribute.labels
  return not hidden


def _field(attribute) -> str:
  *_, comment = attribute.source.partition('  # ')
  return f'  {attribute.name}: {comment}'


def markdown(docstring: str) -> str:
  """A docstring in Markdown; it was reStructuredText where it is more."""
  text = FORMULA.sub(_formula, inspect.cleandoc(docstring) + '\n')
  text = INLINE.sub(lambda found: f'${_line(found[1])}$', text)
  return LINK.sub(lambda found: f'[{_line(found[1])}]({found[2]})', text)


def _line(text: str) -> str:
  return ' '.join(text.split())


def _formula(match) -> str:
  formula = (match['line'] or '') + textwrap.dedent(match['lines'])
  formula = formula.strip()
  if '&' in formula:
    formula = f'\\begin{{align*}}\n{formula}\n\\end{{align*}}'
  return textwrap.indent(f'\n$$\n{formula}\n$$\n\n', match['indent'])
