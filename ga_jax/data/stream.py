"""A data set that is too large for memory, decoded as it is needed."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ga_jax.data import ahead, base, fingerprint, prepared, scaling
from ga_jax.guards import checks
from ga_jax.job.source import Source

AHEAD_BYTES = 2**28  # of batches made ahead
_PART = 8  # examples that a thread takes at a time
_SAMPLES = 64  # examples of a split that a fingerprint looks at


class Records(NamedTuple):
  """Examples that are read one by one.

  Attributes:
    split: their name, for messages.
    read_fn: `read_fn(i) -> (image, label)`, from any thread.
    rows: which of them, [n] int.
  """

  split: str
  read_fn: Callable[[int], tuple[Any, int]]
  rows: np.ndarray


class Stream(NamedTuple):
  """A classification data set on disk; it stands where a `Dataset` does.

  Attributes:
    name: for messages.
    train: what is trained on.
    validation: held out of training, empty by default.
    test: what is reported.
    view_fn: `view_fn(image, rng) -> inputs`, uint8 of `input_shape`: a random
      view, or with None the one that is evaluated.
    input_shape: of one example.
    num_classes: classes are 0 ... num_classes − 1.
    mean: of the training inputs in [0, 1], per channel.
    std: likewise.
    files: (path, examples) of every file that they are read from, for
      `fingerprint`.
  """

  name: str
  train: Records
  validation: Records
  test: Records
  view_fn: Callable[[Any, np.random.Generator | None], np.ndarray]
  input_shape: tuple[int, ...]
  num_classes: int
  mean: np.ndarray
  std: np.ndarray
  files: tuple[tuple[str, int], ...] = ()

  @property
  def resident(self):
    """What `source` keeps on the device."""
    return self.mean, self.std

  def size(self, split: str) -> int:
    """How many examples 'train', 'validation' or 'test' has."""
    return len(getattr(self, split).rows)

  def hold_out(self, size: int) -> 'Stream':
    """Takes a validation split out of the training split, see `hold_out`."""
    size = checks.integer('size', size, 0)
    if size == 0:
      return self
    rows = self.train.rows
    held, kept = base.held_out(len(rows), size)
    return self._replace(
      train=self.train._replace(rows=rows[kept]),
      validation=self.train._replace(rows=rows[held]),
    )

  def fingerprint(self) -> dict[str, str]:
    """What the data are known by, without reading all of them.

    Which examples a split has, and 64 of them as they are stored, at equal
    distances; of every file its name, size, number of examples and last 64 KiB.
    Another example that takes the place of one in between, of the same number
    of bytes, is not seen.

    Returns:
      {split: 'SIZE-DIGEST'}, and 'files'.

    Raises:
      DataError: one of these examples, or a file, cannot be read.
    """
    try:
      files = fingerprint.of_files(self.files)
    except OSError as error:
      raise base.DataError(f'{self.name} cannot be read: {error}') from error
    return {
      **{s: _fingerprint(self.name, getattr(self, s)) for s in base.SPLITS},
      'files': files,
    }

  def batches(self, split: str, size: int) -> Iterator[base.Batch]:
    """A split in order, in batches of equal size, the next ones made ahead."""
    records = getattr(self, split)
    n = len(records.rows)
    size = min(checks.integer('size', size, 1), n)
    numbers = range(-(-n // size))

    def begin(number):
      rows = records.rows[number * size : (number + 1) * size]
      inputs, labels = self._empty(size)
      valid = np.arange(size) < len(rows)
      parts = self._fill(records, rows, inputs, labels, lambda i: None)
      return ahead.Begun(parts, base.Batch(inputs, labels, valid))

    made = ahead.Ahead(begin, self._ahead(size))
    made.expect(numbers)
    yield from map(made, numbers)

  def source(self, batch_size: int, seed: int, augment: bool = False) -> Source:
    """Shuffled training batches as a pure function of (seed, batch_id).

    What an example looks like is a function of (seed, epoch, example).

    Args:
      batch_size: examples per batch, at most the size of the split.
      seed: of permutations and views.
      augment: random views instead of the one that is evaluated.

    Returns:
      A `Source` of batches `(inputs [B, ...] float32, labels [B] int32)`; the
      host's are uint8, and made ahead of time.

    Raises:
      DataError: there are fewer examples than that. `batch_fn` raises one that
        names an example that cannot be read.
    """
    records = self.train
    rows_fn = base.shuffled(len(records.rows), batch_size, seed)
    per_epoch = len(records.rows) // batch_size

    def begin(batch_id):
      rows = records.rows[rows_fn(batch_id)]
      inputs, labels = self._empty(batch_size)
      epoch = batch_id // per_epoch
      rng_fn = (lambda i: _rng(seed, epoch, i)) if augment else lambda i: None
      parts = self._fill(records, rows, inputs, labels, rng_fn)
      return ahead.Begun(parts, (inputs, labels))

    made = ahead.Ahead(begin, self._ahead(batch_size))
    return Source(made, load, self.resident, expect_fn=made.expect)

  def _ahead(self, batch_size):
    each = batch_size * int(np.prod(self.input_shape))
    return int(np.clip(AHEAD_BYTES // each, 2, 16))

  def _empty(self, size):
    inputs = np.zeros((size, *self.input_shape), np.uint8)
    return inputs, np.zeros(size, np.int32)

  def _fill(self, records, rows, inputs, labels, rng_fn):
    """Has threads write the examples of some rows into arrays."""

    def fill(start):
      for place, i in enumerate(rows[start : start + _PART].tolist(), start):
        try:
          image, labels[place] = records.read_fn(i)
          inputs[place] = self.view_fn(image, rng_fn(i))
        except Exception as error:  # decoders raise whatever they like
          raise prepared.unreadable(
            self.name, records.split, i, error
          ) from error

    pool = ahead.pool()
    return [pool.submit(fill, s) for s in range(0, len(rows), _PART)]


def load(resident, host_batch, key):
  """Normalises a batch on the device."""
  del key
  mean, std = resident
  inputs, labels = host_batch
  return scaling.normalise(inputs, mean, std), labels


def _fingerprint(name: str, records: Records) -> str:
  """The fingerprint of some rows and of examples among them."""
  n, seen = len(records.rows), []
  for place in np.linspace(0, n - 1, min(n, _SAMPLES)).astype(int):
    i = int(records.rows[place])
    try:
      image, label = records.read_fn(i)
    except Exception as error:  # readers raise whatever they like
      raise prepared.unreadable(name, records.split, i, error) from error
    if isinstance(image, bytes):
      image = np.frombuffer(image, np.uint8)
    seen += [image, label]
  return fingerprint.of_arrays(records.rows.astype(np.int64), *seen)


def _rng(seed, epoch, i):
  tag = int.from_bytes(b'view', 'big')  # a stream of its own
  return np.random.Generator(np.random.PCG64([tag, seed, epoch, i]))
