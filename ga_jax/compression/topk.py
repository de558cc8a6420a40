"""Top-k with error feedback: only the largest components are sent.

The components that are not sent are kept by the worker and added to its next
gradient, so that over time everything arrives. k is counted over all leaves
together. A submission that the server refuses leaves the residual as it was.

References:
  Aji, Heafield, `Sparse Communication for Distributed Gradient Descent
  <https://arxiv.org/abs/1704.05021>`_, EMNLP 2017;
  Stich, Cordonnier, Jaggi, `Sparsified SGD with Memory
  <https://arxiv.org/abs/1809.07599>`_, NeurIPS 2018.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ga_jax.compression import base
from ga_jax.guards import checks
from ga_jax.rules.parts.numbers import float_dtype, tree_size


class Sparse(NamedTuple):
  """A gradient on the wire."""

  values: jax.Array  # [k], float32 (float64 under x64)
  indices: jax.Array  # [k], int32, into all leaves one after the other


def topk(topk_ratio: float = 0.01) -> base.Compression:
  """Sends the fraction `topk_ratio` of all components.

  Args:
    topk_ratio: k over the number of components, in (0, 1]; at least one
      component is sent.

  Returns:
    A `Compression` whose state is the residual; gradients must be real
    (ValueError).
  """
  topk_ratio = checks.number('topk_ratio', topk_ratio, above=0.0, high=1.0)

  def init(params):
    dtypes = [float_dtype(leaf) for leaf in jax.tree.leaves(params)]
    return jnp.zeros(tree_size(params), jnp.result_type(*dtypes))

  def encode(grads, residual, key):
    del key
    base.check_real(grads)
    leaves = jax.tree.leaves(grads)
    flat = jnp.concatenate([g.astype(residual.dtype).ravel() for g in leaves])
    flat = flat + residual
    k = max(1, math.ceil(topk_ratio * flat.size))
    _, indices = jax.lax.top_k(jnp.abs(flat), k)
    message = Sparse(flat[indices], indices)
    return message, flat.at[indices].set(0.0)

  def decode(message, like):
    leaves, structure = jax.tree.flatten(like)
    flat = jnp.zeros(tree_size(like), message.values.dtype)
    flat = flat.at[message.indices].set(message.values)
    parts, start = [], 0
    for leaf in leaves:
      part = flat[start : start + leaf.size]
      parts.append(part.reshape(leaf.shape).astype(leaf.dtype))
      start += leaf.size
    return jax.tree.unflatten(structure, parts)

  return base.Compression(init, encode, decode)
