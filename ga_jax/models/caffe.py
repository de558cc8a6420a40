"""The 3-convolution network of the Staleness-Aware paper, for CIFAR-10.

The paper has three convolutions, each followed by pooling, and one dense layer,
about 90 K parameters, after the CIFAR-10 model that comes with Caffe. Our
reading is Caffe's `cifar10_full`: it has 89,578 (`cifar10_quick` has a second
dense layer and 145,578), and the configuration that the authors published with
their system Rudra names it, with the paper's 140 epochs and steps at 120 and
130. Its layers:

  5x5 convolution of 32, max pooling, ReLU, response normalisation;
  5x5 convolution of 32, ReLU, mean pooling, response normalisation;
  5x5 convolution of 64, ReLU, mean pooling; dense.

Pooling is 3x3 with stride 2, windows cut off at the right and lower edge.

References:
  Zhang, Gupta, Lian, Liu. Staleness-Aware Async-SGD for Distributed Deep
    Learning. 2016. https://arxiv.org/abs/1511.05950
  Jia et al. Caffe: Convolutional Architecture for Fast Feature Embedding. 2014.
    https://arxiv.org/abs/1408.5093
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ga_jax.models import base

# The network was made for pixels of 0 ... 255 less their mean: its initial
# weights, its normalisation and the rate 0.001 are meant for these. Ours are
# divided by their standard deviation, about a quarter of that range.
PIXEL_SCALE = 64.0

_WINDOW, _STRIDE = 3, 2


def padding(size: int) -> tuple[int, int]:
  """What is added to one side of an image, so that windows reach its end."""
  steps = max(-(-(size - _WINDOW) // _STRIDE), 0)
  return 0, steps * _STRIDE + _WINDOW - size


def pool(x: jax.Array, start: float, combine) -> jax.Array:
  """3x3 windows, stride 2: [B, H, W, C] -> [B, ⌈(H − 1) / 2⌉, ..., C]."""
  edges = tuple(padding(size) for size in x.shape[1:3])
  window, strides = (_WINDOW, _WINDOW), (_STRIDE, _STRIDE)
  return nn.pool(x, start, combine, window, strides, edges)


def max_pool(x: jax.Array) -> jax.Array:
  """The maximum of each window."""
  return pool(x, -jnp.inf, jax.lax.max)


def mean_pool(x: jax.Array) -> jax.Array:
  """The mean of what of each window lies in the image."""
  number = pool(jnp.ones_like(x[:1]), 0.0, jax.lax.add)
  return pool(x, 0.0, jax.lax.add) / number


def normalised(x: jax.Array) -> jax.Array:  # [B, H, W, C], the same
  """Local response normalisation within each channel.

  .. math:: x / (1 + \\alpha \\, \\overline{x^2})^\\beta

  with the mean over 3x3 windows, pixels outside being 0; α = 5e-5, β = 0.75.
  """
  total = nn.pool(x * x, 0.0, jax.lax.add, (3, 3), (1, 1), 'SAME')
  return x * (1 + 5e-5 / 9 * total) ** -0.75


class CNN3(nn.Module):
  """Caffe's `cifar10_full`."""

  num_classes: int

  @nn.compact
  def __call__(self, x, train: bool):  # [B, H, W, C] -> [B, num_classes]
    del train

    def conv(features, std):
      init = nn.initializers.normal(std)
      return nn.Conv(features, (5, 5), padding=2, kernel_init=init)

    x = conv(32, 1e-4)(PIXEL_SCALE * x)
    x = normalised(nn.relu(max_pool(x)))
    x = normalised(mean_pool(nn.relu(conv(32, 0.01)(x))))
    x = mean_pool(nn.relu(conv(64, 0.01)(x)))
    x = x.reshape((x.shape[0], -1))  # 1024 for images of 32 x 32
    init = nn.initializers.normal(0.01)
    return nn.Dense(self.num_classes, kernel_init=init)(x)


def cnn3(num_classes: int) -> base.Model:
  """Three 5x5 convolutions: 89,578 parameters at 32 x 32 x 3, 10 classes."""
  return base.from_linen(CNN3(base.classes(num_classes)), reads='images')
