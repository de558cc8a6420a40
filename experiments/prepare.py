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


def prepare() -> preparing.Preparation:
  """Checks every flag."""
  name, path = _DATASET.value, _DATA_PATH.value
  if name not in preparing.ORIGINALS:
    raise settings_lib.SettingError(
      'dataset', name, f'must be one of {", ".join(preparing.ORIGINALS)}'
    )
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


def main(plan: preparing.Preparation):
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
