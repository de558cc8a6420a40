"""What the pages need beyond mkdocs: formulas, results, links to the source.

* Formulas (`$...$`, `$$...$$`) become MathML, which browsers show by
  themselves: no script, no font, no network. A command that the converter does
  not know ends a strict build.
* `results/` stands outside this folder; its tables and pictures are pages of
  the site all the same.
* A link to any other file of the repository (as it works on GitHub) becomes its
  name: the site has no page for it. A link to nothing is left for mkdocs to
  find.
"""

import html
import pathlib
import posixpath
import re

from latex2mathml import converter
from mkdocs import exceptions
from mkdocs.structure import files as files_lib

ROOT = pathlib.Path(__file__).parent.parent
FORMULA = re.compile(
  r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)
LINK = re.compile(
  r'(?P<code>^```.*?^```)|(?P<before>!?\[(?P<text>[^\]]*)\]\()'
  r'(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)',
  re.DOTALL | re.MULTILINE,
)


def on_files(files, config):
  """Adds the tables and pictures of results/ to the site's files."""
  for path in sorted((ROOT / 'results').glob('*/*')):
    if path.suffix in ('.md', '.png'):
      name = path.relative_to(ROOT).as_posix()
      files.append(
        files_lib.File.generated(config, name, abs_src_path=str(path))
      )
  return files


def on_page_markdown(markdown, page, config, files):
  """Turns links that leave docs/ into what the site has for them."""
  here = posixpath.dirname(page.file.src_uri)
  if page.file.src_uri.startswith('results/'):
    page.meta['search'] = {'exclude': True}
    return markdown

  def replaced(match):
    if match['code']:
      return match[0]
    target = posixpath.normpath(posixpath.join('docs', here, match['target']))
    if target.startswith('docs/') or not (ROOT / target).exists():
      return match[0]
    if files.get_file_from_path(target):
      there = posixpath.relpath(target, here or '.')
      return f'{match["before"]}{there}{match["anchor"] or ""})'
    named = posixpath.basename(target) in match['text']
    return match['text'] if named else f'{match["text"]} (`{target}`)'

  return LINK.sub(replaced, markdown)


def on_page_content(content, page, config, files):
  """Writes formulas in MathML."""

  def mathml(match):
    block = match[1] == 'div'
    formula = html.unescape(match[2]).strip()
    element = converter.convert(formula, display='block' if block else 'inline')
    if '\\' in element:
      raise exceptions.PluginError(
        f'{page.file.src_uri}: the formula {formula!r} has a command that '
        'latex2mathml does not know'
      )
    return f'<div class="formula">{element}</div>' if block else element

  return FORMULA.sub(mathml, content)
