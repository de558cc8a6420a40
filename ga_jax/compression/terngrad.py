"""TernGrad: every component of a gradient is −s, 0 or s.

g → s · sign(g) · b with b ~ Bernoulli(|g| / s) and s = max |g| per leaf, which
is unbiased. Four components share a byte on the wire, and each leaf sends its
s as float32. The paper's gradient clipping is left to the optimiser's chain.

References:
  Wen et al., `TernGrad: Ternary Gradients to Reduce Communication in
  Distributed Deep Learning <https://arxiv.org/abs/1705.07878>`_, NIPS 2017.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ga_jax.compression import base

_PER_BYTE = 4
_SHIFTS = (0, 2, 4, 6)


class Ternary(NamedTuple):
  """One leaf on the wire."""

  scale: jax.Array  # s, shape=(), dtype=float32.
  packed: jax.Array  # components + 1, 2 bits each, [ceil(n / 4)], uint8.


def terngrad() -> base.Compression:
  """Sends two bits per component.

  Returns:
    A `Compression`; gradients must be real (ValueError).
  """

  def encode(grads, key):
    base.check_real(grads)
    leaves, structure = jax.tree.flatten(grads)
    keys = jax.random.split(key, max(len(leaves), 1))
    pairs = zip(leaves, keys, strict=False)
    return jax.tree.unflatten(structure, [_encode(g, k) for g, k in pairs])

  def decode(message, like):
    return jax.tree.map(
      _decode, message, like, is_leaf=lambda node: isinstance(node, Ternary)
    )

  return base.stateless(encode, decode)


def _encode(grad, key) -> Ternary:
  flat = grad.astype(jnp.float32).ravel()
  scale = jnp.max(jnp.abs(flat), initial=0.0)
  chance = jnp.abs(flat) / jnp.where(scale > 0, scale, 1.0)
  drawn = jax.random.uniform(key, flat.shape, chance.dtype) < chance  # b
  ternary = jnp.where(drawn, jnp.sign(flat), 0.0)  # sign(g) · b
  codes = (ternary + 1.0).astype(jnp.uint8)
  codes = jnp.pad(codes, (0, -codes.size % _PER_BYTE)).reshape(-1, _PER_BYTE)
  parts = [codes[:, i] << shift for i, shift in enumerate(_SHIFTS)]
  return Ternary(scale, parts[0] | parts[1] | parts[2] | parts[3])


def _decode(message, like):
  shifts = jnp.array(_SHIFTS, jnp.uint8)[None]
  codes = (message.packed[:, None] >> shifts) & jnp.uint8(3)
  ternary = codes.ravel()[: like.size].astype(jnp.float32) - 1.0
  return (message.scale * ternary).reshape(like.shape).astype(like.dtype)
