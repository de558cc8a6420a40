"""Sums over all parameters, wherever they are.

On a sharded server a rule sees only a part of the parameters. One that looks at
all of them together, for a norm or a mean, asks for it here. Its function is
then traced several times: once per sum, to get the shard's part of it, and
once with all totals, to get the update. An element-wise rule never asks.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax.kernels import fused
from ga_jax.rules.parts import numbers


class _Shard(NamedTuple):
  """The shard whose rule is being traced."""

  totals: Sequence[jax.Array]  # of the first sums it asks for
  asked: list[jax.Array]  # its own part of each sum so far


_SHARD = contextvars.ContextVar('shard', default=None)  # None: it is whole


def global_sum(local: jax.Array) -> jax.Array:
  """Σ over all shards of a server; what it is given where the server is whole.

  To be asked in the same order at every call of a rule, and not inside
  `jax.jit` or control flow.

  Args:
    local: a float array, the sum over the parameters at hand.

  Returns:
    An array like `local`.
  """
  shard = _SHARD.get()
  if shard is None:
    return local
  number = len(shard.asked)
  shard.asked.append(local)
  return shard.totals[number] if number < len(shard.totals) else local


def global_mean(total: jax.Array, size: int) -> jax.Array:
  """The mean over all parameters, from one `global_sum`; 0 of none.

  Args:
    total: sum over the parameters at hand, a float scalar.
    size: how many they are.

  Returns:
    A scalar like `total`.
  """
  if _SHARD.get() is None:
    return total / float(max(size, 1))
  both = global_sum(jnp.stack([total, numbers.float_scalar(size)]))
  return both[0] / jnp.maximum(both[1], 1.0)


@contextlib.contextmanager
def known(totals: Sequence[jax.Array] | None) -> Iterator[list[jax.Array]]:
  """What is traced within is the rule of one shard of a server.

  Args:
    totals: of the first sums that it asks for; None where it is that of a whole
      server.

  Yields:
    The list that gets the shard's part of every sum.
  """
  shard = None if totals is None else _Shard(totals, [])
  token = _SHARD.set(shard)
  try:
    yield [] if shard is None else shard.asked
  finally:
    _SHARD.reset(token)


def with_totals(fn: Callable) -> Callable:
  """`fn(*args)` as a function `(*args, totals=None)`; see `known`."""

  def told(*args, totals=None):
    with known(totals):
      return fn(*args)

  told.__name__ = fn.__name__
  return told


def part(fn: Callable) -> Callable:
  """`(*args, totals) -> part`: of the sum that `fn` asks for after `totals`."""

  def next_part(*args, totals):
    with fused.formula(), known(totals) as asked:
      fn(*args)
    return asked[len(totals)]

  return next_part


def count_sums(fn: Callable, *args) -> int:
  """How many sums `fn(*args)` asks for; nothing is computed.

  Raises:
    ValueError: it asks inside compiled code or control flow.
  """

  def parts(*args):
    with fused.formula(), known(()) as asked:
      fn(*args)
    return asked

  traced = jax.make_jaxpr(parts)(*args)
  if any(isinstance(value, jax.core.Tracer) for value in traced.consts):
    raise ValueError(
      'this rule asks for a sum over all parameters inside jax.jit, lax.cond '
      'or lax.scan (a wrapper such as multi_steps may do that), which a '
      'sharded server cannot give'
    )
  return len(traced.out_avals)


def check_same(counts: Sequence[int]):
  """Raises a ValueError where shards ask for other numbers of sums."""
  if len(set(counts)) > 1:
    raise ValueError(
      'this rule asks for another number of sums over all parameters on every '
      f'shard: {list(counts)}; it must not depend on the leaves that are there'
    )


def total(parts: Sequence[jax.Array]) -> np.ndarray:
  """Σ of the shards' parts, in their order and in float64, in their dtype."""
  host = [np.asarray(part) for part in parts]
  return sum(host, start=np.float64(0.0)).astype(host[0].dtype)
