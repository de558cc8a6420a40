"""Numbers that are given as arguments: what is accepted, said once.

A number may come from Python, NumPy or JAX (one number, no array of several);
what it is worth is looked at, not only what type it has. This knows no JAX:
where a number may be traced, or a schedule, see `rules.base.check_number`.
"""

import contextlib
import math
import operator
from typing import Any

import numpy as np


def number(
  name: str,
  value: Any,
  *,
  low: float | None = None,
  above: float | None = None,
  below: float | None = None,
  high: float | None = None,
  finite: bool = True,
) -> float:
  """A real number in its range.

  Args:
    name: of the argument.
    value: what it was set to.
    low: the least that is allowed.
    above: what it must be more than.
    below: what it must be less than.
    high: the most that is allowed.
    finite: whether infinity is refused.

  Returns:
    It as a Python float.

  Raises:
    ValueError: it is no number, NaN, or out of its range; in one line, with the
      name.
  """
  found = _float(value)
  fine = (
    found is not None
    and not math.isnan(found)
    and (not finite or math.isfinite(found))
    and (low is None or found >= low)
    and (above is None or found > above)
    and (below is None or found < below)
    and (high is None or found <= high)
  )
  if fine:
    return found
  wanted = ['finite'] if finite else []
  wanted += [
    f'{sign} {limit}'
    for sign, limit in (('>=', low), ('>', above), ('<', below), ('<=', high))
    if limit is not None
  ]
  allowed = ' and '.join(wanted)
  if found is None:
    allowed = f'a number, {allowed}' if allowed else 'a number'
  raise ValueError(f'{name} must be {allowed or "no NaN"}, got {_shown(value)}')


def integer(
  name: str,
  value: Any,
  least: int,
  most: int | None = None,
  most_name: str = '',
) -> int:
  """An integer in its range; a float is none, also where it is whole.

  Args:
    name: of the argument.
    value: what it was set to.
    least: the least that is allowed.
    most: the most that is allowed; None without a limit.
    most_name: the argument which that limit is.

  Returns:
    It as a Python int.

  Raises:
    ValueError: it is no integer or out of its range; in one line, with the
      name.
  """
  found = None
  if np.ndim(value) == 0 and not isinstance(value, bool | np.bool_):
    with contextlib.suppress(TypeError):  # traced, too
      found = operator.index(value)
  if found is not None and found >= least and (most is None or found <= most):
    return found
  if most is None:
    allowed = f'of at least {least}'
  else:
    allowed = f'from {least} to {most_name}{"=" if most_name else ""}{most}'
  raise ValueError(f'{name} must be an integer {allowed}, got {_shown(value)}')


def real_scalar(value: Any) -> bool:
  """Whether it is one real number by shape and dtype; it may be traced."""
  if isinstance(value, bool):
    return False
  if isinstance(value, int | float):
    return True
  dtype = getattr(value, 'dtype', None)
  if getattr(value, 'shape', None) != () or not isinstance(dtype, np.dtype):
    return False
  # bfloat16 and its like are of a kind of their own, and fit into a float32.
  small = dtype.kind == 'V' and not dtype.names
  return dtype.kind in 'iuf' or (small and np.can_cast(dtype, np.float32))


def _float(value) -> float | None:
  """A real number as a float; None where it is something else."""
  if not real_scalar(value):
    return None
  try:
    return float(value)
  except OverflowError:  # a large int
    return math.inf if value > 0 else -math.inf


def _shown(value) -> str:
  """A value for a message of one line."""
  shape = getattr(value, 'shape', ())
  if shape != ():
    return f'an array of shape {shape}'
  first, *rest = repr(value).splitlines() or ['']
  return f'{first} ...' if rest else first
