"""WikiText-103: 103 million words of good articles of Wikipedia.

References:
  Merity, Xiong, Bradbury, Socher, `Pointer Sentinel Mixture Models
  <https://arxiv.org/abs/1609.07843>`_, ICLR 2017.
"""

import io
import os
import zipfile
from collections.abc import Iterator

from ga_jax.data import base, corpus, origins, prepared

NAME = 'wikitext103'
URL = origins.WIKITEXT
ARCHIVE = os.path.basename(URL)
# Of the archive, as TensorFlow Datasets checks it too.
SHA256 = '242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590'
SIZE = 190_229_076  # bytes
FILES = dict(
  zip(
    corpus.SPLITS,
    ('wiki.train.tokens', 'wiki.valid.tokens', 'wiki.test.tokens'),
    strict=True,
  )
)


def wikitext103(path: str | None = None) -> corpus.Corpus:
  """The text word by word, with the vocabulary of its training split.

  Args:
    path: a folder with wiki.train.tokens, wiki.valid.tokens and
      wiki.test.tokens, the archive wikitext-103-v1.zip, or the data_dir where
      TensorFlow Datasets has prepared it; None for ~/tensorflow_datasets.

  Returns:
    A `Corpus` of 267,735 words.

  Raises:
    DataError: it is not there, not whole, or another file; it says what to do.
  """
  if path and os.path.isfile(path):
    return archive(path)
  names = set(os.listdir(path)) if path and os.path.isdir(path) else set()
  if names & set(FILES.values()):
    return corpus.folder(path, FILES)
  return _prepared(path)


def archive(path: str) -> corpus.Corpus:
  """Reads the archive where it lies.

  Raises:
    DataError: it is another file than the published one.
  """
  found = corpus.checksum([path])
  if found != SHA256:
    raise base.DataError(
      f'{path} is not {ARCHIVE} as it was published (its SHA-256 is {found}, '
      f'not {SHA256}): get it again from {URL}'
    )
  lines = {
    split: lambda name=name: archived_lines(path, name)
    for split, name in FILES.items()
  }
  try:
    return corpus.build(lines, 'word', found)
  except (zipfile.BadZipFile, KeyError) as error:
    raise base.DataError(f'{path} cannot be read: {error}') from error


def archived_lines(path, name: str) -> Iterator[str]:
  """The lines of one of the archive's files."""
  with (
    zipfile.ZipFile(path) as found,
    found.open(f'wikitext-103/{name}') as file,
  ):
    yield from io.TextIOWrapper(file, encoding='utf-8')


def _prepared(path: str | None) -> corpus.Corpus:
  """What TensorFlow Datasets has prepared."""
  builder = prepared.make_builder(NAME, path)
  sources = prepared.sources(builder, path, corpus.SPLITS)

  def lines(split):
    pieces = sources[split]
    for i in range(len(pieces)):
      try:
        piece = pieces[i]['text']
      except Exception as error:  # readers raise whatever they like
        raise prepared.unreadable(NAME, split, i, error) from error
      yield from io.StringIO(piece.decode())

  files = (f for s in corpus.SPLITS for f in builder.info.splits[s].filepaths)
  return corpus.build(
    {split: lambda s=split: lines(s) for split in corpus.SPLITS},
    'word',
    corpus.checksum(files),
  )
