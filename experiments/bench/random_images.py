"""Random images, for benchmarks in which what is learnt does not matter."""

import functools

import jax
import numpy as np

from ga_jax import data


def source(
  count: int,
  shape: tuple[int, int, int],
  classes: int,
  batch_size: int,
  seed: int = 0,
):
  """Shuffled batches of images that are on the device once.

  Args:
    count: images in all.
    shape: (height, width, channels).
    classes: of the labels.
    batch_size: examples per batch.
    seed: of the order.

  Returns:
    A `Source`, see `data.training_source`.
  """
  dataset, resident = _images(count, shape, classes)
  found = data.training_source(dataset, batch_size, seed)
  return found._replace(resident=resident)


@functools.cache
def _images(count, shape, classes):
  rng = np.random.default_rng(0)
  split = data.Split(
    rng.integers(0, 256, (count, *shape), dtype=np.uint8),
    rng.integers(0, classes, count).astype(np.int32),
  )
  dataset = data.make_dataset('random', split, split, classes)
  return dataset, jax.device_put(dataset.resident)
