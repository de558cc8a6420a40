"""A small convolutional network for images."""

import flax.linen as nn

from ga_jax.models import base


class CNN(nn.Module):
  """3x3 convolutions of stride 2, each with ReLU; global mean; dense."""

  num_classes: int
  features: tuple[int, ...] = (16, 32, 32)
  batch_norm: bool = False

  @nn.compact
  def __call__(self, x, train: bool):  # [B, H, W, C] -> [B, num_classes]
    for width in self.features:
      x = nn.Conv(width, (3, 3), strides=2, use_bias=not self.batch_norm)(x)
      if self.batch_norm:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
      x = nn.relu(x)
    return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


def cnn(num_classes: int) -> base.Model:
  """Three convolutions of 16, 32 and 32 filters, stride 2."""
  return base.from_linen(CNN(base.classes(num_classes)), reads='images')


def cnn_bn(num_classes: int) -> base.Model:
  """Three convolutions of 16, 32 and 32 filters, stride 2 with BatchNorm."""
  return base.from_linen(
    CNN(base.classes(num_classes), batch_norm=True), reads='images'
  )
