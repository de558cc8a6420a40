"""Whether trees are alike: in structure, every leaf in shape and dtype."""

import jax
import jax.numpy as jnp


def form(tree):
  """What is alike of two trees; compared by ==.

  Args:
    tree: pytree of arrays, of their shapes or of numbers.

  Returns:
    (structure, [(shape, dtype) of each leaf]).
  """
  leaves, structure = jax.tree.flatten(tree)
  return structure, [_form(leaf) for leaf in leaves]


def _form(leaf):
  if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):  # much faster
    return leaf.shape, leaf.dtype
  return jnp.shape(leaf), jnp.result_type(leaf)


def check(who: str, name: str, got, like):
  """Refuses a tree that is not like another.

  Args:
    who: brings it, and how: 'fold_fn returns'.
    name: of the tree.
    got: the tree.
    like: what it must be like.

  Raises:
    ValueError: they differ; names the first leaf, or the structures.
  """
  if form(got) == form(like):
    return
  ours, theirs = _texts(got), _texts(like)
  for path in theirs | ours:
    made, wanted = ours.get(path, 'nothing'), theirs.get(path, 'nothing')
    if made != wanted:
      raise ValueError(f'{who} {made} for {name}{path}, which is {wanted}')
  made, wanted = map(jax.tree.structure, (got, like))
  raise ValueError(f'{who} the structure {made} for {name}, which is {wanted}')


def _texts(tree) -> dict[str, str]:
  """Leaves by path, as messages show them."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    shape, dtype = _form(leaf)
    found[jax.tree_util.keystr(path)] = f'{dtype}{list(shape)}'
  return found
