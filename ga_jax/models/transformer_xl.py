"""Transformer-XL: attention over the segment and a memory of those before.

Layers are those of section 3 of the paper, normalised after the residual
addition: a query i attends to a key j of the memory or the segment by

.. math:: (q_i + u) \\cdot k_j + (q_i + v) \\cdot W_R R_{i - j}

over the root of the head's width, R sinusoids of the distance, u and v shared
by all layers. The inputs of every layer are remembered; no gradient flows into
the memory. What was never written (at the beginning of a text) is not attended
to, so that the first segment sees itself alone.

The base configuration is that for WikiText-103: 151,107,538 parameters with its
267,735 words.

References:
  Dai, Yang, Yang, Carbonell, Le, Salakhutdinov. Transformer-XL: Attentive
    Language Models Beyond a Fixed-Length Context. ACL 2019.
    https://arxiv.org/abs/1901.02860
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ga_jax.guards import checks
from ga_jax.models import adaptive_softmax, base, language, layers

_normal = nn.initializers.normal(0.02)


class Memory(NamedTuple):
  """Inputs of every layer, of the tokens before."""

  hidden: jax.Array  # [layers, B, M, d]
  length: jax.Array  # how many of them are there, the last ones; int32


def relative_shift(scores: jax.Array) -> jax.Array:
  """Columns by distance become columns by key, without a gather.

  Args:
    scores: [..., L, K], of query i at distance K − 1, ..., 0.

  Returns:
    [..., L, K] of query i and key j, at distance K − L + i − j; of keys that
    come after the query what stands there has no meaning.
  """
  *batch, queries, keys = scores.shape
  padded = jnp.pad(scores, ((0, 0),) * (scores.ndim - 1) + ((1, 0),))
  rows = padded.reshape(*batch, keys + 1, queries)[..., 1:, :]
  return rows.reshape(*batch, queries, keys)


def sinusoids(length: int, features: int) -> jax.Array:
  """R of the distances length − 1, ..., 0: [length, features], float32."""
  distances = jnp.arange(length - 1, -1, -1, dtype=jnp.float32)
  exponents = jnp.arange(0, features, 2, dtype=jnp.float32) / features
  angles = distances[:, None] * (10000.0**-exponents)[None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class RelativeAttention(nn.Module):
  """Attention to the segment and the memory, by content and distance."""

  num_heads: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x, memory, positions, biases, visible):
    # [B, L, d], [B, M, d], [K, d], 2 x [H, D], [L, K] -> [B, L, d]; K = M + L
    features = x.shape[-1]
    heads = self.num_heads, features // self.num_heads

    def project(name, x):
      return nn.DenseGeneral(
        heads, use_bias=False, dtype=self.dtype, kernel_init=_normal, name=name
      )(x)

    context = jnp.concatenate([memory, x], axis=1)
    query = project('query', x)  # [B, L, H, D]
    key, value = project('key', context), project('value', context)
    distance = project('distance', positions)  # [K, H, D]
    u, v = (bias.astype(query.dtype)[None, None] for bias in biases)
    by_content = jnp.einsum('blhd,bkhd->bhlk', query + u, key)
    by_distance = jnp.einsum('blhd,khd->bhlk', query + v, distance)
    scores = by_content + relative_shift(by_distance)
    scores = scores.astype(adaptive_softmax.wide_dtype(scores.dtype))
    scores = scores / jnp.sqrt(jnp.asarray(heads[1], scores.dtype))
    scores = jnp.where(visible[None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    read = jnp.einsum('bhlk,bkhd->blhd', weights, value)
    return nn.DenseGeneral(
      features,
      axis=(-2, -1),
      use_bias=False,
      dtype=self.dtype,
      kernel_init=_normal,
      name='out',
    )(read)


class Layer(nn.Module):
  """Attention, then two dense layers; each normalised after its addition."""

  num_heads: int
  inner: int
  dropout: float
  dtype: Any = None

  @nn.compact
  def __call__(self, x, memory, positions, biases, visible, train: bool):
    def drop(x):
      return nn.Dropout(self.dropout, deterministic=not train)(x)

    def dense(features, x):
      return nn.Dense(features, dtype=self.dtype, kernel_init=_normal)(x)

    def normalise(x):
      wide = x.astype(adaptive_softmax.wide_dtype(x.dtype))
      return nn.LayerNorm(epsilon=1e-5)(wide).astype(x.dtype)

    attend = RelativeAttention(self.num_heads, self.dtype)
    y = attend(x, memory, positions, biases, visible)
    x = normalise(x + drop(y))
    y = drop(nn.relu(dense(self.inner, x)))
    return normalise(x + drop(dense(x.shape[-1], y)))


class TransformerXL(nn.Module):
  """The whole network, see the module's docstring."""

  num_classes: int
  num_layers: int
  features: int
  num_heads: int
  inner: int
  cutoffs: tuple[int, ...]
  dropout: float = 0.1
  dtype: Any = None
  remat: bool = False

  def setup(self):
    self.softmax = adaptive_softmax.AdaptiveSoftmax(
      self.num_classes, self.features, self.cutoffs, dtype=self.dtype
    )
    layer = nn.remat(Layer, static_argnums=(6,)) if self.remat else Layer
    self.layers = [
      layer(self.num_heads, self.inner, self.dropout, self.dtype)
      for _ in range(self.num_layers)
    ]
    heads = self.num_heads, self.features // self.num_heads
    self.biases = (
      self.param('u', _normal, heads),
      self.param('v', _normal, heads),
    )
    self.drop = nn.Dropout(self.dropout)

  def losses(self, tokens, targets, memory: Memory, train: bool):
    """−log p of every target, and what is remembered."""
    hidden, memory = self._hidden(tokens, memory, train)
    flat = hidden.reshape(-1, self.features)
    found = self.softmax.log_likelihood(flat, targets.reshape(-1))
    return -found.reshape(targets.shape), memory

  def log_probs(self, tokens, memory: Memory):
    """log p of what comes after the last token, and what is remembered."""
    hidden, memory = self._hidden(tokens, memory, False)
    return self.softmax.log_probs(hidden[:, -1]), memory

  def _hidden(self, tokens, memory, train):  # [B, L] -> [B, L, d]
    def drop(x):
      return self.drop(x, deterministic=not train)

    length, remembered = tokens.shape[1], memory.hidden.shape[2]
    x = self.softmax.embed(tokens)
    x = drop(x * jnp.sqrt(jnp.asarray(self.features, x.dtype)))
    positions = sinusoids(remembered + length, self.features)
    positions = drop(positions.astype(x.dtype))
    places = jnp.arange(-remembered, length, dtype=jnp.int32)
    queries, keys = places[remembered:, None], places[None]
    visible = (keys <= queries) & (keys >= -memory.length)
    kept = []
    for layer, before in zip(self.layers, memory.hidden, strict=True):
      before = before.astype(x.dtype)
      kept.append(jnp.concatenate([before, x], axis=1)[:, length:])
      x = layer(x, before, positions, self.biases, visible, train)
    hidden = jax.lax.stop_gradient(jnp.stack(kept))
    memory = Memory(
      hidden.astype(memory.hidden.dtype),
      jnp.minimum(memory.length + length, remembered).astype(jnp.int32),
    )
    return drop(x), memory


def language_model(
  module: TransformerXL, segment_length: int, memory_length: int | None = None
) -> language.LanguageModel:
  """The pure functions of a network.

  Args:
    module: the network.
    segment_length: L, tokens per row of a batch, at least 1.
    memory_length: M, tokens that are remembered; by default L, 0 for none.

  Returns:
    A `LanguageModel`.

  Raises:
    ValueError: a length is out of its range.
  """
  if memory_length is None:
    memory_length = segment_length
  segment_length = checks.integer('segment_length', segment_length, 1)
  memory_length = checks.integer('memory_length', memory_length, 0)

  def memory(batch_size):
    shape = module.num_layers, batch_size, memory_length, module.features
    hidden = jnp.zeros(shape, module.dtype or jnp.float32)
    return Memory(hidden, jnp.zeros((), jnp.int32))

  def init(key):
    tokens = jnp.zeros((1, 1), jnp.int32)
    return module.init(
      key, tokens, tokens, memory(1), False, method=module.losses
    )['params']

  def losses(params, memory, tokens, targets, key=None):
    return module.apply(
      {'params': params},
      tokens,
      targets,
      memory,
      key is not None,
      method=module.losses,
      rngs=None if key is None else {'dropout': key},
    )

  def log_probs(params, memory, tokens):
    return module.apply(
      {'params': params}, tokens, memory, method=module.log_probs
    )

  return language.LanguageModel(init, memory, losses, log_probs, segment_length)


def transformer_xl(
  num_classes: int,
  compute_dtype: str = 'float32',
  remat: bool = False,
  segment_length: int = 150,
  memory_length: int | None = None,
) -> language.LanguageModel:
  """The base configuration for WikiText-103; 16 layers, d 410, 10 heads."""
  module = TransformerXL(
    num_classes=base.classes(num_classes),
    num_layers=16,
    features=410,
    num_heads=10,
    inner=2100,
    cutoffs=(20_000, 40_000, 200_000),
    dtype=layers.dtype_of(compute_dtype),
    remat=remat,
  )
  return language_model(module, segment_length, memory_length)


def transformer_xl_small(
  num_classes: int,
  compute_dtype: str = 'float32',
  remat: bool = False,
  segment_length: int = 64,
  memory_length: int | None = None,
) -> language.LanguageModel:
  """4 layers, d 64, 4 heads: 0.2 M parameters and 65 per class."""
  module = TransformerXL(
    num_classes=base.classes(num_classes),
    num_layers=4,
    features=64,
    num_heads=4,
    inner=256,
    cutoffs=(2_000, 10_000),
    dtype=layers.dtype_of(compute_dtype),
    remat=remat,
  )
  return language_model(module, segment_length, memory_length)
