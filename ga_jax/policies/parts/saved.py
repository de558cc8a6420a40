"""The state of a policy as JSON knows it, and back.

A state is made of None, numbers, strings, tuples, named tuples, lists, frozen
sets and dicts. Named tuples are told by where they stand: where a state has
one, `Policy.init()` has the same.
"""

from typing import Any

from ga_jax.guards import forms

_PLAIN = (type(None), bool, int, float, str)
_ITEMS = forms.listed(forms.anything)


def to_saved(state: Any, like: Any) -> Any:
  """A state as JSON knows it.

  Args:
    state: of a policy.
    like: `init()` of the same policy.

  Returns:
    Plain values; tuples, lists, sets and dicts as {their kind: their items}.

  Raises:
    TypeError: something in it cannot be saved.
  """
  kind = type(state)
  if kind in _PLAIN:
    return state
  if isinstance(state, tuple) and (kind is tuple or kind is type(like)):
    inner = like if _as_long(like, state) else [None] * len(state)
    return {'tuple': list(map(to_saved, state, inner))}
  if kind is dict:
    return {
      'dict': [
        [to_saved(key, None), to_saved(one, None)] for key, one in state.items()
      ]
    }
  if kind in (list, frozenset):
    name = 'list' if kind is list else 'set'
    return {name: [to_saved(one, None) for one in state]}
  raise TypeError(
    f'a policy whose state holds a {kind.__qualname__} cannot be saved: it '
    'must be of numbers, strings, tuples, lists, frozen sets and dicts, and of '
    'named tuples where init() has them too'
  )


def from_saved(saved: Any, like: Any) -> Any:
  """What `to_saved` was given.

  Args:
    saved: what it returned, from a file that may hold anything.
    like: `init()` of the same policy.

  Raises:
    FormError: it is the state of another policy.
  """
  if type(saved) in _PLAIN and not hasattr(like, '_fields'):
    return saved
  kinds = dict.fromkeys(('tuple', 'list', 'set', 'dict'), _ITEMS)
  forms.fields(kinds, needed=())(saved, 'policy_state')
  if len(saved) != 1:
    raise forms.FormError(f'policy_state has {list(saved)} in one place')
  ((name, items),) = saved.items()
  if name == 'tuple':
    return _tuple(items, like)
  try:
    if name == 'dict':
      return {_bare(key): _bare(one) for key, one in items}
    return (list if name == 'list' else frozenset)(map(_bare, items))
  except (TypeError, ValueError) as error:  # a list in a set, or no pairs
    raise forms.FormError(f'policy_state: {error}') from error


def _bare(saved):
  return from_saved(saved, None)


def _tuple(items, like):
  """A tuple, or a named one of the type that `like` is of."""
  named = hasattr(like, '_fields')
  if named and len(items) != len(like):
    raise forms.FormError(
      f'policy_state: {len(items)} values are no {type(like).__name__}'
    )
  inner = like if named or _as_long(like, items) else [None] * len(items)
  values = [from_saved(*pair) for pair in zip(items, inner, strict=True)]
  return type(like)(*values) if named else tuple(values)


def _as_long(like, items) -> bool:
  return isinstance(like, tuple) and len(like) == len(items)
