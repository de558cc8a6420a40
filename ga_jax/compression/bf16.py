"""bfloat16 on the wire: half the bytes of float32, rounded to nearest even.

Where encoding and decoding are compiled together, XLA may drop a conversion to
bfloat16 and back (`xla_allow_excess_precision`; it does on GPUs). It keeps a
`reduce_precision`, so what is decoded was rounded in every executor.
"""

import jax
import jax.numpy as jnp

from ga_jax.compression import base


def bf16() -> base.Compression:
  """Sends every leaf as bfloat16.

  Returns:
    A `Compression`; gradients must be real (ValueError).
  """

  def encode(grads, key):
    del key
    base.check_real(grads)
    return jax.tree.map(_rounded, grads)

  def decode(message, like):
    return jax.tree.map(lambda m, g: m.astype(g.dtype), message, like)

  return base.stateless(encode, decode)


def _rounded(grad):
  kind = jnp.finfo(jnp.bfloat16)
  grad = jax.lax.reduce_precision(grad, kind.nexp, kind.nmant)
  return grad.astype(jnp.bfloat16)
