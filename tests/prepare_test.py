"""The script that prepares data sets, on archives in the published format.

What TensorFlow does is marked tfds: pip install 'ga_jax[tfds]', then
pytest -m tfds tests/prepare_test.py
"""

import hashlib
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from ga_jax import data
from tests import cifar_files, tfds_sets

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SPLITS = ('train', 'test')


def prepare(*arguments, code='', **environment):
  """Runs the script in a process of its own, `code` before it."""
  start = textwrap.dedent(
    """
    import os, runpy, sys
    sys.argv[0] = 'prepare'
    {code}
    runpy.run_module('experiments.prepare', run_name='__main__')
    """
  ).format(code=code)
  done = subprocess.run(
    [sys.executable, '-c', start, *arguments],
    cwd=ROOT,
    env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', **environment},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert 'Traceback' not in done.stderr, done.stderr
  return done


def registered(name, paths):
  """Code that has TFDS expect these files instead of the published ones.

  The checksum of an archive that was made here is registered in the script's
  process only, where TFDS registers those of its own files.
  """
  known = {}
  for path in paths:
    with open(path, 'rb') as file:
      content = file.read()
    known[os.path.basename(path)] = (
      len(content),
      hashlib.sha256(content).hexdigest(),
    )
  return '\n'.join(
    (
      'import tensorflow_datasets as tfds',
      'from tensorflow_datasets.core.download import checksums',
      f'known = {known!r}',
      f'cls = tfds.builder_cls({name!r})',
      'infos = {url: checksums.UrlInfo(tfds.core.utils.Size(known[i.filename]'
      '[0]), known[i.filename][1], i.filename) '
      'for url, i in cls.url_infos.items()}',
      'cls.url_infos = infos',
      'checksums._all_url_infos = checksums.get_all_url_infos() | infos',
      'checksums.get_all_url_infos = lambda: checksums._all_url_infos',
    )
  )


def errors(done):
  """What a script that failed said; one line."""
  lines = [l for l in done.stderr.splitlines() if l.startswith('error: ')]
  assert len(lines) == 1, done.stderr
  assert done.returncode in (1, 2)
  return lines[0]


def left(folder):
  """Everything under a folder."""
  return sorted(
    os.path.join(where, name)
    for where, folders, files in os.walk(folder)
    for name in (*files, *folders)
  )


# What is refused before TensorFlow is needed.


def test_bad_settings_are_refused_by_flag(tmp_path):
  cases = {
    ('--dataset=digits',): 'must be one of cifar10, ',
    ('--dataset=imagenet2012',): 'must be the folder with ILSVRC2012_img_tr',
    (
      '--dataset=imagenet2012',
      f'--archive={tmp_path}',
    ): f'there is no {tmp_path}/ILSVRC2012_img_train.tar',
    (
      '--dataset=cifar10',
      f'--archive={tmp_path}/none.tar.gz',
    ): 'must hold cifar-10-binary.tar.gz',
    (
      '--dataset=cifar10',
      f'--data_path={tmp_path}/new',
    ): "needs TensorFlow, once: pip install 'ga_jax[tfds]'",
  }
  code = f"""
import sys
from absl import flags
from experiments import prepare
sys.modules['tensorflow'] = None  # an import of it fails
for arguments in {list(cases)!r}:
  flags.FLAGS.unparse_flags()
  for name in ('dataset', 'archive', 'data_path'):
    flags.FLAGS[name].unparse()
  flags.FLAGS(['prepare', *arguments])
  try:
    prepare.prepare()
  except prepare.settings_lib.SettingError as error:
    print(error)
"""
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  said = done.stdout.splitlines()
  for line, message in zip(said, cases.values(), strict=True):
    assert message in line
  assert left(tmp_path) == []


# With TensorFlow.


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
  """cifar-10-binary.tar.gz, small: its path, and what is in it."""
  folder = tmp_path_factory.mktemp('cifar')
  return written(folder, 'cifar10', cifar_files.made('cifar10'))


def written(folder, name, arrays):
  """Writes an archive; its path, and what is in it."""
  file, prefix = cifar_files.ARCHIVES[name, 'binary']
  names = ['batches.meta.txt']
  if name == 'cifar100':
    names = ['coarse_label_names.txt', 'fine_label_names.txt']
  labels = ''.join(f'name{i}\n' for i in range(100)).encode()
  files = {**cifar_files.binary(arrays), **dict.fromkeys(names, labels)}
  folder.mkdir(exist_ok=True)
  cifar_files.archive(folder / file, prefix, files)
  return str(folder / file), cifar_files.splits(arrays)


def in_any_order(labels, images):
  return sorted(
    (int(label), image.tobytes())
    for label, image in zip(labels, images, strict=True)
  )


def check_same(dataset, archive):
  """A data set holds an archive's examples; TFDS shuffles them."""
  for split in SPLITS:
    labels, images = archive[split]
    found = getattr(dataset, split)
    assert found.inputs.dtype == np.uint8
    assert in_any_order(found.labels, found.inputs) == in_any_order(
      labels, images
    )


@pytest.mark.tfds
def test_cifar10_is_prepared_from_its_archive_once(tmp_path, cifar):
  path, archive = cifar
  arguments = '--dataset=cifar10', f'--data_path={tmp_path}'
  code = registered('cifar10', [path])
  done = prepare(*arguments, f'--archive={path}', code=code)
  assert done.returncode == 0, done.stderr
  assert 'cifar10: 20 train and 4 test examples' in done.stdout
  assert f'train --dataset=cifar10 --data_path={tmp_path}' in done.stdout
  check_same(data.cifar10(str(tmp_path)), archive)
  assert not any('preparing-' in path for path in left(tmp_path))

  before = {path: os.stat(path).st_mtime_ns for path in left(tmp_path)}
  done = prepare(*arguments)  # needs no archive any more
  assert 'is there already' in done.stdout
  assert before == {p: os.stat(p).st_mtime_ns for p in left(tmp_path)}

  os.unlink(next(p for p in before if p.endswith('dataset_info.json')))
  done = prepare(*arguments)
  assert 'is not whole (no dataset_info.json)' in errors(done)
  done = prepare(*arguments, f'--archive={path}', '--overwrite', code=code)
  assert done.returncode == 0, done.stderr
  check_same(data.cifar10(str(tmp_path)), archive)


@pytest.mark.tfds
def test_cifar100_is_prepared_from_its_archive(tmp_path):
  folder, arrays = tmp_path / 'archive', cifar_files.made('cifar100')
  path, archive = written(folder, 'cifar100', arrays)
  done = prepare(
    '--dataset=cifar100',
    f'--data_path={tmp_path}',
    f'--archive={folder}',
    code=registered('cifar100', [path]),
  )
  assert done.returncode == 0, done.stderr
  dataset = data.cifar100(str(tmp_path))
  check_same(dataset, archive)
  assert dataset.num_classes == 100


@pytest.mark.tfds
def test_fashion_mnist_is_prepared_from_its_archives(tmp_path):
  archive = tfds_sets.fashion_archives(tmp_path, np.random.default_rng(2))
  files = [path for path in left(tmp_path) if path.endswith('.gz')]
  done = prepare(
    '--dataset=fashion_mnist',
    f'--data_path={tmp_path}',
    f'--archive={tmp_path}',
    code=registered('fashion_mnist', files),
  )
  assert done.returncode == 0, done.stderr
  dataset = data.fashion_mnist(str(tmp_path))
  assert dataset.train.inputs.shape == (60000, 28, 28, 1)
  check_same(dataset, archive)


@pytest.mark.tfds
def test_imagenet_is_prepared_from_its_archives(tmp_path):
  tfds_sets.imagenet_archives(tmp_path, np.random.default_rng(3))
  done = prepare(
    '--dataset=imagenet2012', f'--data_path={tmp_path}', f'--archive={tmp_path}'
  )
  assert done.returncode == 0, done.stderr
  assert 'imagenet2012: 6 train and 4 validation examples' in done.stdout
  stream = data.imagenet2012(str(tmp_path), image_size=32)
  inputs, labels = stream.source(6, 0).batch_fn(0)
  assert sorted(labels) == [0, 0, 1, 1, 2, 2]
  assert inputs.std() > 10
  (batch,) = stream.batches('test', 4)
  assert batch.inputs.shape == (4, 32, 32, 3)


@pytest.mark.tfds
def test_an_archive_with_another_checksum_is_refused(tmp_path, cifar):
  path, _ = cifar
  done = prepare(  # nothing is registered: it is not the published archive
    '--dataset=cifar10', f'--data_path={tmp_path}', f'--archive={path}'
  )
  message = errors(done)
  assert f'the checksum of {path} is not that of the published' in message
  assert not any('cifar10/3' in path for path in left(tmp_path))
  with pytest.raises(data.DataError, match='is not prepared'):
    data.cifar10(str(tmp_path))


@pytest.mark.tfds
def test_an_archive_that_is_cut_short_is_refused(tmp_path):
  path = tmp_path / 'ILSVRC2012_img_train.tar'
  tfds_sets.imagenet_archives(tmp_path, np.random.default_rng(3))
  os.truncate(path, path.stat().st_size // 2)
  done = prepare(
    '--dataset=imagenet2012', f'--data_path={tmp_path}', f'--archive={tmp_path}'
  )
  assert 'imagenet2012 is not prepared: ' in errors(done)
  with pytest.raises(data.DataError, match='is not prepared'):
    data.imagenet2012(str(tmp_path))


@pytest.mark.tfds
def test_without_a_network_the_flag_archive_is_named(tmp_path):
  done = prepare(
    '--dataset=cifar10',
    f'--data_path={tmp_path}',
    https_proxy='http://127.0.0.1:9',  # nothing listens there
    HTTPS_PROXY='http://127.0.0.1:9',
    no_proxy='',
    NO_PROXY='',
  )
  message = errors(done)
  assert 'cifar-10-binary.tar.gz cannot be downloaded' in message
  assert '--archive=PATH' in message
  assert not any('.tmp.' in path for path in left(tmp_path))
  with pytest.raises(data.DataError, match='is not prepared'):
    data.cifar10(str(tmp_path))


@pytest.mark.tfds
@pytest.mark.parametrize('limit', [2000, 20000])
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path, cifar, limit):
  """No file grows beyond a limit, as on a disk where no more is left."""
  path, _ = cifar
  code = '\n'.join(
    (
      registered('cifar10', [path]),
      'import resource, signal',
      'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)',
      f'resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))',
    )
  )
  done = prepare(
    '--dataset=cifar10',
    f'--data_path={tmp_path}',
    f'--archive={path}',
    code=code,
  )
  assert 'no space is left' in errors(done)
  with pytest.raises(data.DataError, match='is not prepared'):
    data.cifar10(str(tmp_path))
  files = [p for p in left(tmp_path) if os.path.isfile(p)]
  assert files == []
