"""Model statistics: how what a worker returns is folded into the server's.

Several workers start from the same statistics and each adds its own batches to
them, so what a worker returns is neither to replace what is there now nor to be
averaged with it. What is right depends on what a number is: a moving average,
a counter, or something of the user's own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax.guards import checks
from ga_jax.server import alike

# (returned, now, sent, num_batches) -> model_state
FoldFn = Callable[[Any, Any, Any, Any], Any]


class Averages(NamedTuple):
  """Folds moving averages (BatchNorm's) and counters.

  Attributes:
    momentum: m of the moving averages, ra ← m ra + (1 − m) x.
  """

  momentum: float

  def __call__(self, returned, now, sent, num_batches):
    """What the server has after an arrival.

    ra ← returned + m^b (ra_now − ra_sent) for a ticket of b batches: what the
    worker added to what it was sent is added to what is there now. One worker
    is exactly the model's own average; the plain difference would diverge.
    Integers count: c ← c_now + (returned − c_sent).

    Args:
      returned: the statistics as the worker's step returned them.
      now: the server's.
      sent: what the worker was sent; all three pytrees alike.
      num_batches: b, int32 scalar.
    """
    m = jnp.asarray(self.momentum, jnp.result_type(float))
    kept = m ** num_batches.astype(m.dtype)

    def fold(returned, now, sent):
      if jnp.issubdtype(now.dtype, jnp.integer):
        return now + (returned - sent)
      return returned + kept.astype(now.dtype) * (now - sent)

    return jax.tree.map(fold, returned, now, sent)


NOTHING = Averages(0.0)  # of a model without statistics


def fold_of(
  model_state, stats_momentum: float | None, fold_fn: FoldFn | None = None
) -> FoldFn:
  """How the statistics of a model are folded.

  Args:
    model_state: pytree of arrays (or their shapes); () without.
    stats_momentum: of the moving averages in it, its floating-point leaves.
    fold_fn: instead: `fold_fn(returned, now, sent, num_batches) -> model_state`
      in JAX, see `Averages`, for statistics of one's own.

  Returns:
    A hashable function.

  Raises:
    TypeError: `fold_fn` is no function, or a leaf is no array.
    ValueError: there are averages and no momentum in [0, 1], or both were
      given, or a leaf is neither an average nor a counter, or `fold_fn` returns
      something else; names the leaf.
  """
  shapes = {
    f'model_state{jax.tree_util.keystr(path)}': _shape(path, leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(model_state)[0]
  }
  if fold_fn is not None:
    if stats_momentum is not None:
      raise ValueError('give stats_momentum or fold_fn, not both')
    _check_fold(fold_fn, model_state)
    return fold_fn if shapes else NOTHING
  averages = False
  for name, leaf in shapes.items():
    averages |= jnp.issubdtype(leaf.dtype, jnp.inexact)
    if not jnp.issubdtype(leaf.dtype, jnp.number):
      raise ValueError(
        f'{name} is of dtype {leaf.dtype}: only moving averages '
        '(floating-point) and counters (integers) are folded of themselves; '
        'give fold_fn=, or keep it out of model_state'
      )
  if not averages:
    return NOTHING
  if stats_momentum is None:
    raise ValueError(
      'stats_momentum must be the momentum of the running statistics in '
      'model_state, from 0 to 1 (0.99 in flax.linen.BatchNorm unless it is '
      'set there), got None'
    )
  return Averages(
    checks.number('stats_momentum', stats_momentum, low=0.0, high=1.0)
  )


def _shape(path, leaf):
  known = jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct
  if isinstance(leaf, known) or type(leaf) in (bool, int, float, complex):
    return leaf if hasattr(leaf, 'dtype') else jnp.asarray(leaf)
  raise TypeError(
    f'model_state{jax.tree_util.keystr(path)} is no array: {leaf!r}'
  )


def _check_fold(fold_fn, model_state):
  """Raises where `fold_fn` does not return what it was given."""
  if not callable(fold_fn):
    raise TypeError(
      'fold_fn must be a function fold_fn(returned, now, sent, num_batches) '
      f'-> model_state, got {fold_fn!r}'
    )
  if not jax.tree.leaves(model_state):
    return
  like = jax.eval_shape(
    lambda tree: jax.tree.map(jnp.asarray, tree), model_state
  )
  number = jax.ShapeDtypeStruct((), jnp.int32)
  made = jax.eval_shape(fold_fn, like, like, like, number)
  alike.check('fold_fn returns', 'model_state', made, like)


def check_returned(returned, now):
  """Raises a ValueError where a worker returns other statistics.

  Args:
    returned: by the loss function, arrays or what stands for them in a trace.
    now: the server's, of the shapes that they had at the start.
  """
  alike.check('the loss function returns', 'model_state', returned, now)
