"""Plain values with arrays among them, as JSON and arrays side by side.

What JSON knows is None, booleans, integers of 64 bits, floats (NaN and
infinities too, as Python writes them), strings, lists, and dicts with strings
as keys.
"""

from typing import Any

import numpy as np

from ga_jax.guards import forms

_PLAIN = (type(None), bool, int, float, str)
_KINDS = 'biufcU'  # of arrays, see `numpy.dtype.kind`
FORM = forms.fields(
  {
    'value': forms.anything,
    'arrays': forms.listed(forms.listed(forms.anything)),
  }
)


def split(value: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """A value as JSON, and the arrays in it.

  Args:
    value: plain, see above; arrays and scalars of NumPy among it.
    name: what it is, for a message.

  Returns:
    (what JSON keeps, arrays by number); `joined` puts them together again.

  Raises:
    TypeError: something in it is neither; with the way to it.
  """
  places, arrays = [], {}

  def walk(value, steps):
    if type(value) is dict:
      for key in value:
        if type(key) is not str:
          raise _error(name, steps, f'has the key {key!r}: no string')
      return {key: walk(one, [*steps, key]) for key, one in value.items()}
    if type(value) is list:
      return [walk(one, [*steps, i]) for i, one in enumerate(value)]
    if isinstance(value, np.ndarray | np.generic) and (
      value.dtype.kind in _KINDS
    ):
      arrays[str(len(places))] = np.asarray(value)
      places.append(steps)
      return None
    if type(value) not in _PLAIN:
      raise _error(name, steps, f'is of {_type(value)}')
    if type(value) is int and not -(2**63) <= value < 2**63:
      raise _error(name, steps, 'is an integer of more than 64 bits')
    return value

  return {'value': walk(value, []), 'arrays': places}, arrays


def joined(found: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
  """What `split` was given; scalars of NumPy are arrays of no dimension.

  Args:
    found: of the form `FORM`.
    arrays: by number.

  Raises:
    ValueError: they are not of one value.
  """
  value, places = [found['value']], found['arrays']
  if set(arrays) != {str(i) for i in range(len(places))}:
    raise ValueError('its arrays are not those of its value')
  for i, steps in enumerate(places):
    *way, last = (0, *steps)
    try:
      where = value
      for step in way:
        where = where[step]
      where[last] = arrays[str(i)]
    except (LookupError, TypeError) as error:
      raise ValueError(f'it has no place {steps}') from error
  return value[0]


def _type(value) -> str:
  kind = type(value)
  if isinstance(value, np.ndarray | np.generic):
    return f'dtype {value.dtype}'
  return f'the type {kind.__module__}.{kind.__qualname__}'


def _error(name, steps, what) -> TypeError:
  way = ''.join(f'[{step!r}]' for step in steps)
  return TypeError(
    f'{name}{way} {what}; it must be of None, booleans, numbers, strings, '
    'lists, dicts with strings as keys, and NumPy arrays of numbers'
  )
