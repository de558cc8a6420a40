"""A user's own text, word by word or character by character."""

import itertools
import os

from ga_jax.data import base, corpus, origins

FILES = dict(
  zip(corpus.SPLITS, ('train.txt', 'valid.txt', 'test.txt'), strict=True)
)
RARE = 3  # words that are seen less often are '<unk>'
_PARTS = (0.9, 0.95)  # of the lines of one file: where splits end


def text(path: str | None = None) -> corpus.Corpus:
  """A user's own text, word by word.

  Args:
    path: a folder with train.txt, valid.txt and test.txt, or one file: its
      first 90 % of the lines are trained on, the last 5 % are the test split.

  Returns:
    A `Corpus`; words that are seen less than 3 times in training are '<unk>'.

  Raises:
    DataError: a file is missing, empty or not UTF-8.
  """
  return _own('text', path, 'word', RARE)


def characters(path: str | None = None) -> corpus.Corpus:
  """A user's own text, character by character; see `text`."""
  return _own('characters', path, 'character', 1)


def _own(name: str, path: str | None, level: str, least: int) -> corpus.Corpus:
  if not path or not os.path.exists(path):
    raise base.DataError(
      f'{name} needs data_path, got {path!r}: {origins.of(name)}'
    )
  if os.path.isfile(path):
    ends = [round(part * count_lines(path)) for part in (0.0, *_PARTS, 1.0)]
    if len(set(ends)) < len(ends):
      raise base.DataError(
        f'{path} has {ends[-1]} lines, too few for three splits'
      )
    lines = {
      split: lambda a=a, b=b: itertools.islice(corpus.lines_of(path), a, b)
      for split, a, b in zip(corpus.SPLITS, ends[:-1], ends[1:], strict=True)
    }
    return corpus.build(lines, level, corpus.checksum([path]), least)
  return corpus.folder(path, FILES, level, least)


def count_lines(path: str) -> int:
  """How many lines a file has.

  Raises:
    DataError: it is not UTF-8.
  """
  try:
    return sum(1 for _ in corpus.lines_of(path))
  except UnicodeDecodeError as error:
    raise base.DataError(f'{path} is not UTF-8: {error}') from error
