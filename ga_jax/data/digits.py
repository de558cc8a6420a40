"""scikit-learn's 1,797 real 8x8 images of digits, which need no download.

References:
  Alpaydin, Kaynak, `Optical Recognition of Handwritten Digits
  <https://archive.ics.uci.edu/dataset/80>`_, 1998.
"""

import numpy as np

from ga_jax.data import base

TEST_SIZE = 360


def digits(path: str | None = None) -> base.Dataset:
  """1,437 training and 360 test images, a fixed split.

  Args:
    path: must be None; the images come with scikit-learn.

  Returns:
    A `Dataset` of [8, 8, 1] images.
  """
  if path:
    raise base.DataError('digits come with scikit-learn: give no data_path')
  from sklearn import datasets  # imported late: it takes most of a second

  bunch = datasets.load_digits()
  images = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
  labels = bunch.target.astype(np.int32)
  order = np.random.default_rng(0).permutation(len(labels))
  test, train = order[:TEST_SIZE], order[TEST_SIZE:]
  return base.make_dataset(
    'digits',
    base.Split(images[train], labels[train]),
    base.Split(images[test], labels[test]),
    num_classes=10,
  )
