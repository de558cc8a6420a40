"""Parameters on disk, through Orbax."""

import os
from typing import Any


def save_params(path: str, params: Any, model_state: Any = ()):
  """Saves what inference needs.

  Args:
    path: a folder that does not exist yet; it appears when it is complete.
    params: pytree of arrays.
    model_state: pytree of running statistics.
  """
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(
      os.path.abspath(path),
      {'params': params, 'model_state': _dict(model_state)},
    )


def load_params(path: str, like: tuple[Any, Any] | None = None):
  """Loads what `save_params` wrote.

  Args:
    path: the folder.
    like: `(params, model_state)` of arrays or shapes, whose tree and sharding
      are taken; without it nested dicts of arrays are returned.

  Returns:
    `(params, model_state)`.

  Raises:
    FileNotFoundError: no parameters there.
  """
  import orbax.checkpoint as ocp

  path = os.path.abspath(path)
  if not os.path.isdir(path):
    raise FileNotFoundError(f'no saved parameters at {path}')
  target = None
  if like is not None:
    target = {'params': like[0], 'model_state': _dict(like[1])}
  with ocp.StandardCheckpointer() as checkpointer:
    loaded = checkpointer.restore(path, target)
  return loaded['params'], loaded['model_state'] or ()


def _dict(model_state):
  return {} if model_state == () else model_state
