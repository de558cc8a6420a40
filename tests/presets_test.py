"""Every preset of images: two updates, end to end.

Those of texts are run by tests/language_test.py, those of digits by
tests/launch_test.py, methods_test.py and reproduce_test.py, which also tests
that a preset goes with every method of its tables. The deep networks (a minute
each to compile):

  python -m pytest tests/presets_test.py -m slow
"""

import functools
import pathlib

import jax
import pytest
import tensorflow_datasets as tfds

from experiments import tasks
from experiments.catalogue import parts
from experiments.running import train
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax import data
from tests import idx_files

PRESETS = pathlib.Path(__file__).parent.parent / 'experiments' / 'presets'
OTHERS = {  # and who runs them
  'digits_demo',
  'digits_methods',
  'digits_mlp',
  'text_transformer_xl_small',
  'wikitext103_transformer_xl',
}
DEEP = {'cnn_bn', 'cnn3', 'resnet20', 'wrn_16_4', 'resnet50'}


def fields_of(preset):
  """The fields of `Settings` that a preset gives."""
  fields, parameters = {}, {}
  for line in (PRESETS / f'{preset}.flags').read_text().splitlines():
    if not line.startswith('--'):
      continue
    name, _, text = line.removeprefix('--').partition('=')
    if name in parts.PARAMETERS:
      parameters[name] = parts.PARAMETERS[name].kind(text)
    else:
      default = getattr(settings_lib.Settings(), name)
      if isinstance(default, tuple):
        fields[name] = tuple(map(float, text.split(',')))
      else:
        fields[name] = type(default)(text or True)
  return {**fields, 'parameters': tuple(sorted(parameters.items()))}


# Presets whose network, data and flags another one has too.
ALIKE = ('fashion_mnist_abs', 'fashion_mnist_softsync')


def names():
  """The presets of images, the deep ones marked."""
  found = []
  for path in sorted(PRESETS.glob('*.flags')):
    if path.stem not in OTHERS:
      deep = fields_of(path.stem)['model'] in DEEP
      alike = path.stem in ALIKE
      marks = [pytest.mark.slow] * (deep or alike)
      found.append(pytest.param(path.stem, marks=marks))
  return found


def test_no_flag_stands_twice():
  for path in PRESETS.glob('*.flags'):
    lines = [x for x in path.read_text().splitlines() if x.startswith('--')]
    flags = [line.partition('=')[0] for line in lines]
    assert len(flags) == len(set(flags)), path
    assert all(' ' not in x for x in lines if '--note' not in x), path


@pytest.fixture
def small(monkeypatch):
  """ImageNet at a size for two updates on a CPU."""
  monkeypatch.setitem(
    data.DATASETS,
    'imagenet2012',
    functools.partial(data.imagenet2012, image_size=32),
  )
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    yield


def two_updates(preset, folder, **own):
  fields = fields_of(preset)
  if fields['dataset'] == 'idx':
    idx_files.write(folder)
    fields |= {'data_path': str(folder), 'holdout': 40}
  elif 'holdout' in fields:
    fields |= {'holdout': 4}  # of eight
  chosen = {'workers': 2, 'batch_size': 4, 'executor': 'exact', **own}
  with tfds.testing.mock_data(num_examples=8):
    per_epoch = tasks.batches_per_epoch(
      settings_lib.Settings(**fields | chosen)
    )
    chosen['epochs'] = 2 / per_epoch
    settings = check.check(settings_lib.Settings(**fields | chosen))
    return train.train(settings).summary


@pytest.mark.parametrize('preset', names())
def test_every_preset_makes_two_updates(preset, small, tmp_path):
  summary = two_updates(preset, tmp_path)
  assert summary['updates'] == summary['batches'] == 2
  assert not summary['diverged']
  assert 0 <= summary['test_error'] <= 1


@pytest.mark.slow
@pytest.mark.parametrize('preset', ['cifar10_resnet20', 'imagenet_resnet50'])
def test_a_deep_preset_makes_two_updates_with_a_small_network(
  preset, small, tmp_path
):
  summary = two_updates(preset, tmp_path, model='mlp')
  assert summary['updates'] == summary['batches'] == 2
  assert 0 <= summary['test_error'] <= 1
