"""Small images of TensorFlow Datasets, such as Fashion-MNIST.

They are decoded once and live on the device as they are stored.

References:
  Xiao, Rasul, Vollgraf, `Fashion-MNIST: a Novel Image Dataset for Benchmarking
  Machine Learning Algorithms <https://arxiv.org/abs/1708.07747>`_, 2017.
"""

from ga_jax.data import base, prepared


def fashion_mnist(path: str | None = None) -> base.Dataset:
  """60,000 training and 10,000 test images of 10 classes.

  Debian's package of the same images needs no preparation: see `idx`.

  Args:
    path: TensorFlow Datasets' data_dir; None for ~/tensorflow_datasets.

  Returns:
    A `Dataset` of [28, 28, 1] images.

  Raises:
    DataError: not prepared; it says what to run.
  """
  return images('fashion_mnist', path)


def images(name: str, path: str | None) -> base.Dataset:
  """A prepared set with the splits train and test.

  Args:
    name: in TensorFlow Datasets.
    path: its data_dir; None for ~/tensorflow_datasets.

  Returns:
    A `Dataset`.

  Raises:
    DataError: not prepared; it says what to run.
  """
  found = prepared.read(name, path, ('train', 'test'))
  train, test = (prepared.arrays(found, split) for split in found.splits)
  return base.make_dataset(name, train, test, found.num_classes)
