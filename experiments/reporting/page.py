"""The page of a report: its sections in order, in one file that needs no other.

Its Content-Security-Policy forbids every request, so that nothing in it can
reach for the network.
"""

import importlib.resources
import string
from typing import NamedTuple

import ga_jax
from experiments.reporting import (
  about,
  commands,
  faults,
  figures,
  history,
  lines,
  markup,
  table,
  timeline,
)


class Section(NamedTuple):
  """A part of the page: its name in addresses, its title, its HTML."""

  name: str
  title: str
  inner: str


def page(
  comparison: lines.Comparison,
  told: dict[str, history.LineHistory],
  drawn: list[figures.DrawnFigure],
  made_by: str,
) -> str:
  """A whole report.

  Args:
    comparison: the runs.
    told: what happened in them.
    drawn: the figures.
    made_by: the command that makes it.

  Returns:
    HTML.
  """
  parts = [
    Section('question', 'Question', about.question(comparison)),
    Section('settings', 'Settings', about.settings(comparison)),
    Section('results', 'Results', table.section(comparison)),
    Section('figures', 'Figures', figures.section(drawn)),
    Section('timelines', 'Timelines', timeline.section(comparison, told)),
    Section('diverged', 'What diverged', faults.section(comparison)),
    Section('environment', 'Environment', about.environment(comparison)),
    Section('again', 'Make it again', commands.section(comparison, made_by)),
  ]
  missing = about.missing(comparison)
  if missing:
    parts.append(Section('missing', 'Not there', markup.items(missing)))
  return string.Template(_resource('page.html')).substitute(
    title=markup.escape(f'Report: {about.title(comparison)}'),
    version=markup.escape(ga_jax.__version__),
    style=_resource('page.css'),
    script=_resource('page.js'),
    contents='\n'.join(
      f'<li><a href="#{p.name}">{markup.escape(p.title)}</a></li>'
      for p in parts
    ),
    sections='\n'.join(
      f'<section id="{p.name}"><h2>{markup.escape(p.title)}</h2>{p.inner}'
      '</section>'
      for p in parts
    ),
  )


def _resource(name: str) -> str:
  return importlib.resources.files(__package__).joinpath(name).read_text()
