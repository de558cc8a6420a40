"""Prepares a data set of TensorFlow Datasets; TensorFlow does it."""

import contextlib
import errno
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from experiments.settings import table as settings_lib
from ga_jax.data import prepared


class Original(NamedTuple):
  """What a data set is prepared from.

  Attributes:
    archives: the published files.
    splits: that it must have afterwards.
    downloads: whether TensorFlow Datasets can fetch the archives.
  """

  archives: tuple[str, ...]
  splits: tuple[str, ...] = ('train', 'test')
  downloads: bool = True


ORIGINALS = {
  'cifar10': Original(('cifar-10-binary.tar.gz',)),
  'cifar100': Original(('cifar-100-binary.tar.gz',)),
  'fashion_mnist': Original(
    (
      'train-images-idx3-ubyte.gz',
      'train-labels-idx1-ubyte.gz',
      't10k-images-idx3-ubyte.gz',
      't10k-labels-idx1-ubyte.gz',
    )
  ),
  'imagenet2012': Original(
    ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'),
    splits=('train', 'validation'),
    downloads=False,
  ),
  'wikitext103': Original(
    ('wikitext-103-v1.zip',), splits=('train', 'validation', 'test')
  ),
}


class Preparation(NamedTuple):
  """What is prepared, from what, where to."""

  name: str
  path: str
  archives: tuple[str, ...]  # paths of local files, none to download them
  overwrite: bool

  @property
  def original(self) -> Original:
    """What the data set is prepared from."""
    return ORIGINALS[self.name]


def local_archives(name: str, given: str) -> tuple[str, ...]:
  """The files that --archive names, one for each of the published ones.

  Args:
    name: of the data set.
    given: a file or a folder; '' to download.

  Returns:
    Their paths; () to download them.

  Raises:
    SettingError: they are not there.
  """
  original = ORIGINALS[name]
  wanted = ' and '.join(original.archives)
  if not given:
    if original.downloads:
      return ()
    raise settings_lib.SettingError(
      'archive', '', f'must be the folder with {wanted} (image-net.org)'
    )
  if os.path.isfile(given) and len(original.archives) == 1:
    return (given,)
  found = tuple(os.path.join(given, file) for file in original.archives)
  for path in found:
    if not os.path.isfile(path):
      raise settings_lib.SettingError(
        'archive', given, f'must hold {wanted}; there is no {path}'
      )
  return found


def write(builder, plan: Preparation):
  """Has TensorFlow Datasets prepare a data set, all of it or nothing."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import downloader

  downloader.MAX_RETRIES = 3  # TFDS's ten take minutes without network
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  mode = tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
  if plan.overwrite:
    mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
  with _passing(builder.data_dir_root) as scratch:
    for path, file in zip(plan.archives, plan.original.archives, strict=False):
      os.symlink(os.path.abspath(path), os.path.join(scratch, file))
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
        manual_dir=scratch,
        extract_dir=os.path.join(scratch, 'extracted'),
        download_mode=mode,
        try_download_gcs=False,
      ),
      file_format=prepared.FILE_FORMAT,
    )


@contextlib.contextmanager
def _passing(parent) -> Iterator[str]:
  """A folder for extracted files; it and unfinished downloads go afterwards."""
  os.makedirs(parent, exist_ok=True)
  unfinished = os.path.join(parent, 'downloads', '**', '*.tmp.*')
  others = set(glob.glob(unfinished, recursive=True))
  folder = tempfile.mkdtemp(prefix='preparing-', dir=parent)
  try:
    yield folder
  finally:
    for path in [folder, *set(glob.glob(unfinished, recursive=True)) - others]:
      shutil.rmtree(path, ignore_errors=True)


def sizes(plan: Preparation) -> str:
  """Reads what was written as training will read it, and says how much.

  Raises:
    DataError: it cannot be read.
  """
  found = prepared.read(plan.name, plan.path or None, plan.original.splits)
  counts = [f'{len(found.splits[s])} {s}' for s in plan.original.splits]
  return f'{plan.name}: {" and ".join(counts)} examples'


def reason(error: BaseException, plan: Preparation) -> str:
  """What went wrong, and what to do, in one line."""
  causes = []
  while error is not None and error not in causes:
    causes.append(error)
    error = error.__cause__ or error.__context__
  text = ' '.join(map(str, causes))
  names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
  full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  if any(getattr(cause, 'errno', None) in full for cause in causes) or any(
    said in text
    for said in ('No space left', 'Not enough disk space', 'File too large')
  ):
    return 'no space is left on the disk; nothing was left behind'
  files = ' and '.join(plan.original.archives)
  if 'NonMatchingChecksumError' in names:
    return (
      f'the checksum of {" or ".join(plan.archives) or "the download"} is not '
      f'that of the published {files}: damaged, or another file; fetch it again'
    )
  if not plan.archives and names & {'DownloadError', 'RequestException'}:
    return (
      f'{files} cannot be downloaded ({_first_line(causes[-1])}); without '
      'network, fetch it elsewhere and give --archive=PATH'
    )
  return f'{type(causes[0]).__name__}: {_first_line(causes[0])}'


def _first_line(error: BaseException) -> str:
  """The first line of what an error says."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
