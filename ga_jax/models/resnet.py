"""Residual networks: ResNet-20 for CIFAR and ResNet-50 for ImageNet.

ResNet-20 is section 4.2 of the paper: 3x3 convolutions, three stages of three
basic blocks, and shortcuts without parameters (option A) where a stage begins.
ResNet-50 is its "v1.5", whose bottlenecks take their stride in the 3x3
convolution instead of the first 1x1, with the initialisation of Goyal et al.:
the last scale of each block 0, dense weights of standard deviation 0.01.

References:
  He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. 2015.
    https://arxiv.org/abs/1512.03385
  He, Zhang, Ren, Sun. Delving Deep into Rectifiers. 2015.
    https://arxiv.org/abs/1502.01852
  Goyal et al. Accurate, Large Minibatch SGD. 2017.
    https://arxiv.org/abs/1706.02677
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ga_jax.models import base, layers


def option_a(x: jax.Array, features: int, stride: int) -> jax.Array:
  """The shortcut without parameters: subsampled, zeros for new channels.

  Args:
    x: [B, H, W, C].
    features: at least C.
    stride: every so many pixels are kept, from the first.

  Returns:
    [B, ⌈H / stride⌉, ⌈W / stride⌉, features].
  """
  new = features - x.shape[-1]
  return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, new)))


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut without parameters."""

  features: int
  stride: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train: bool):  # [B, H, W, C] -> [B, H', W', features]
    y = layers.conv(self.features, 3, self.stride, self.dtype)(x)
    y = nn.relu(layers.batch_norm(y, train, self.dtype))
    y = layers.conv(self.features, 3, 1, self.dtype)(y)
    y = layers.batch_norm(y, train, self.dtype)
    return nn.relu(y + option_a(x, self.features, self.stride))


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions; a projection where the shape changes."""

  features: int  # of the 3x3 convolution; the block returns 4 times as many
  stride: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train: bool):  # [B, H, W, C] -> [B, H', W', 4 features]
    y = layers.conv(self.features, 1, 1, self.dtype)(x)
    y = nn.relu(layers.batch_norm(y, train, self.dtype))
    y = layers.conv(self.features, 3, self.stride, self.dtype)(y)
    y = nn.relu(layers.batch_norm(y, train, self.dtype))
    y = layers.conv(4 * self.features, 1, 1, self.dtype)(y)
    y = layers.batch_norm(y, train, self.dtype, nn.initializers.zeros)
    if self.stride != 1 or x.shape[-1] != 4 * self.features:
      x = layers.conv(4 * self.features, 1, self.stride, self.dtype)(x)
      x = layers.batch_norm(x, train, self.dtype)
    return nn.relu(y + x)


class CifarResNet(nn.Module):
  """ResNet of 6 `length` + 2 layers for small images."""

  num_classes: int
  length: int = 3
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool):  # [B, H, W, C] -> [B, num_classes]
    x = layers.conv(16, 3, 1, self.dtype)(x)
    x = nn.relu(layers.batch_norm(x, train, self.dtype))
    block = layers.block_class(BasicBlock, self.remat)
    lengths = 3 * (self.length,)
    x = layers.stages(block, x, train, lengths, (16, 32, 64), self.dtype)
    he_normal = nn.initializers.he_normal()
    dense = nn.Dense(self.num_classes, kernel_init=he_normal)
    return dense(layers.global_mean(x, self.dtype))


class ResNet(nn.Module):
  """ResNet of bottlenecks for images of about 224 x 224."""

  num_classes: int
  lengths: tuple[int, ...] = (3, 4, 6, 3)
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool):  # [B, H, W, C] -> [B, num_classes]
    x = layers.conv(64, 7, 2, self.dtype)(x)
    x = nn.relu(layers.batch_norm(x, train, self.dtype))
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    block = layers.block_class(Bottleneck, self.remat)
    widths = [64 * 2**i for i in range(len(self.lengths))]
    x = layers.stages(block, x, train, self.lengths, widths, self.dtype)
    small = nn.initializers.normal(0.01)
    dense = nn.Dense(self.num_classes, kernel_init=small)
    return dense(layers.global_mean(x, self.dtype))


def resnet20(
  num_classes: int, *, compute_dtype: str = 'float32', remat: bool = False
) -> base.Model:
  """ResNet-20 for CIFAR: 269,722 parameters at 10 classes.

  Args:
    num_classes: columns of the logits.
    compute_dtype: 'float32' or 'bfloat16', see `layers`.
    remat: compute each block again for the gradient.

  Returns:
    A `Model` of images.
  """
  return layers.model(CifarResNet, num_classes, compute_dtype, remat)


def resnet50(
  num_classes: int, *, compute_dtype: str = 'float32', remat: bool = False
) -> base.Model:
  """ResNet-50 v1.5: 25,557,032 parameters at 1000 classes.

  Args:
    num_classes: columns of the logits.
    compute_dtype: 'float32' or 'bfloat16', see `layers`.
    remat: compute each block again for the gradient.

  Returns:
    A `Model` of images.
  """
  return layers.model(ResNet, num_classes, compute_dtype, remat)
