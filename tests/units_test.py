"""Results do not depend on the units of what is measured.

Powers of two multiply without rounding, so most of these compare bits.
"""

import numpy as np
import pytest

from experiments import run
from experiments import settings as settings_lib
from ga_jax import data
from tests import data_test


@pytest.fixture(scope='module')
def digits():
  """Digits as vectors of floats; pixels at the edge are constant."""
  found = data.digits()
  return {
    f'{key}_{part}': array
    for part, split in (('train', found.train), ('test', found.test))
    for key, array in (
      ('x', split.inputs.reshape(len(split.labels), 64).astype(np.float64)),
      ('y', split.labels),
    )
  }


def trained(arrays, folder, **own):
  """A short training, as the commands do it."""
  settings = settings_lib.check(
    settings_lib.Settings(
      dataset='npz',
      data_path=data_test.write_npz(folder, **arrays),
      holdout=300,
      model='mlp_bn',
      method='ga',
      workers=4,
      epochs=1.0,
      **own,
    )
  )
  done = run.train(settings)
  kept = ('test_error', 'validation_error', 'train_loss', 'mean_gap')
  return {k: done.summary[k] for k in kept}, done.result.metrics['loss']


@pytest.fixture(scope='module')
def plain(digits, tmp_path_factory):
  found = trained(digits, tmp_path_factory.mktemp('plain'))
  assert found[0]['test_error'] < 0.3  # it learns
  return found


@pytest.mark.parametrize('power', [-60, -17, 60])
def test_scaled_data_train_to_the_same_bits(digits, plain, power, tmp_path):
  other = {
    key: np.ldexp(array, power) if key.startswith('x') else array
    for key, array in digits.items()
  }
  summary, losses = trained(other, tmp_path)
  assert summary == plain[0]
  assert np.array_equal(losses, plain[1])


def test_shifted_data_train_to_the_same_errors(digits, plain, tmp_path):
  other = {
    key: array + 1e6 * 255 if key.startswith('x') else array
    for key, array in digits.items()
  }
  summary, losses = trained(other, tmp_path)
  for name in ('test_error', 'validation_error'):
    assert summary[name] == plain[0][name]
  np.testing.assert_allclose(losses, plain[1], rtol=1e-4)
