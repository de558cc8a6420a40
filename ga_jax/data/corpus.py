"""Text as tokens: vocabularies, corpora, and batches of segments in order.

Words are what whitespace separates, with '<eos>' at the end of every line, as
in WikiText; classes are ordered by frequency in the training split, so that an
adaptive softmax can cut them. A word that the vocabulary has not is '<unk>'.

What is built is kept in a file of `cache_folder()`, named by the checksum of
what it was built of, and read from there the next time.
"""

import array
import collections
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ga_jax.data import base, fingerprint
from ga_jax.guards import checks
from ga_jax.job.source import Source
from ga_jax.record import files as files_lib

SPLITS = base.SPLITS
END, UNKNOWN = '<eos>', '<unk>'
_FORMAT = 'ga_jax text 1'
_MOST = 2**30  # tokens; positions are int32


class Vocabulary(NamedTuple):
  """Tokens by class.

  Attributes:
    tokens: the most frequent one first.
    level: 'word' or 'character'.
  """

  tokens: tuple[str, ...]
  level: str

  def encode(self, lines: Iterable[str]) -> np.ndarray:
    """The classes of a text, [n] int32.

    Args:
      lines: of the text.
    """
    index = {token: i for i, token in enumerate(self.tokens)}
    unknown, found = index[UNKNOWN], array.array('i')
    for line in lines:
      found.extend(index.get(t, unknown) for t in tokens_of(line, self.level))
    return np.array(found, np.int32)

  def decode(self, classes: Iterable[int]) -> str:
    """The text of classes."""
    tokens = [self.tokens[i] for i in classes]
    if self.level == 'character':
      return ''.join(tokens)
    return ' '.join(tokens).replace(f' {END}', '\n').replace('\n ', '\n')


class Corpus(NamedTuple):
  """A text in host memory.

  Attributes:
    train: [n] int32, classes in the order of the text.
    validation: likewise.
    test: likewise.
    vocabulary: what the classes are.
  """

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  vocabulary: Vocabulary

  @property
  def num_classes(self) -> int:
    return len(self.vocabulary.tokens)

  @property
  def resident(self):
    """What `source` keeps on the device."""
    return self.train

  def size(self, split: str) -> int:
    """How many tokens 'train', 'validation' or 'test' has."""
    return len(getattr(self, split))

  def hold_out(self, size: int) -> 'Corpus':
    """The last `size` training tokens in the place of the validation split.

    Raises:
      DataError: there are not so many.
    """
    size = checks.integer('size', size, 0)
    if size == 0:
      return self
    if not 0 < size < len(self.train):
      raise base.DataError(
        f'cannot hold out {size} of {len(self.train)} training tokens'
      )
    return self._replace(
      train=self.train[:-size], validation=self.train[-size:]
    )

  def fingerprint(self) -> dict[str, str]:
    """What the text is known by: every token of each split, and all classes.

    Returns:
      {split: 'SIZE-DIGEST'}, and 'vocabulary'.
    """
    return {
      **{s: fingerprint.of_arrays(getattr(self, s)) for s in SPLITS},
      'vocabulary': fingerprint.of_texts(self.vocabulary.tokens),
    }

  def source(
    self, batch_size: int, segment_length: int, streams: int, seed: int
  ) -> Source:
    """Training batches as a pure function of (seed, stream, segment).

    The text is a ring, on which batch_size · streams readers begin at equal
    distances, turned by the seed; batch segment · streams + stream holds the
    readers of one stream, all of them segment · segment_length tokens further.
    So a stream is read in order from end to end, also from epoch to epoch.

    Args:
      batch_size: B, rows per batch.
      segment_length: L, tokens per row.
      streams: at least 1.
      seed: of where the text begins.

    Returns:
      A `Source` of batches (tokens, targets), both [B, L] int32; targets are
      the tokens that come after each.

    Raises:
      DataError: the text is too short, or too long.
    """
    batch_size = checks.integer('batch_size', batch_size, 1)
    segment_length = checks.integer('segment_length', segment_length, 1)
    streams = checks.integer('streams', streams, 1)
    seed = checks.integer('seed', seed, 0)
    n, rows = len(self.train), batch_size * streams
    if not rows * segment_length < n < _MOST:
      raise base.DataError(
        f'{streams} streams of {batch_size} rows of {segment_length} tokens '
        f'need more than {rows * segment_length} training tokens and fewer '
        f'than {_MOST}, the text has {n}'
      )
    tag = int.from_bytes(b'text', 'big')  # a stream of its own
    turn = np.random.Generator(np.random.PCG64([tag, seed])).integers(n)

    def batch_fn(batch_id):
      segment, stream = divmod(batch_id, streams)
      readers = stream * batch_size + np.arange(batch_size, dtype=np.int64)
      begun = turn + readers * n // rows
      return ((begun + segment * segment_length) % n).astype(np.int32)

    return Source(batch_fn, Load(segment_length), self.resident, streams)


class Load(NamedTuple):
  """Reads a batch from the text on the device; equal ones compile once."""

  segment_length: int

  def __call__(self, resident, begins, key):
    del key
    steps = jnp.arange(self.segment_length + 1, dtype=jnp.int32)
    places = begins[:, None] + steps[None]  # [B, L + 1]
    places = jnp.where(places < len(resident), places, places - len(resident))
    text = resident[places]
    return text[:, :-1], text[:, 1:]


def folder(
  path: str, names: dict[str, str], level: str = 'word', least: int = 1
) -> Corpus:
  """A corpus of one file per split.

  Args:
    path: the folder.
    names: file by split.
    level: see `build`.
    least: see `build`.

  Raises:
    DataError: a file is missing, empty or not UTF-8.
  """
  files = {split: os.path.join(path, name) for split, name in names.items()}
  for file in files.values():
    if not os.path.isfile(file):
      raise base.DataError(
        f'{path} must hold {", ".join(names.values())}: no '
        f'{os.path.basename(file)} there'
      )
  lines = {split: lambda f=f: lines_of(f) for split, f in files.items()}
  return build(lines, level, checksum(files.values()), least)


def build(
  lines: dict[str, Callable[[], Iterator[str]]],
  level: str,
  key: str,
  least: int = 1,
) -> Corpus:
  """Builds a corpus, or reads what was built of the same text before.

  Args:
    lines: `lines[split]()` iterates over the lines of a split.
    level: 'word' or 'character'.
    key: checksum of all of the text.
    least: how often a token must be seen in training to be in the vocabulary.

  Raises:
    DataError: a split is empty or not UTF-8, no token is seen so often, or the
      cache cannot be written.
  """
  name = hashlib.sha256(f'{_FORMAT} {level} {least} {key}'.encode()).hexdigest()
  path = os.path.join(cache_folder(), f'{name}.npz')
  found = _cached(path)
  if found is not None:
    return found
  try:
    vocabulary = build_vocabulary(lines['train'](), level, least)
    splits = {s: vocabulary.encode(lines[s]()) for s in SPLITS}
  except UnicodeDecodeError as error:
    raise base.DataError(f'the text is not UTF-8: {error}') from error
  for split, classes in splits.items():
    if not len(classes):
      raise base.DataError(f'the {split} split of the text is empty')
  if not {*vocabulary.tokens} - {END, UNKNOWN}:
    raise base.DataError(
      f'no {level} of the training text is seen {least} times, which a '
      f'vocabulary needs: {len(splits["train"]):,} tokens are too few'
    )
  built = Corpus(**splits, vocabulary=vocabulary)
  _keep(path, built)
  return built


def build_vocabulary(
  lines: Iterable[str], level: str, least: int = 1
) -> Vocabulary:
  """The tokens of a text by frequency, with '<unk>' among them."""
  counts = collections.Counter()
  for line in lines:
    counts.update(tokens_of(line, level))
  rare = [t for t, n in counts.items() if n < least and t not in (END, UNKNOWN)]
  seen = sum(counts.pop(token) for token in rare)
  counts[UNKNOWN] += seen
  return Vocabulary(tuple(t for t, _ in counts.most_common()), level)


def tokens_of(line: str, level: str) -> list[str]:
  """The tokens of one line."""
  return [*line.split(), END] if level == 'word' else list(line)


def lines_of(path: str) -> Iterator[str]:
  """The lines of a file."""
  with open(path, encoding='utf-8') as file:
    yield from file


def checksum(paths: Iterable[Any]) -> str:
  """The SHA-256 of files: of one its own, of several that of theirs."""
  found = [files_lib.sha256(path) for path in paths]
  if len(found) == 1:
    return found[0]
  return hashlib.sha256(' '.join(found).encode()).hexdigest()


def cache_folder() -> str:
  """Where corpora are kept: $GA_JAX_CACHE, or ~/.cache/ga_jax."""
  base_folder = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  default = os.path.join(os.path.expanduser(base_folder), 'ga_jax')
  return os.environ.get('GA_JAX_CACHE') or default


def _cached(path: str) -> Corpus | None:
  """What `_keep` wrote; None where it is not there, or is damaged."""
  try:
    with np.load(path) as found:
      vocabulary = json.loads(found['vocabulary'].tobytes())
      splits = {split: found[split] for split in SPLITS}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None
  tokens = tuple(vocabulary['tokens'])
  return Corpus(**splits, vocabulary=Vocabulary(tokens, vocabulary['level']))


def _keep(path: str, built: Corpus):
  vocabulary = json.dumps(built.vocabulary._asdict()).encode()
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with files_lib.replacing(path) as partial, open(partial, 'wb') as file:
      np.savez(
        file,
        vocabulary=np.frombuffer(vocabulary, np.uint8),
        **{split: getattr(built, split) for split in SPLITS},
      )
  except OSError as error:
    raise base.DataError(
      f'cannot keep the tokens in {os.path.dirname(path)} ({error.strerror}): '
      'make room there, or set GA_JAX_CACHE to another folder'
    ) from error
