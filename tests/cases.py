"""Every rule and policy, as the common suites run over them."""

import dataclasses
import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import policies, rules

WORKERS = 3
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

# name -> rule(learning_rate); one entry per method that has its own formula.
RULES = {
  'asgd': lambda rate: rules.asgd(rate, weight_decay=1e-3),
  'nag_asgd': lambda rate: rules.asgd(rate, nesterov=True),
  'adam': lambda rate: rules.adam(rate, weight_decay=1e-2),
  'sa': lambda rate: rules.staleness_aware(rate, weight_decay=1e-3),
  'dynsgd': lambda rate: rules.dynsgd(rate, weight_decay=1e-3),
  'staleness_discounted': lambda rate: rules.staleness_discounted(rate),
  'delay_adaptive': lambda rate: rules.delay_adaptive(rate, WORKERS),
  'ga': lambda rate: rules.gap_aware(rate, weight_decay=1e-3),
  'ga_nesterov': lambda rate: rules.gap_aware(rate, nesterov=True),
  'ga_global': lambda rate: rules.gap_aware(rate, granularity='global'),
  'ga_adam': lambda rate: rules.gap_aware_adam(rate, weight_decay=1e-2),
  'multi_asgd': lambda rate: rules.multi_asgd(rate, WORKERS),
  'dana_zero': lambda rate: rules.dana_zero(rate, WORKERS, weight_decay=1e-3),
  'dana_slim': lambda rate: rules.dana_slim(rate, WORKERS, weight_decay=1e-3),
  'dana_dc': lambda rate: rules.dana_dc(rate, WORKERS, weight_decay=1e-3),
  'dana_ga': lambda rate: rules.dana_ga(rate, WORKERS, weight_decay=1e-3),
  'dc_asgd': lambda rate: rules.dc_asgd(rate, weight_decay=1e-3),
  'dc_asgd_a': lambda rate: rules.dc_asgd_adaptive(rate, weight_decay=1e-3),
  'lwp': lambda rate: rules.lwp(rate, WORKERS, weight_decay=1e-3),
  'smega2': lambda rate: rules.smega2(rate, WORKERS, weight_decay=1e-3),
  'ormo': lambda rate: rules.ormo(rate, WORKERS, weight_decay=1e-3),
  'delayed_nesterov': lambda rate: rules.delayed_nesterov(rate, WORKERS),
  'penalize_gap': lambda rate: rules.chain(
    rules.penalize_gap(), rules.asgd(rate)
  ),
}
POLICIES = policies.POLICIES
ADAMS = ('adam', 'ga_adam')  # optax.scale_by_adam needs implicit promotion
EVERY_RULE = [
  pytest.param(name, marks=pytest.mark.optax_promotes)
  if name in ADAMS
  else name
  for name in RULES
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
  """Norm-relative difference of two trees."""
  a, b = flat(a), flat(b)
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def same_bits(a, b) -> bool:
  """Whether two trees hold the same bits."""
  return all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
