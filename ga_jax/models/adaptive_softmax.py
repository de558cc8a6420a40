"""Adaptive input and softmax for large vocabularies, with tied weights.

Classes are ordered by frequency and cut into a head and tails. The head's
softmax is over its own classes and one entry per tail; a tail's classes share
the probability of its entry:

.. math:: p(w) = p_{head}(c) \\; p_c(w) \\text{ for } w \\text{ in tail } c

Most targets are in the head, so that most of the arithmetic of a full softmax
is never done. The same tables embed the inputs. Tail i may have vectors that
are `div_val`^i times shorter, with a projection to the model's width.

References:
  Grave, Joulin, Cissé, Grangier, Jégou. Efficient softmax approximation for
    GPUs. 2017. https://arxiv.org/abs/1609.04309
  Baevski, Auli. Adaptive Input Representations for Neural Language Modeling.
    2019. https://arxiv.org/abs/1809.10853
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PIECE = 128  # targets whose probabilities in a tail are computed at once

normal = nn.initializers.normal


class AdaptiveSoftmax(nn.Module):
  """Embeds classes and gives their probabilities.

  Attributes:
    num_classes: V; class 0 is the most frequent one.
    features: d, width of the model.
    cutoffs: where each tail begins, increasing; those from V on are left out.
    div_val: by how much the vectors of a tail are shorter than the last one's.
    dtype: what is computed in; None for that of the parameters. Probabilities
      are at least float32.
  """

  num_classes: int
  features: int
  cutoffs: tuple[int, ...] = ()
  div_val: int = 1
  dtype: Any = None

  def setup(self):
    cutoffs = tuple(c for c in self.cutoffs if c < self.num_classes)
    self.starts = (0, *cutoffs)
    self.sizes = tuple(
      end - start
      for start, end in zip(
        self.starts, (*cutoffs, self.num_classes), strict=True
      )
    )
    widths = [self.features // self.div_val**i for i in range(len(self.sizes))]
    self.tables = [
      self.param(f'table_{i}', normal(0.02), (size, width))
      for i, (size, width) in enumerate(zip(self.sizes, widths, strict=True))
    ]
    self.biases = [
      self.param(f'bias_{i}', nn.initializers.zeros_init(), (size,))
      for i, size in enumerate(self.sizes)
    ]
    self.projections = [
      None
      if width == self.features
      else self.param(f'projection_{i}', normal(0.01), (width, self.features))
      for i, width in enumerate(widths)
    ]
    if cutoffs:
      shape = len(cutoffs), self.features
      self.tail_table = self.param('tail_table', normal(0.02), shape)
      self.tail_bias = self.param(
        'tail_bias', nn.initializers.zeros_init(), shape[:1]
      )

  def embed(self, classes) -> jax.Array:  # [...] -> [..., d]
    """The vectors of classes."""
    total = 0.0
    for i, (start, size) in enumerate(
      zip(self.starts, self.sizes, strict=True)
    ):
      own = classes - start
      inside = (own >= 0) & (own < size)
      vectors = self._cast(self.tables[i][jnp.clip(own, 0, size - 1)])
      if self.projections[i] is not None:
        vectors = vectors @ self._cast(self.projections[i])
      total += jnp.where(inside[..., None], vectors, jnp.zeros_like(vectors))
    return total

  def log_likelihood(self, hidden, targets) -> jax.Array:
    """log p of one class per row.

    Args:
      hidden: [n, d].
      targets: [n], classes.

    Returns:
      [n].
    """
    tails = jnp.zeros_like(targets)  # 0 for the head
    for start in self.starts[1:]:
      tails += (targets >= start).astype(targets.dtype)
    entries = jnp.where(tails == 0, targets, self.sizes[0] - 1 + tails)
    result = _pick(jax.nn.log_softmax(self._head(hidden)), entries)
    for i in range(1, len(self.sizes)):
      result += self._in_tail(i, hidden, targets, tails == i)
    return result

  def log_probs(self, hidden) -> jax.Array:  # [n, d] -> [n, V]
    """log p of every class."""
    head = jax.nn.log_softmax(self._head(hidden))
    parts = [head[:, : self.sizes[0]]]
    for i in range(1, len(self.sizes)):
      entry = head[:, self.sizes[0] - 1 + i, None]
      own = self._logits(hidden, *self._tail(i))
      parts.append(entry + jax.nn.log_softmax(own))
    return jnp.concatenate(parts, axis=-1)

  def _head(self, hidden):  # [n, d] -> [n, classes of the head + tails]
    table, bias = self._tail(0)
    if len(self.sizes) > 1:
      table = jnp.concatenate([table, self.tail_table])
      bias = jnp.concatenate([bias, self.tail_bias])
    return self._logits(hidden, table, bias)

  def _tail(self, i):
    """Vectors [size, d] and biases [size] of a tail; of the head for 0."""
    table = self.tables[i]
    if self.projections[i] is not None:
      table = table @ self.projections[i]
    return table, self.biases[i]

  def _logits(self, hidden, table, bias):  # at least float32
    wide = wide_dtype(hidden.dtype)
    product = jnp.matmul(
      hidden, self._cast(table).T, preferred_element_type=wide
    )
    return product + bias.astype(wide)[None]

  def _in_tail(self, i, hidden, targets, inside):
    """log p of targets within a tail, 0 for those that are not `inside`.

    Those inside come first, piece by piece: a piece without any is skipped.
    """
    n = len(targets)
    table, bias = self._tail(i)
    order = jnp.argsort(jnp.logical_not(inside), stable=True)
    own = jnp.clip(targets - self.starts[i], 0, self.sizes[i] - 1)
    padding = -n % PIECE
    pieces = [
      jnp.pad(x[order], ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(
        -1, PIECE, *x.shape[1:]
      )
      for x in (hidden, own, inside)
    ]

    def compute(hidden, own, inside):
      picked = _pick(jax.nn.log_softmax(self._logits(hidden, table, bias)), own)
      return jnp.where(inside, picked, jnp.zeros_like(picked))

    def one(carry, piece):
      nothing = jnp.zeros(PIECE, wide_dtype(hidden.dtype))
      skip = lambda *piece: nothing  # noqa: E731
      return carry, jax.lax.cond(piece[2].any(), compute, skip, *piece)

    # Logits are computed again for the gradient instead of kept.
    _, found = jax.lax.scan(
      jax.checkpoint(one, prevent_cse=False), None, tuple(pieces)
    )
    found = found.reshape(-1)[:n]
    return jnp.zeros_like(found).at[order].set(found)

  def _cast(self, x):
    return x if self.dtype is None else x.astype(self.dtype)


def wide_dtype(dtype):
  """What probabilities are computed in: at least float32."""
  return np.promote_types(dtype, np.float32)


def _pick(rows, columns):  # [n, k], [n] -> [n]
  return jnp.take_along_axis(rows, columns[:, None], axis=1)[:, 0]
