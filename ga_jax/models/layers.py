"""What deep networks share: convolutions, BatchNorm, stages and options.

Parameters, running statistics and logits are float32 whatever is computed in;
BatchNorm's own arithmetic is, too. Padding is that of the papers, the same on
every side, which with stride 2 is not XLA's 'SAME'.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ga_jax.models import base

COMPUTE_DTYPES = ('float32', 'bfloat16')
STATS_MOMENTUM = 0.9  # PyTorch's 0.1 is the weight of the new value
EPSILON = 1e-5

he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def dtype_of(compute_dtype: str) -> Any:
  """What a network computes in.

  Args:
    compute_dtype: 'float32' or 'bfloat16'.

  Returns:
    A dtype, or None for that of parameters and inputs.

  Raises:
    ValueError: another name.
  """
  if compute_dtype not in COMPUTE_DTYPES:
    raise ValueError(
      f'compute_dtype={compute_dtype}: must be one of '
      f'{", ".join(COMPUTE_DTYPES)}'
    )
  return None if compute_dtype == 'float32' else jnp.dtype(compute_dtype)


def model(
  network: type[nn.Module], num_classes: int, compute_dtype: str, remat: bool
) -> base.Model:
  """A network of images, made as `network(num_classes, dtype=, remat=)`."""
  num_classes = base.classes(num_classes)
  module = network(num_classes, dtype=dtype_of(compute_dtype), remat=remat)
  return base.from_linen(module, stats_momentum=STATS_MOMENTUM, reads='images')


def conv(features: int, size: int, stride: int = 1, dtype=None) -> nn.Conv:
  """A square convolution without bias, padded by (size − 1) / 2."""
  return nn.Conv(
    features,
    (size, size),
    stride,
    padding=size // 2,
    use_bias=False,
    dtype=dtype,
    kernel_init=he_normal,
  )


def batch_norm(
  x: jax.Array,
  train: bool,
  dtype=None,
  scale_init=nn.initializers.ones,
) -> jax.Array:
  """BatchNorm over all axes but the last; to be called in a compact method.

  Args:
    x: [..., C].
    train: normalise by the batch and move the running statistics.
    dtype: what to return; the arithmetic is at least float32.
    scale_init: initial scale.

  Returns:
    [..., C].
  """
  norm = nn.BatchNorm(
    use_running_average=not train,
    momentum=STATS_MOMENTUM,
    epsilon=EPSILON,
    scale_init=scale_init,
  )
  if dtype is None:
    return norm(x)
  return norm(x.astype(jnp.float32)).astype(dtype)


def global_mean(x: jax.Array, dtype=None) -> jax.Array:
  """[B, H, W, C] -> [B, C], in float32 where `dtype` is a shorter one."""
  if dtype is not None:
    x = x.astype(jnp.float32)
  return x.mean(axis=(1, 2))


def block_class(block: type[nn.Module], remat: bool) -> type[nn.Module]:
  """A block called as `block(x, train)`, or one that keeps only its inputs.

  Args:
    block: a module's class.
    remat: its activations are computed again for the gradient: less memory,
      about a third more arithmetic, the same values.

  Returns:
    A module's class with the same parameters.
  """
  return nn.remat(block, static_argnums=(2,)) if remat else block


def stages(block, x, train: bool, lengths, widths, dtype=None) -> jax.Array:
  """Stages of blocks, to be called in a compact method.

  Args:
    block: what `block_class` returns, made as `block(width, stride, dtype)`.
    x: [B, H, W, C].
    train: see `batch_norm`.
    lengths: blocks of each stage.
    widths: of the blocks of each stage; all but the first begin with stride 2.
    dtype: what is computed in.

  Returns:
    [B, H', W', C'].
  """
  for i, (length, width) in enumerate(zip(lengths, widths, strict=True)):
    for j in range(length):
      name = f'stage{i + 1}_block{j + 1}'
      x = block(width, 2 if i > 0 and j == 0 else 1, dtype, name=name)(x, train)
  return x
