"""What a compression is: how a submission looks on the wire.

A stage between any worker program and the server: gradients are encoded into a
message and decoded again. The message is a pytree of arrays exactly as it would
be sent, so that its bytes can be counted. What a stage keeps (an error
feedback) is part of its worker's state, and is committed with it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ga_jax.programs import base as programs

_STREAM = 0x636F6D70  # keeps a stage's draws apart from the batch's


class Compression(NamedTuple):
  """A stage.

  Attributes:
    init: `init(params) -> state`; only shapes and dtypes may be read.
    encode: `encode(grads, state, key) -> (message, state)`.
    decode: `decode(message, like) -> grads`, shapes and dtypes those of `like`.
  """

  init: Callable[[Any], Any]
  encode: Callable[..., tuple[Any, Any]]
  decode: Callable[[Any, Any], Any]

  def message_bytes(self, params) -> int:
    """Bytes of one message."""

    def encode(params):
      message, _ = self.encode(params, self.init(params), jax.random.key(0))
      return message

    return programs.nbytes(jax.eval_shape(encode, params))


def stateless(encode, decode) -> Compression:
  """A stage that keeps nothing.

  Args:
    encode: `encode(grads, key) -> message`.
    decode: see `Compression`.

  Returns:
    A `Compression`.
  """

  def encode_and_keep(grads, state, key):
    return encode(grads, key), state

  return Compression(lambda params: (), encode_and_keep, decode)


def compressed(
  program: programs.Program, stage: Compression
) -> programs.Program:
  """The same program, its submissions sent through a stage.

  Args:
    program: whose submissions are gradients.
    stage: the compression.

  Returns:
    A `Program` whose worker state is (the program's, the stage's).

  Raises:
    ValueError: the program exchanges parameters with the server instead.
  """
  if program.exchange is not None:
    raise ValueError(
      'compression is for gradients, but this program exchanges parameters '
      'with the server (EASGD): choose compression none, or another program'
    )

  def init(params):
    return program.init(params), stage.init(params)

  def run(worker_state, sent, work):
    own, kept = worker_state
    submission, own = program.run(own, sent, work)
    key = jax.random.fold_in(work.keys[0], _STREAM)
    message, kept = stage.encode(submission.grads, kept, key)
    return submission._replace(grads=message), (own, kept)

  return program._replace(
    init=init,
    run=run,
    message_bytes=stage.message_bytes,
    decode=stage.decode,
  )


def check_real(grads):
  """Raises a ValueError where a leaf is complex."""
  for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
    if jnp.iscomplexobj(leaf):
      raise ValueError(
        f'this compression takes real gradients, leaf '
        f'{jax.tree_util.keystr(path) or "(root)"} is {leaf.dtype}'
      )
