"""A small causal transformer on bytes, for benchmarks: no memory, no dropout.

Layers are normalised before attention and before the two dense layers, and
positions are learned.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ga_jax.models import base

BYTES = 256


class Layer(nn.Module):
  """Causal attention, then two dense layers."""

  num_heads: int

  @nn.compact
  def __call__(self, x):  # [B, L, d] -> [B, L, d]
    heads = *x.shape[:2], 3, self.num_heads, x.shape[-1] // self.num_heads
    y = nn.Dense(3 * x.shape[-1])(nn.LayerNorm(epsilon=1e-5)(x))
    query, key, value = jnp.moveaxis(y.reshape(heads), 2, 0)  # [B, L, H, D]
    y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    x = x + nn.Dense(x.shape[-1])(y.reshape(x.shape))
    y = nn.Dense(4 * x.shape[-1])(nn.LayerNorm(epsilon=1e-5)(x))
    return x + nn.Dense(x.shape[-1])(nn.relu(y))


class ByteTransformer(nn.Module):
  """Embedding, layers, normalisation, dense."""

  num_layers: int
  num_heads: int
  features: int

  @nn.compact
  def __call__(self, tokens, train: bool):  # [B, L] -> [B, L, BYTES]
    del train  # the same
    positions = nn.Embed(tokens.shape[1], self.features, name='positions')
    x = nn.Embed(BYTES, self.features, name='bytes')(tokens)
    x = x + positions(jnp.arange(tokens.shape[1]))[None]
    for i in range(self.num_layers):
      x = Layer(self.num_heads, name=f'layer{i + 1}')(x)
    return nn.Dense(BYTES)(nn.LayerNorm(epsilon=1e-5)(x))


def byte_transformer(
  num_layers: int = 2, num_heads: int = 4, features: int = 64
) -> base.Model:
  """As a `Model` of tokens; `init` fixes the length that it reads."""
  module = ByteTransformer(num_layers, num_heads, features)
  return base.from_linen(module, reads='tokens')
