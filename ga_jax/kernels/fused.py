"""An update in one pass over its arrays, by a kernel of its own.

The function that is given here is the formula, and stays it: differentiated,
mapped, on a CPU and on what is not known it is computed as it is. Where it is
compiled for an NVIDIA GPU or a TPU, what of it is element-wise, with the sums
over it and the rows that it replaces, becomes a kernel per leaf: XLA would read
the parameters once more for the sums.

What is exported for another machine (`jax.export`) should be the formula, with
GA_JAX_KERNELS=reference: kernels make no promise to later versions of JAX.
"""

import contextlib
import contextvars
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax.interpreters import batching, mlir

from ga_jax.kernels import mosaic, on_devices, passes, triton

VARIABLE = 'GA_JAX_KERNELS'
_COMPILERS = {'cuda': triton, 'tpu': mosaic}
_INTERPRETED = {'interpret-triton': 'cuda', 'interpret-mosaic': 'tpu'}
CHOICES = ('auto', 'reference', *_INTERPRETED)


def choice() -> str:
  """What GA_JAX_KERNELS says.

  Returns:
    'auto' for kernels where they are compiled for, 'reference' for the formula
    everywhere, 'interpret-triton' or 'interpret-mosaic' for the kernels of GPU
    or TPU computed step by step on any device, which is slow.

  Raises:
    ValueError: it says something else.
  """
  said = os.environ.get(VARIABLE, 'auto')
  if said not in CHOICES:
    raise ValueError(
      f'{VARIABLE} must be one of {", ".join(CHOICES)}, got {said!r}'
    )
  return said


def fused(fn: Callable[..., Any], *args, overwrites: int = 1) -> Any:
  """`fn(*args)`, with kernels where they are compiled for.

  Args:
    fn: a pure function from pytrees of arrays to a tuple of such.
    *args: what it is called with.
    overwrites: of how many arguments, the first ones, a leaf may be written
      over by the same leaf of the same result.

  Returns:
    What `fn` returns.

  Raises:
    TypeError: that is no tuple.
  """
  said = choice()
  leaves, structure = jax.tree.flatten(args)
  if (
    said == 'reference'
    or _FORMULA.get()
    or not any(isinstance(x, jax.core.Tracer) for x in leaves)
    or any(map(_is_divided, leaves))
  ):
    return fn(*args)
  is_array = [isinstance(x, (jax.Array, np.ndarray)) for x in leaves]
  arrays = list(itertools.compress(leaves, is_array))

  def of_arrays(*arrays):
    told = iter(arrays)
    both = zip(leaves, is_array, strict=True)
    return fn(*structure.unflatten(next(told) if a else x for x, a in both))

  with formula():  # it may call what is fused itself
    closed, made = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
  if not isinstance(made, tuple):
    raise TypeError(f'fn must return a tuple, got {type(made).__name__}')
  if closed.effects:
    return fn(*args)
  position = itertools.accumulate(is_array, initial=len(closed.consts))
  position = structure.unflatten(list(position)[:-1])[:overwrites]
  alike = jax.tree.structure(position) == jax.tree.structure(made[:overwrites])
  old = jax.tree.leaves(position) if alike else []
  params = {
    'jaxpr': closed.jaxpr,
    'consts': len(closed.consts),
    'pairs': tuple((i, o) for o, i in enumerate(old) if is_array[o]),
    'interpreted': _INTERPRETED.get(said),
  }
  out = _call(params)(*closed.consts, *arrays)
  return jax.tree.unflatten(jax.tree.structure(made), out)


def _is_divided(x) -> bool:
  """Whether its type says that devices have parts of it, or may have."""
  kind = jax.typeof(x) if isinstance(x, jax.core.Tracer) else None
  axes = getattr(kind, 'manual_axis_type', None)  # within `jax.shard_map`
  varying = getattr(axes, 'varying', getattr(kind, 'vma', ()))
  mesh = getattr(getattr(kind, 'sharding', None), 'mesh', None)
  explicit = jax.sharding.AxisType.Explicit in getattr(mesh, 'axis_types', ())
  return bool(varying) or explicit


@contextlib.contextmanager
def formula() -> Iterator[None]:
  """What is traced within is not fused."""
  token = _FORMULA.set(True)
  try:
    yield
  finally:
    _FORMULA.reset(token)


def _formula(*args, jaxpr, consts, **params):
  del params
  closed = jex.ClosedJaxpr(jaxpr, args[:consts])
  return jex.jaxpr_as_fun(closed)(*args[consts:])


def program(platform, *, jaxpr, pairs, **params) -> passes.Program:
  """What is computed on a platform, 'cuda' or 'tpu', and by which kernels.

  The other arguments are the parameters of an equation of `fused` in a jaxpr.
  """
  del params
  compiler = _COMPILERS[platform]
  return passes.program(
    jaxpr,
    platform,
    pairs,
    fits=compiler.fits,
    small=compiler.SMALL,
    most=compiler.TOGETHER,
  )


def _kernels(platform, *args, interpret=False, **params):
  run = functools.partial(_COMPILERS[platform].run, interpret=interpret)
  return passes.run(program(platform, **params), args, run)


_FORMULA = contextvars.ContextVar('formula', default=False)

_fused = jex.Primitive('fused')
_fused.multiple_results = True
_fused.def_impl(_formula)


@_fused.def_abstract_eval
def _(*avals, jaxpr, **params):
  del avals, params
  return [var.aval for var in jaxpr.outvars]


def _call(params):
  """What is compiled with kernels, and differentiated as the formula."""
  of_formula = functools.partial(_formula, **params)

  @jax.custom_jvp
  def call(*args):
    return _fused.bind(*args, **params)

  @call.defjvp
  def _(primals, tangents):
    return jax.jvp(of_formula, primals, tangents)

  return call


def _batched(args, dims, **params):
  of_one = functools.partial(_formula, **params)
  out = jax.vmap(of_one, in_axes=dims)(*args)
  return out, [0] * len(out)


batching.primitive_batchers[_fused] = _batched


def _lowered_for(platform=None):
  """How it is lowered for a platform, by default for those without kernels."""
  lower_formula = mlir.lower_fun(_formula, multiple_results=True)

  def lower(ctx, *args, interpreted, **params):
    # A kernel is given whole arrays: divided ones it would gather.
    kind = interpreted or platform
    if kind is None or not on_devices.is_alone(ctx):
      return lower_formula(ctx, *args, **params)
    kernels = functools.partial(_kernels, kind, interpret=bool(interpreted))
    return mlir.lower_fun(kernels, multiple_results=True)(ctx, *args, **params)

  return lower


mlir.register_lowering(_fused, _lowered_for())
for _platform in _COMPILERS:
  mlir.register_lowering(_fused, _lowered_for(_platform), platform=_platform)
