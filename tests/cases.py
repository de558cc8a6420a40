"""Every rule as the common suites run over it, and what they share."""

import dataclasses
import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from ga_jax import models
from ga_jax.models.cnn import CNN
from ga_jax.models.mlp import MLP
from tests import method_cases

WORKERS = method_cases.WORKERS
# Rules whose state, correction or look-ahead has a form of its own: the others
# are slow tests where a test takes long.
OF_ITS_OWN_KIND = ('asgd', 'ga', 'dana_ga', 'dana_slim', 'ormo')
AGAINST_TORCH = [  # marks of a module's tests
  pytest.mark.torch,
  pytest.mark.optax_promotes,  # Flax's BatchNorm, in double precision
  pytest.mark.skipif(
    importlib.util.find_spec('torch') is None,
    reason='needs PyTorch: pip install torch==2.13.0',
  ),
]

# For what is compared with tolerances, or only drawn: LLVM takes a third of the
# time, and the same operations are computed.
FAST = {'xla_backend_optimization_level': 0}
fast_jit = functools.partial(jax.jit, compiler_options=FAST)

# name -> rule(learning_rate).
RULES = {name: case.make for name, case in method_cases.RULES.items()}
ADAMS = ('adam', 'ga_adam')  # optax.scale_by_adam needs implicit promotion


def _marked(name: str, slow: bool):
  """A rule as a parameter of a test."""
  marks = [pytest.mark.optax_promotes] * (name in ADAMS)
  return pytest.param(name, marks=marks + [pytest.mark.slow] * slow)


EVERY_RULE = [_marked(name, slow=False) for name in RULES]
EACH_KIND_OF_RULE = [
  _marked(name, name not in OF_ITS_OWN_KIND) for name in RULES
]


def accumulating_rules():
  """Rules that can average a round."""
  return [name for name, make in RULES.items() if make(0.1).averages]


@functools.cache
def rule(name: str, rate: float):
  """A rule of the table, the same object every time: compiled once."""
  return RULES[name](rate)


@functools.cache
def tiny_problem(dtype=np.float32):
  """A regression with running statistics: (loss_fn, params, stats, batch_fn).

  Small enough for the plain-Python reference, and not convex.
  """
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(256, 6)).astype(dtype)
  targets = np.sin(inputs @ rng.normal(size=(6, 2))).astype(dtype)
  params = {
    'w': (rng.normal(size=(6, 8)) * 0.5).astype(dtype),
    'b': np.zeros(8, dtype),
    'scale': np.ones((), dtype),
    'v': (rng.normal(size=(8, 2)) * 0.5).astype(dtype),
  }
  stats = {'mean': np.zeros(8, dtype)}

  def loss_fn(params, model_state, batch, key):
    del key
    x, y = batch
    hidden = jnp.tanh(x @ params['w'] + params['b'][None])
    mean = 0.9 * model_state['mean'] + 0.1 * hidden.mean(0)
    out = params['scale'] * (hidden @ params['v'])
    return jnp.mean((out - y) ** 2), {'mean': mean}

  def batch_fn(batch_id):
    rows = np.random.default_rng([7, batch_id]).integers(0, 256, 16)
    return inputs[rows], targets[rows]

  return loss_fn, params, stats, batch_fn


def image_batches(batch_id):
  rng = np.random.default_rng([5, batch_id])
  images = rng.normal(size=(16, 8, 8, 1)).astype(np.float32)
  return images, rng.integers(0, 10, 16).astype(np.int32)


@functools.cache
def classifier(model_name):
  """A small model of `image_batches`: (model, params, stats, loss_fn)."""
  module = {
    'mlp_bn': MLP(10, (32,), batch_norm=True),
    'cnn_bn': CNN(10, (8, 8), batch_norm=True),
  }[model_name]
  model = models.base.from_linen(module)
  inputs = jnp.zeros((1, 8, 8, 1))
  params, stats = fast_jit(model.init)(jax.random.key(0), inputs)

  def loss_fn(params, model_state, batch, key=None):
    logits, model_state = model.apply(params, model_state, batch[0], True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return losses.mean(), model_state

  return model, params, stats, loss_fn


def tiny_job(rule, policy, dtype=np.float32, **own) -> ga_jax.Job:
  """The tiny problem with a rule and a policy; `own` are the job's others."""
  loss_fn, params, stats, batch_fn = tiny_problem(dtype)
  whole = {
    'loss_fn': loss_fn,
    'params': params,
    'batches': batch_fn,
    'model_state': stats,
    'stats_momentum': 0.9,
    **own,
  }
  return ga_jax.Job(rule=rule, policy=policy, **whole)


def live_arguments(**given) -> dict[str, Any]:
  """Arguments of a live run, those of `ga_jax.Live` put into one."""
  names = {field.name for field in dataclasses.fields(ga_jax.Live)}
  own = {name: value for name, value in given.items() if name in names}
  rest = {name: value for name, value in given.items() if name not in names}
  return {**rest, 'live': ga_jax.Live(**own)}


def flat(tree) -> np.ndarray:
  """All leaves of a tree as one float64 vector."""
  leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
  return np.concatenate(leaves)


def distance(a, b) -> float:
  """Norm-relative difference of two trees whose leaves have equal shapes."""
  assert shapes(a) == shapes(b)
  a, b = flat(a), flat(b)
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def shapes(tree) -> list[tuple[int, ...]]:
  """The shape of each leaf."""
  return [np.shape(leaf) for leaf in jax.tree.leaves(tree)]


def same_bits(a, b) -> bool:
  """Whether the leaves of two trees are of one dtype and shape, bit for bit."""

  def bits(leaf):
    kind = getattr(leaf, 'dtype', None)
    is_key = kind is not None and jnp.issubdtype(kind, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return array.dtype, array.shape, array.tobytes()

  return all(
    bits(x) == bits(y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def same_tree(a, b) -> bool:
  """Whether two trees have one structure and the same bits."""
  return jax.tree.structure(a) == jax.tree.structure(b) and same_bits(a, b)
