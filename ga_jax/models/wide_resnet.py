"""Wide residual networks for CIFAR.

WRN-d-k has three stages of (d − 4) / 6 pre-activation blocks, k times as wide
as ResNet's. Where the shape changes, one BatchNorm and ReLU serve both the
block's convolutions and the 1x1 convolution of its shortcut. No dropout.

References:
  Zagoruyko, Komodakis. Wide Residual Networks. 2016.
    https://arxiv.org/abs/1605.07146
"""

from typing import Any

import flax.linen as nn

from ga_jax.models import base, layers


class Block(nn.Module):
  """BatchNorm, ReLU and a 3x3 convolution, twice, and a shortcut."""

  features: int
  stride: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train: bool):  # [B, H, W, C] -> [B, H', W', features]
    y = nn.relu(layers.batch_norm(x, train, self.dtype))
    if self.stride != 1 or x.shape[-1] != self.features:
      x = layers.conv(self.features, 1, self.stride, self.dtype)(y)
    y = layers.conv(self.features, 3, self.stride, self.dtype)(y)
    y = nn.relu(layers.batch_norm(y, train, self.dtype))
    return x + layers.conv(self.features, 3, 1, self.dtype)(y)


class WideResNet(nn.Module):
  """WRN-`depth`-`widen`."""

  num_classes: int
  depth: int = 16  # 6 n + 4
  widen: int = 4
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool):  # [B, H, W, C] -> [B, num_classes]
    x = layers.conv(16, 3, 1, self.dtype)(x)
    block = layers.block_class(Block, self.remat)
    lengths = 3 * ((self.depth - 4) // 6,)
    widths = [self.widen * width for width in (16, 32, 64)]
    x = layers.stages(block, x, train, lengths, widths, self.dtype)
    x = nn.relu(layers.batch_norm(x, train, self.dtype))
    # Uniform of variance 1 / (3 inputs): what the published code starts with.
    uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    dense = nn.Dense(self.num_classes, kernel_init=uniform)
    return dense(layers.global_mean(x, self.dtype))


def wrn_16_4(
  num_classes: int, *, compute_dtype: str = 'float32', remat: bool = False
) -> base.Model:
  """WideResNet-16-4: 2,748,890 parameters at 10 classes.

  Args:
    num_classes: columns of the logits.
    compute_dtype: 'float32' or 'bfloat16', see `layers`.
    remat: compute each block again for the gradient.

  Returns:
    A `Model` of images.
  """
  return layers.model(WideResNet, num_classes, compute_dtype, remat)
