"""What TensorFlow Datasets has prepared, read without TensorFlow.

TensorFlow is needed once, to prepare a data set (`experiments.prepare`); the
ArrayRecord files that are left are read with NumPy and Pillow.

References:
  TensorFlow Datasets, `Data sources
  <https://www.tensorflow.org/datasets/data_source>`_.
"""

import contextlib
import importlib
import os
from collections.abc import Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from ga_jax.data import base, origins

FILE_FORMAT = 'array_record'
_AT_ONCE = 1000  # examples that are read together
_LAST = 'dataset_info.json'  # what TFDS writes last
# Builders that are not TensorFlow Datasets' own, by the modules they are in.
OWN = {'wikitext103': 'ga_jax.data.wikitext103_builder'}


class Prepared(NamedTuple):
  """A prepared data set.

  Attributes:
    name: in TensorFlow Datasets.
    splits: by name, `splits[name][i]` is a dict with 'image' and 'label'.
    num_classes: of the labels; 0 where there are none.
    files: (path, examples) of every file of these splits.
  """

  name: str
  splits: dict[str, Sequence[Any]]
  num_classes: int
  files: tuple[tuple[str, int], ...] = ()


def read(
  name: str, path: str | None, splits: Sequence[str], *, decode: bool = True
) -> Prepared:
  """Opens a data set that TensorFlow Datasets has prepared.

  Args:
    name: in TensorFlow Datasets.
    path: its data_dir; None for the default, ~/tensorflow_datasets.
    splits: the splits that are needed.
    decode: whether images are decoded, or left as the bytes of their file.

  Returns:
    A `Prepared`.

  Raises:
    DataError: not prepared, or not as a whole, or in a format that only
      TensorFlow reads; it says what to run.
  """
  builder = make_builder(name, path)
  found = sources(builder, path, splits)
  if not decode:
    for source in found.values():
      _leave_encoded(source)
  features = builder.info.features
  classes = features['label'].num_classes if 'label' in features else 0
  files = (file for split in splits for file in _files(builder, split))
  return Prepared(name, found, classes, tuple(files))


def sources(
  builder, path: str | None, splits: Sequence[str]
) -> dict[str, Sequence[Any]]:
  """The examples of a prepared data set, by split; see `read`."""
  found = {}
  for split in splits:
    try:
      found[split] = builder.as_data_source(split)
    # TFDS has no type of its own for what is not there.
    except Exception as error:
      raise base.DataError(why_unreadable(builder, path, split)) from error
    if problem := _damage(builder, split):
      raise base.DataError(_half(builder, path, problem))
  return found


def make_builder(name: str, path: str | None):
  """The builder of a data set, as TensorFlow Datasets calls it.

  Raises:
    DataError: `path` is no folder.
  """
  import tensorflow_datasets as tfds  # imported late: it takes half a second

  if name in OWN:
    importlib.import_module(OWN[name])
  path = path and os.path.expanduser(path)
  if path and not os.path.isdir(path):
    raise base.DataError(
      f'{path} is not a folder; to prepare {name} there, '
      f'{origins.of(name, path)}'
    )
  with _quiet():
    return tfds.builder(name, data_dir=path)


def why_unreadable(builder, path: str | None, split: str) -> str:
  """One line on why a split cannot be opened, and what to run."""
  folder = builder.data_dir
  if not os.path.isdir(folder):
    return (
      f'{builder.name} is not prepared in {builder.data_dir_root}; '
      f'{origins.of(builder.name, path)}'
    )
  if not os.path.isfile(os.path.join(folder, _LAST)):
    return _half(builder, path, f'no {_LAST}')
  if split not in builder.info.splits:
    return (
      f'{folder} has no split {split}, only {", ".join(builder.info.splits)}; '
      f'run again: {origins.command(builder.name, path, "--overwrite")}'
    )
  return (
    f'{folder} holds {builder.info.file_format.value}, which only TensorFlow '
    f'reads; run again: {origins.command(builder.name, path, "--overwrite")}'
  )


def arrays(prepared: Prepared, split: str) -> base.Split:
  """A whole split in memory.

  Raises:
    DataError: an example cannot be read; it is named.
  """
  source = prepared.splits[split]
  images, labels = [], []
  with _quiet():
    for start in range(0, len(source), _AT_ONCE):
      rows = range(start, min(start + _AT_ONCE, len(source)))
      for example in _examples(prepared.name, split, source, rows):
        images.append(example['image'])
        labels.append(example['label'])
  return base.Split(np.stack(images), np.array(labels, np.int32))


def _examples(name, split, source, rows):
  try:
    return source.__getitems__(list(rows))
  except Exception:  # the one that cannot be read is found below
    found = []
  for i in rows:
    try:
      found.append(source[i])
    except Exception as error:  # decoders raise whatever they like
      raise unreadable(name, split, i, error) from error
  return found


def unreadable(name: str, split: str, i: int, error) -> base.DataError:
  """The error of an example that cannot be read, in one line."""
  first, *_ = str(error).strip().splitlines() or [type(error).__name__]
  return base.DataError(f'{name}: {split} example {i} cannot be read: {first}')


def _damage(builder, split: str) -> str:
  """What is wrong with a split's files; '' for nothing."""
  from array_record.python import array_record_module

  if split not in builder.info.splits:  # only where TFDS's mock stands in
    return ''
  info = builder.info.splits[split]

  def damage(path, length):
    if not os.path.isfile(path):
      return f'no {os.path.basename(path)}'
    try:
      reader = array_record_module.ArrayRecordReader(os.fspath(path))
      found = reader.num_records()
      reader.close()
    except (RuntimeError, ValueError, IndexError):
      return f'{os.path.basename(path)} is damaged'
    if found != length:
      name = os.path.basename(path)
      return f'{name} has {found} records instead of {length}'
    return ''

  if builder.info.file_format.value != FILE_FORMAT:
    return ''
  with futures.ThreadPoolExecutor(8) as pool:
    found = pool.map(damage, info.filepaths, info.shard_lengths)
    return next(filter(None, found), '')


def _files(builder, split: str) -> list[tuple[str, int]]:
  """Paths of a split's files, and how many examples are in each."""
  if split not in builder.info.splits:  # only where TFDS's mock stands in
    return []
  info = builder.info.splits[split]
  return [
    (os.fspath(path), int(length))
    for path, length in zip(info.filepaths, info.shard_lengths, strict=True)
    if os.path.isfile(path)  # `_damage` says what is missing
  ]


def _half(builder, path, problem: str) -> str:
  return (
    f'{builder.data_dir} is not whole ({problem}); run again: '
    f'{origins.command(builder.name, path, "--overwrite")}'
  )


def _leave_encoded(source):
  import tensorflow_datasets as tfds

  # Asked of as_data_source, TFDS's mock would encode images with TensorFlow.
  source.decoders = {'image': tfds.decode.SkipDecoding()}


@contextlib.contextmanager
def _quiet():
  """Keeps TensorFlow Datasets from saying what a DataError says."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)
