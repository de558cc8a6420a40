"""What the arguments of rules must be."""

from typing import Any

import jax

from ga_jax.guards import checks


def check_number(
  name: str,
  value: Any,
  *,
  low: float | None = None,
  above: float | None = None,
  below: float | None = None,
  schedule: bool = False,
):
  """Raises a ValueError where an argument is no number in its range.

  What is traced is one real number, of which no more can be known.

  Args:
    name: of the argument.
    value: a number of Python, NumPy or JAX.
    low: see `checks.number`.
    above: see `checks.number`.
    below: see `checks.number`.
    schedule: whether it may be a function of a count, too.
  """
  if schedule and callable(value):
    return
  if isinstance(value, jax.core.Tracer) and checks.real_scalar(value):
    return
  checks.number(name, value, low=low, above=above, below=below)


# What `staleness` is, for the message where it is missing.
STALENESS = 'the server updates since the parameters were read'


def require(name: str, argument: str, value, meaning: str):
  """Raises a TypeError where an extra argument was not passed.

  Args:
    name: the link that needs it.
    argument: the argument's name.
    value: what was passed.
    meaning: what is to be passed.
  """
  if value is None:
    raise TypeError(
      f'{name} needs {argument}: call update(grads, state, params, '
      f'{argument}=...) with {meaning}. Under a policy that averages rounds '
      'build the chain with ga_jax.chain.'
    )
