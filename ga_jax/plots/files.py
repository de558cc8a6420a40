"""Pictures as files, and as part of a page."""

import io
import os

_METADATA = {  # no date: the same data give the same file
  '.png': {},
  '.svg': {'Date': None},
  '.pdf': {'CreationDate': None},
}


def save(figure, path: str):
  """Writes a picture; its ending says the format.

  Args:
    figure: of a function of `ga_jax.plots`.
    path: ends in .png, .svg or .pdf.

  Raises:
    ValueError: another ending.
  """
  ending = os.path.splitext(path)[1].lower()
  if ending not in _METADATA:
    raise ValueError(f'a picture must end in .png, .svg or .pdf, got {path}')
  _write(figure, path, ending)


def svg(figure) -> str:
  """A picture as it stands in a page of HTML: an <svg> element."""
  file = io.BytesIO()
  _write(figure, file, '.svg')
  text = file.getvalue().decode()
  return text[text.index('<svg') :]


def _write(figure, file, ending):
  import matplotlib

  with matplotlib.rc_context({'svg.hashsalt': 'ga_jax'}):
    figure.savefig(file, format=ending[1:], metadata=_METADATA[ending], dpi=150)
