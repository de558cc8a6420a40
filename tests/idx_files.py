"""A small data set in the files of MNIST and Fashion-MNIST."""

import gzip
import struct

import numpy as np


def write(folder):
  """Grey images of two classes, as Fashion-MNIST comes.

  Args:
    folder: `pathlib.Path` that gets the four files.
  """
  rng = np.random.default_rng(0)
  for part, n in (('train', 160), ('t10k', 60)):
    labels = rng.integers(0, 2, n).astype(np.uint8)
    images = rng.integers(0, 120, (n, 8, 8)).astype(np.uint8)
    images[labels == 1, :4] += 100
    for kind, values in (('images-idx3', images), ('labels-idx1', labels)):
      head = bytes((0, 0, 8, values.ndim))
      head += struct.pack(f'>{values.ndim}I', *values.shape)
      with gzip.open(folder / f'{part}-{kind}-ubyte.gz', 'wb') as file:
        file.write(head + values.tobytes())
