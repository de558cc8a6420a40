"""scikit-learn's 1,797 real 8x8 images of digits, which need no download.

References:
  Alpaydin, Kaynak, `Optical Recognition of Handwritten Digits
  <https://archive.ics.uci.edu/dataset/80>`_, 1998.
"""

import importlib.util
import os

import numpy as np

from ga_jax.data import base, origins

TEST_SIZE = 360


def digits(path: str | None = None) -> base.Dataset:
  """1,437 training and 360 test images, a fixed split.

  Args:
    path: must be None; the images come with scikit-learn.

  Returns:
    A `Dataset` of [8, 8, 1] images.

  Raises:
    DataError: there is a path, or no scikit-learn.
  """
  if path:
    raise base.DataError(f'digits need no data_path: {origins.of("digits")}')
  values, labels = _table()
  images = values.reshape(-1, 8, 8, 1)
  images = np.round(images * (255.0 / 16.0)).astype(np.uint8)
  labels = labels.astype(np.int32)
  order = np.random.default_rng(0).permutation(len(labels))
  test, train = order[:TEST_SIZE], order[TEST_SIZE:]
  return base.make_dataset(
    'digits',
    base.Split(images[train], labels[train]),
    base.Split(images[test], labels[test]),
    num_classes=10,
  )


def _table() -> tuple[np.ndarray, np.ndarray]:
  """Values [n, 64] from 0 to 16, and labels [n].

  They are read from scikit-learn's own file: to import it takes a second.
  """
  found = importlib.util.find_spec('sklearn')
  for folder in found.submodule_search_locations if found else ():
    file = os.path.join(folder, 'datasets', 'data', 'digits.csv.gz')
    if os.path.exists(file):
      table = np.loadtxt(file, delimiter=',')
      return table[:, :-1], table[:, -1]
  if found is None:
    raise base.DataError(f'no digits: {origins.of("digits")}')
  from sklearn import datasets  # a version that keeps it elsewhere

  return datasets.load_digits(return_X_y=True)
