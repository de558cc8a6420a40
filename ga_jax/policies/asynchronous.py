"""Asynchronous: every arrival is applied at once, nobody waits.

References:
  Dean et al., Large Scale Distributed Deep Networks, NIPS 2012.
"""

from ga_jax.policies.parts import base, buffer


def asynchronous() -> base.Policy:
  """Applies each gradient as it arrives and sends its worker on.

  Returns:
    A `Policy` whose rounds hold one gradient.
  """
  return buffer.buffer(1)
