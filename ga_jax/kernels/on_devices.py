"""What is lowered in one way for a single device, in another for several."""

from collections.abc import Callable

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import mlir


def alone_or_not(*operands, alone: Callable, several: Callable):
  """`alone(*operands)` in a program of one device, else `several(*operands)`.

  Which it is, is known when the program is lowered, as with
  `jax.lax.platform_dependent`: how arrays are laid out nobody knows before,
  unless the axes of their mesh are explicit. Within `jax.shard_map` what is at
  hand is on one device.

  Args:
    *operands: pytrees of arrays.
    alone: may join leaves and give them other shapes.
    several: returns the like; does neither, so that no leaf has to move.
  """
  leaves = jax.tree.leaves(operands)
  if any(axis for x in leaves for axis in jax.typeof(x).sharding.spec):
    return several(*operands)
  unknown = _alone_p.bind()
  if isinstance(unknown, jax.core.Tracer):
    return jax.lax.cond(unknown, alone, several, *operands)
  # Nothing is compiled: the arrays are here.
  here = [x for x in leaves if not isinstance(x, jax.core.Tracer)]
  apart = any(len(x.sharding.device_set) > 1 for x in here)
  return (several if apart else alone)(*operands)


_alone_p = core.Primitive('alone')  # () -> bool, a constant when it is lowered
_alone_p.def_impl(lambda: np.bool_(True))
_alone_p.def_abstract_eval(lambda: jax.core.ShapedArray((), np.bool_))


def is_alone(ctx: mlir.LoweringRuleContext) -> bool:
  """Whether a program that is being lowered has all of its arrays at hand."""
  context = ctx.module_context.axis_context
  if isinstance(context, mlir.SPMDAxisContext):  # within `jax.shard_map`
    axes = context.mesh.shape.items()
    return all(n == 1 or axis in context.manual_axes for axis, n in axes)
  return getattr(context, 'num_devices', 1) == 1


def _lowered(ctx):
  return [mlir.ir_constant(np.bool_(is_alone(ctx)))]


mlir.register_lowering(_alone_p, _lowered, cacheable=False)
