"""From stored inputs to what a network reads: mean 0 and variance 1.

Nothing here has a unit. Statistics are in float64, and what is constant is
known by its least and largest value, so the same inputs in another unit are
normalised to the same numbers: exactly, where the units differ by a power of
two.
"""

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 1e300  # of floats: differences of two such are still finite


def statistics(inputs) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation per channel of images, per feature of others.

  Args:
    inputs: [n, H, W, C] or [n, ...], uint8 or of floats.

  Returns:
    (mean, std): of bytes in [0, 1] and float32, of floats float64. What is
    constant has an infinite deviation, and so counts as 0.
  """
  if inputs.dtype == np.uint8 and inputs.ndim == 4:
    return _of_byte_images(inputs)
  axes = tuple(range(inputs.ndim - 1)) if inputs.ndim == 4 else (0,)
  low, high = inputs.min(axis=axes), inputs.max(axis=axes)
  if inputs.dtype == np.uint8:
    mean = (inputs.mean(axis=axes, dtype=np.float64) / 255.0).astype(np.float32)
    std = (inputs.std(axis=axes, dtype=np.float64) / 255.0).astype(np.float32)
    return mean, np.where(high > low, std, np.float32(np.inf))
  low, high = low.astype(np.float64), high.astype(np.float64)
  # By powers of two, so without rounding, to values whose squares are numbers.
  _, power = np.frexp(np.maximum(np.abs(low), np.abs(high)))
  shifted = np.ldexp(inputs.astype(np.float64), -power)
  shifted -= np.ldexp(low, -power)
  mean = low + np.ldexp(shifted.mean(axis=axes), power)
  std = np.ldexp(shifted.std(axis=axes), power)
  return mean, np.where(std > 0, std, np.inf)


def _of_byte_images(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """`statistics`, exactly and sooner: values are counted."""
  counts = np.zeros((images.shape[-1], 256), np.int64)
  for part in np.array_split(images, max(1, len(images) // 1000)):
    for channel, of_channel in enumerate(counts):
      of_channel += np.bincount(part[..., channel].ravel(), minlength=256)
  number, values = counts[0].sum(), np.arange(256)
  total, squares = counts @ values, counts @ values**2  # below 2^63
  mean = total / number
  # Of integers as long as they are exact: squares are close to each other.
  spread = [
    int(number) * int(s) - int(t) ** 2
    for s, t in zip(squares, total, strict=True)
  ]
  std = np.sqrt(np.array(spread, np.float64)) / number
  return (
    (mean / 255.0).astype(np.float32),
    np.where(std > 0, (std / 255.0).astype(np.float32), np.float32(np.inf)),
  )


def to_float(inputs, mean, std) -> jax.Array:
  """Stored inputs as normalised float32, [B, ...].

  Args:
    inputs: as a `Split` holds them; floats not within compiled code.
    mean: of the data set.
    std: of the data set.
  """
  return normalise(jnp.asarray(stage(inputs, mean, std)), mean, std)


def stage(inputs, mean, std) -> np.ndarray:
  """What goes to the device of stored inputs: bytes stay bytes.

  Floats are centred and scaled here, in float64, and only then made float32,
  which cannot hold a small spread around a large mean.
  """
  if inputs.dtype == np.uint8:
    return inputs
  centred = np.asarray(inputs, np.float64) - mean
  return np.divide(centred, std, out=centred).astype(np.float32)


def normalise(staged: jax.Array, mean, std) -> jax.Array:
  """What `stage` gives as normalised float32, [B, ...], on the device."""
  if staged.dtype != jnp.uint8:
    return staged
  inputs = staged.astype(jnp.float32) / 255.0
  shape = (1,) * (inputs.ndim - mean.ndim) + mean.shape
  return (inputs - mean.reshape(shape)) / std.reshape(shape)
