"""What a value that was read must look like: plain values, checked by form.

A file may hold anything. A form is a function `form(value, at)` that raises a
`FormError` where a value is something else; `at` is the way to it, for the
message. What passes can be used without a second look.
"""

import math
from collections.abc import Callable
from typing import Any

Form = Callable[[Any, str], None]

_SHOWN = 40  # characters of a value in a message


class FormError(ValueError):
  """A value that is not what it must be; the message says where it stands."""


def integer(low: int = -(2**63), high: int = 2**63 - 1) -> Form:
  """A whole number from `low` to `high`."""
  wanted = f'an integer from {low} to {high}'
  return _that(wanted, lambda v: type(v) is int and low <= v <= high)


def number(
  low: float = -math.inf, high: float = math.inf, *, finite: bool = True
) -> Form:
  """A number from `low` to `high`; where not `finite`, NaN or infinity too."""

  def holds(value):
    if type(value) is float and not math.isfinite(value):
      return not finite
    return type(value) in (int, float) and low <= value <= high

  wanted = f'a {"finite " * finite}number'
  if (low, high) != (-math.inf, math.inf):
    wanted += f' from {low:g} to {high:g}'
  return _that(wanted, holds)


def one_of(*values: Any) -> Form:
  """One of some values."""
  wanted = f'one of {", ".join(map(repr, values))}'
  kinds = {type(value) for value in values}
  return _that(wanted, lambda v: type(v) in kinds and v in values)


def optional(form: Form) -> Form:
  """None, or what another form says."""
  return lambda value, at: None if value is None else form(value, at)


def listed(form: Form, most: int | None = None) -> Form:
  """A list of values of one form; `most` of them, where that is given."""

  def check(value, at):
    _list(value, at)
    if most is not None and len(value) > most:
      raise FormError(f'{at} has {len(value)} values, not at most {most}')
    for i, one in enumerate(value):
      form(one, f'{at}[{i}]')

  return check


def row(*forms: Form) -> Form:
  """A list of as many values as there are forms."""

  def check(value, at):
    _list(value, at)
    if len(value) != len(forms):
      raise FormError(f'{at} has {len(value)} values, not {len(forms)}')
    for i, (form, one) in enumerate(zip(forms, value, strict=True)):
      form(one, f'{at}[{i}]')

  return check


def mapped(form: Form) -> Form:
  """A dict of strings to values of one form."""
  return fields({}, others=form)


def fields(
  known: dict[str, Form],
  *,
  needed: tuple[str, ...] | None = None,
  others: Form | None = None,
) -> Form:
  """A dict with known keys.

  Args:
    known: forms by key.
    needed: the keys that must be there; by default all that are known.
    others: of the values of other keys; None where there may be none.
  """
  needed = tuple(known) if needed is None else needed

  def check(value, at):
    if type(value) is not dict:
      raise _error(at, 'an object of JSON (a dict)', value)
    for name in needed:
      if name not in value:
        raise FormError(f'{_inside(at, name)} is missing')
    for name, one in value.items():
      if type(name) is not str:
        raise FormError(f'{at} has the key {_shown(name)}, which is no string')
      form = known.get(name, others)
      if form is None:
        raise FormError(f'{_inside(at, name)} is nothing that is known here')
      form(one, _inside(at, name))

  return check


def any_of(*options: Form) -> Form:
  """What one of several forms says."""

  def check(value, at):
    errors = []
    for form in options:
      try:
        return form(value, at)
      except FormError as error:
        errors.append(error)
    raise errors[-1]

  return check


def anything(value: Any, at: str):
  """Whatever it is."""
  del value, at


def _that(wanted: str, holds: Callable[[Any], bool]) -> Form:
  def check(value, at):
    if not holds(value):
      raise _error(at, wanted, value)

  return check


text = _that('a string', lambda v: type(v) is str)
flag = _that('true or false', lambda v: type(v) is bool)
_list = _that('a list', lambda v: type(v) is list)


def _inside(at: str, name: str) -> str:
  return f'{at}.{name}' if at else f'{name}'


def _error(at: str, wanted: str, value: Any) -> FormError:
  where = f'{at} ' if at else ''
  return FormError(f'{where}must be {wanted}, got {_shown(value)}')


def _shown(value: Any) -> str:
  found = repr(value)
  return found if len(found) <= _SHOWN else f'{found[: _SHOWN - 4]} ...'
