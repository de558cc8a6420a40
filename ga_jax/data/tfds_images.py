"""Small images of TensorFlow Datasets: CIFAR-10, CIFAR-100, Fashion-MNIST.

They are decoded once and live on the device as they are stored.

References:
  Krizhevsky, `Learning Multiple Layers of Features from Tiny Images
  <https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf>`_, 2009.

  Xiao, Rasul, Vollgraf, `Fashion-MNIST: a Novel Image Dataset for Benchmarking
  Machine Learning Algorithms <https://arxiv.org/abs/1708.07747>`_, 2017.
"""

from ga_jax.data import base, prepared


def cifar10(path: str | None = None) -> base.Dataset:
  """50,000 training and 10,000 test images of 10 classes.

  Args:
    path: TensorFlow Datasets' data_dir; None for ~/tensorflow_datasets.

  Returns:
    A `Dataset` of [32, 32, 3] images.

  Raises:
    DataError: not prepared; it says what to run.
  """
  return _images('cifar10', path)


def cifar100(path: str | None = None) -> base.Dataset:
  """50,000 training and 10,000 test images of 100 classes.

  Args:
    path: TensorFlow Datasets' data_dir; None for ~/tensorflow_datasets.

  Returns:
    A `Dataset` of [32, 32, 3] images.

  Raises:
    DataError: not prepared; it says what to run.
  """
  return _images('cifar100', path)


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
  return _images('fashion_mnist', path)


def _images(name: str, path: str | None) -> base.Dataset:
  found = prepared.read(name, path, ('train', 'test'))
  train, test = (prepared.arrays(found, split) for split in found.splits)
  return base.make_dataset(name, train, test, found.num_classes)
