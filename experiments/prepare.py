"""Prepares a data set of TensorFlow Datasets, once; TensorFlow does it.

  pip install 'ga_jax[tfds]'
  python -m experiments.prepare --dataset=cifar10

downloads the original archive, checks its checksum and writes the examples in
the ArrayRecord format, which everything else here reads without TensorFlow. A
machine without network is given the archive, or a folder of archives:

  python -m experiments.prepare --dataset=cifar10 \\
    --archive=cifar-10-binary.tar.gz

CIFAR's published files can be read as they are, with --data_path, and

  python -m experiments.prepare --dataset=cifar10 --verify --data_path=FOLDER

says whether they are the published bytes.

ImageNet is had from image-net.org alone, after registration: --archive names
the folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar. CIFAR takes
a minute, ImageNet some hours and 150 GB.
"""

import os

from absl import flags

from experiments.records import folders
from experiments.script import failures, launch
from experiments.settings import path_flags
from experiments.settings import table as settings_lib
from experiments.tasks import preparing
from ga_jax import data
from ga_jax.data import prepared

_DATASET = flags.DEFINE_string(
  'dataset', 'cifar10', '|'.join(preparing.ORIGINALS)
)
_DATA_PATH = path_flags.one(
  'data_path', '', 'where to (default ~/tensorflow_datasets)'
)
_ARCHIVE = path_flags.one(
  'archive', '', 'the published archive, or the folder of several'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'replace what is there, whole or not'
)
_VERIFY = flags.DEFINE_bool(
  'verify',
  False,
  'say whether the files in --data_path are the published ones; writes nothing',
)


def prepare() -> preparing.Preparation | None:
  """Checks every flag; None where something is to be verified."""
  name, path = _DATASET.value, _DATA_PATH.value
  if name not in preparing.ORIGINALS:
    raise settings_lib.SettingError(
      'dataset', name, f'must be one of {", ".join(preparing.ORIGINALS)}'
    )
  if _VERIFY.value:
    _check_verifiable(name, path)
    return None
  archives = preparing.local_archives(name, _ARCHIVE.value)
  plan = preparing.Preparation(name, path, archives, _OVERWRITE.value)
  try:
    import tensorflow  # noqa: F401  # TFDS says it later and at length
  except ImportError as error:
    raise settings_lib.SettingError(
      'dataset', name, "needs TensorFlow, once: pip install 'ga_jax[tfds]'"
    ) from error
  if path:
    folders.writable('data_path', path)
  return plan


def _check_verifiable(name: str, path: str):
  if name != 'cifar10':
    why = f'the digests of cifar10 are known, not those of {name}'
    raise settings_lib.SettingError('verify', True, why)
  if not os.path.exists(path):
    why = 'must be the folder or archive of the published files'
    raise settings_lib.SettingError('data_path', path, why)


def verify(name: str, path: str):
  """Says of each file whether it is the published one; fails where one is not.

  Args:
    name: of the data set.
    path: of its files.
  """
  try:
    found = data.published(name, path)
  except data.DataError as error:
    failures.fail(str(error), 1)
  for file, same in found.items():
    print(f'{file}: {"the published bytes" if same else "other bytes"}')
  others = [file for file, same in found.items() if not same]
  if others:
    failures.fail(f'{path}: {", ".join(others)} is not what was published', 1)


def main(plan: preparing.Preparation | None):
  if plan is None:
    verify(_DATASET.value, _DATA_PATH.value)
    return
  builder = prepared.make_builder(plan.name, plan.path or None)
  folder = builder.data_dir
  if os.path.isdir(folder) and not plan.overwrite:
    _check(plan)
    print(f'{folder} is there already; --overwrite makes it again')
    return
  try:
    preparing.write(builder, plan)
  # Whatever TFDS and TensorFlow raise: the user is told in one line.
  except Exception as error:
    why = preparing.reason(error, plan)
    failures.fail(f'{plan.name} is not prepared: {why}', 1)
  _check(plan)
  print(f'written to {folder}')
  path = f' --data_path={plan.path}' if plan.path else ''
  print(f'next: python -m experiments.train --dataset={plan.name}{path}')


def _check(plan: preparing.Preparation):
  """Says how much there is, or fails."""
  try:
    print(preparing.sizes(plan))
  except data.DataError as error:
    failures.fail(str(error), 1)


if __name__ == '__main__':
  # Nothing here needs an accelerator, and TensorFlow talks a lot.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  os.environ['CUDA_VISIBLE_DEVICES'] = ''
  launch.launch(main, prepare)
