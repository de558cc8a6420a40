"""The benchmarked models again, as a user of PyTorch would write them.

Submodules are named as those of Flax are, so that `load` finds its way alone.
Images are [B, C, H, W].
"""

import flax.traverse_util
import numpy as np
import torch
from torch import nn
from torch.nn import functional


class MLP(nn.Module):
  """Two hidden layers of 128."""

  def __init__(self, inputs: int, num_classes: int = 10):
    super().__init__()
    self.Dense_0 = nn.Linear(inputs, 128)
    self.Dense_1 = nn.Linear(128, 128)
    self.Dense_2 = nn.Linear(128, num_classes)

  def forward(self, x):
    x = functional.relu(self.Dense_0(x))
    return self.Dense_2(functional.relu(self.Dense_1(x)))


class CNN(nn.Module):
  """3x3 convolutions of stride 2 with BatchNorm; global mean; dense.

  Flax pads an even side at its end, PyTorch at its beginning: this is the same
  network seen in a mirror. Its kernels and images are flipped, `MIRRORED`.
  """

  def __init__(self, channels: int = 1, num_classes: int = 10):
    super().__init__()
    for i, width in enumerate((16, 32, 32)):
      conv = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
      self.add_module(f'Conv_{i}', conv)
      self.add_module(f'BatchNorm_{i}', nn.BatchNorm2d(width))
      channels = width
    self.Dense_0 = nn.Linear(channels, num_classes)

  def forward(self, x):
    x = functional.relu(self.BatchNorm_0(self.Conv_0(x)))
    x = functional.relu(self.BatchNorm_1(self.Conv_1(x)))
    x = functional.relu(self.BatchNorm_2(self.Conv_2(x)))
    return self.Dense_0(x.mean((2, 3)))


class Block(nn.Module):
  """Two 3x3 convolutions and a shortcut without parameters."""

  def __init__(self, channels: int, width: int, stride: int):
    super().__init__()
    self.stride = stride
    self.Conv_0 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
    self.BatchNorm_0 = nn.BatchNorm2d(width)
    self.Conv_1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.BatchNorm_1 = nn.BatchNorm2d(width)

  def forward(self, x):
    y = functional.relu(self.BatchNorm_0(self.Conv_0(x)))
    y = self.BatchNorm_1(self.Conv_1(y))
    if self.stride != 1:
      new = y.shape[1] - x.shape[1]
      x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, new))
    return functional.relu(x + y)


class ResNet20(nn.Module):
  """He et al., section 4.2, shortcuts of option A."""

  def __init__(self, num_classes: int = 10):
    super().__init__()
    self.Conv_0 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    self.BatchNorm_0 = nn.BatchNorm2d(16)
    self.blocks, channels = [], 16
    for stage, width in enumerate((16, 32, 64), 1):
      for i in range(1, 4):
        stride = 2 if stage > 1 and i == 1 else 1
        name = f'stage{stage}_block{i}'
        self.add_module(name, Block(channels, width, stride))
        self.blocks.append(name)
        channels = width
    self.Dense_0 = nn.Linear(channels, num_classes)

  def forward(self, x):
    x = functional.relu(self.BatchNorm_0(self.Conv_0(x)))
    for name in self.blocks:
      x = getattr(self, name)(x)
    return self.Dense_0(x.mean((2, 3)))


class TorchLayer(nn.Module):
  """Causal attention, then two dense layers."""

  def __init__(self, num_heads: int, features: int):
    super().__init__()
    self.num_heads = num_heads
    self.LayerNorm_0 = nn.LayerNorm(features)
    self.Dense_0 = nn.Linear(features, 3 * features)
    self.Dense_1 = nn.Linear(features, features)
    self.LayerNorm_1 = nn.LayerNorm(features)
    self.Dense_2 = nn.Linear(features, 4 * features)
    self.Dense_3 = nn.Linear(4 * features, features)

  def forward(self, x):  # [B, L, d]
    y = self.Dense_0(self.LayerNorm_0(x))
    y = y.unflatten(2, (3, self.num_heads, -1)).transpose(1, 3)
    query, key, value = y.unbind(2)  # [B, H, L, D]
    y = functional.scaled_dot_product_attention(
      query, key, value, is_causal=True
    )
    x = x + self.Dense_1(y.transpose(1, 2).flatten(2))
    y = functional.relu(self.Dense_2(self.LayerNorm_1(x)))
    return x + self.Dense_3(y)


class TorchByteTransformer(nn.Module):
  """`experiments.bench.byte_transformer`."""

  def __init__(
    self, length: int, num_layers: int = 2, num_heads: int = 4, features=64
  ):
    super().__init__()
    self.bytes = nn.Embedding(256, features)
    self.positions = nn.Embedding(length, features)
    self.layers = []
    for i in range(num_layers):
      self.layers.append(f'layer{i + 1}')
      self.add_module(self.layers[i], TorchLayer(num_heads, features))
    self.LayerNorm_0 = nn.LayerNorm(features)
    self.Dense_0 = nn.Linear(features, 256)

  def forward(self, tokens):  # [B, L]
    x = self.bytes(tokens) + self.positions.weight
    for name in self.layers:
      x = getattr(self, name)(x)
    return self.Dense_0(self.LayerNorm_0(x))


MIRRORED = (CNN,)


def load(module: nn.Module, params):
  """Copies parameters of Flax into the twin of their model.

  Args:
    module: changed in place.
    params: nested dicts of arrays.

  Raises:
    ValueError: names or shapes are not the module's: it is no twin.
  """
  twin = dict(module.named_parameters())
  flat = flax.traverse_util.flatten_dict(params, sep='.')
  named = {name_of(path): path for path in flat}
  if named.keys() != twin.keys():
    raise ValueError(f'no twin: {sorted(named.keys() ^ twin.keys())} differ')
  with torch.no_grad():
    for name, path in named.items():
      value = array_of(module, path, flat[path])
      if value.shape != tuple(twin[name].shape):
        raise ValueError(
          f'no twin: {name} is {tuple(twin[name].shape)}, not {value.shape}'
        )
      twin[name].copy_(torch.tensor(value))


def name_of(path: str) -> str:
  """The twin's name of a parameter: kernels, scales, embeddings are weights."""
  owner, _, kind = path.rpartition('.')
  return path if kind == 'bias' else f'{owner}.weight'


def array_of(module: nn.Module, path: str, value) -> np.ndarray:
  """A parameter as its twin keeps it: kernels are [out, in, ...]."""
  value = np.asarray(value)
  if not path.endswith('.kernel'):
    return value
  if value.ndim == 4 and isinstance(module, MIRRORED):
    value = value[::-1, ::-1]
  return np.ascontiguousarray(np.moveaxis(value, (-1, -2), (0, 1)))


def images_of(module: nn.Module, images: np.ndarray) -> np.ndarray:
  """Images [n, H, W, C] as the twin reads them; anything else as it is."""
  if isinstance(module, MIRRORED):
    images = images[:, ::-1, ::-1]
  if images.ndim == 4:
    images = np.ascontiguousarray(np.moveaxis(images, -1, 1))
  return images
