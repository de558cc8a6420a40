"""Prepares a data set of TensorFlow Datasets, once; TensorFlow does it.

  pip install 'ga_jax[tfds]'
  python -m experiments.prepare --dataset=cifar10

downloads the original archive, checks its checksum and writes the examples in
the ArrayRecord format, which everything else here reads without TensorFlow. A
machine without network is given the archive, or a folder of archives:

  python -m experiments.prepare --dataset=cifar10 \\
    --archive=cifar-10-binary.tar.gz

ImageNet is had from image-net.org alone, after registration: --archive names
the folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar. CIFAR takes
a minute, ImageNet some hours and 150 GB.
"""

import contextlib
import errno
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from absl import flags

from experiments.records import folders
from experiments.script import launch
from experiments.settings import table as settings_lib
from ga_jax import data
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

_DATASET = flags.DEFINE_string('dataset', 'cifar10', '|'.join(ORIGINALS))
_DATA_PATH = flags.DEFINE_string(
  'data_path', '', 'where to (default ~/tensorflow_datasets)'
)
_ARCHIVE = flags.DEFINE_string(
  'archive', '', 'the published archive, or the folder of several'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'replace what is there, whole or not'
)


class Plan(NamedTuple):
  """What is prepared, from what, where to."""

  name: str
  path: str
  archives: tuple[str, ...]  # paths of local files, none to download them
  overwrite: bool

  @property
  def original(self) -> Original:
    """What the data set is prepared from."""
    return ORIGINALS[self.name]


def prepare() -> Plan:
  """Checks every flag."""
  name, path = _DATASET.value, os.path.expanduser(_DATA_PATH.value)
  if name not in ORIGINALS:
    raise settings_lib.SettingError(
      'dataset', name, f'must be one of {", ".join(ORIGINALS)}'
    )
  plan = Plan(name, path, local_archives(name), _OVERWRITE.value)
  try:
    import tensorflow  # noqa: F401  # TFDS says it later and at length
  except ImportError as error:
    raise settings_lib.SettingError(
      'dataset', name, "needs TensorFlow, once: pip install 'ga_jax[tfds]'"
    ) from error
  if path:
    folders.writable('data_path', path)
  return plan


def local_archives(name: str) -> tuple[str, ...]:
  """The files that --archive names, one for each of the published ones."""
  original, given = ORIGINALS[name], os.path.expanduser(_ARCHIVE.value)
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


def main(plan: Plan):
  builder = prepared.make_builder(plan.name, plan.path or None)
  folder = builder.data_dir
  if os.path.isdir(folder) and not plan.overwrite:
    check(plan)
    print(f'{folder} is there already; --overwrite makes it again')
    return
  try:
    write(builder, plan)
  # Whatever TFDS and TensorFlow raise: the user is told in one line.
  except Exception as error:
    fail(f'{plan.name} is not prepared: {reason(error, plan)}')
  check(plan)
  print(f'written to {folder}')
  path = f' --data_path={plan.path}' if plan.path else ''
  print(f'next: python -m experiments.train --dataset={plan.name}{path}')


def write(builder, plan: Plan):
  """Has TensorFlow Datasets prepare a data set, all of it or nothing."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import downloader

  downloader.MAX_RETRIES = 3  # TFDS's ten take minutes without network
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  mode = tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
  if plan.overwrite:
    mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
  with passing(builder.data_dir_root) as scratch:
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
def passing(parent) -> Iterator[str]:
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


def check(plan: Plan):
  """Reads what was written as training will read it, and says how much."""
  try:
    found = prepared.read(plan.name, plan.path or None, plan.original.splits)
  except data.DataError as error:
    fail(str(error))
  sizes = [f'{len(found.splits[s])} {s}' for s in plan.original.splits]
  print(f'{plan.name}: {" and ".join(sizes)} examples')


def reason(error: BaseException, plan: Plan) -> str:
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
      f'{files} cannot be downloaded ({first_line(causes[-1])}); without '
      'network, fetch it elsewhere and give --archive=PATH'
    )
  return f'{type(causes[0]).__name__}: {first_line(causes[0])}'


def first_line(error: BaseException) -> str:
  """The first line of what an error says."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def fail(message: str):
  """Ends the script with one line."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(1)


if __name__ == '__main__':
  # Nothing here needs an accelerator, and TensorFlow talks a lot.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  os.environ['CUDA_VISIBLE_DEVICES'] = ''
  launch.launch(main, prepare)
