"""A multi-layer perceptron for images and vectors."""

import flax.linen as nn

from ga_jax.models import base


class MLP(nn.Module):
  """Dense layers with ReLU; BatchNorm before each ReLU where asked."""

  num_classes: int
  features: tuple[int, ...] = (128, 128)
  batch_norm: bool = False

  @nn.compact
  def __call__(self, x, train: bool):  # [B, ...] -> [B, num_classes]
    x = x.reshape((x.shape[0], -1))
    for width in self.features:
      x = nn.Dense(width, use_bias=not self.batch_norm)(x)
      if self.batch_norm:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
      x = nn.relu(x)
    return nn.Dense(self.num_classes)(x)


def mlp(num_classes: int) -> base.Model:
  """Two hidden layers of 128."""
  return base.from_linen(MLP(base.classes(num_classes)))


def mlp_bn(num_classes: int) -> base.Model:
  """Two hidden layers of 128 with BatchNorm."""
  return base.from_linen(MLP(base.classes(num_classes), batch_norm=True))
