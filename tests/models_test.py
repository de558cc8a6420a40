"""Small models: shapes, parameters and running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ga_jax import models
from tests import cases

SHAPES = {  # as they are saved: a renamed layer loses everybody's checkpoints
  'mlp': {
    'Dense_0': {'kernel': (64, 128), 'bias': (128,)},
    'Dense_1': {'kernel': (128, 128), 'bias': (128,)},
    'Dense_2': {'kernel': (128, 10), 'bias': (10,)},
  },
  'mlp_bn': {
    'Dense_0': {'kernel': (64, 128)},
    'BatchNorm_0': {'scale': (128,), 'bias': (128,)},
    'Dense_1': {'kernel': (128, 128)},
    'BatchNorm_1': {'scale': (128,), 'bias': (128,)},
    'Dense_2': {'kernel': (128, 10), 'bias': (10,)},
  },
  'cnn': {
    'Conv_0': {'kernel': (3, 3, 1, 16), 'bias': (16,)},
    'Conv_1': {'kernel': (3, 3, 16, 32), 'bias': (32,)},
    'Conv_2': {'kernel': (3, 3, 32, 32), 'bias': (32,)},
    'Dense_0': {'kernel': (32, 10), 'bias': (10,)},
  },
  'cnn_bn': {
    'Conv_0': {'kernel': (3, 3, 1, 16)},
    'BatchNorm_0': {'scale': (16,), 'bias': (16,)},
    'Conv_1': {'kernel': (3, 3, 16, 32)},
    'BatchNorm_1': {'scale': (32,), 'bias': (32,)},
    'Conv_2': {'kernel': (3, 3, 32, 32)},
    'BatchNorm_2': {'scale': (32,), 'bias': (32,)},
    'Dense_0': {'kernel': (32, 10), 'bias': (10,)},
  },
  'cnn3': {
    'Conv_0': {'kernel': (5, 5, 1, 32), 'bias': (32,)},
    'Conv_1': {'kernel': (5, 5, 32, 32), 'bias': (32,)},
    'Conv_2': {'kernel': (5, 5, 32, 64), 'bias': (64,)},
    'Dense_0': {'kernel': (64, 10), 'bias': (10,)},
  },
}

all_models = pytest.mark.parametrize('name', SHAPES)
with_statistics = pytest.mark.parametrize('name', ['mlp_bn', 'cnn_bn'])


def images(batch=6, seed=0):
  x = np.random.default_rng(seed).normal(0.5, 2.0, (batch, 8, 8, 1))
  return jnp.asarray(x, jnp.float32)


@functools.lru_cache
def compiled(name):
  """`models.Model` of 10 classes, its functions compiled."""
  model = models.MODELS[name](10)
  return model._replace(
    init=cases.fast_jit(model.init),
    apply=cases.fast_jit(model.apply, static_argnums=3),
  )


def built(name, seed=0):
  """A model with its parameters: (model, params, model_state)."""
  model = compiled(name)
  return model, *model.init(jax.random.key(seed), images(1))


def logits_of(model, inputs):
  """Shape and type of what a model makes of inputs; nothing is computed."""

  def init_and_apply(key):
    params, state = model.init(key, inputs[:1])
    return model.apply(params, state, inputs, False)[0]

  return jax.eval_shape(init_and_apply, jax.random.key(0))


@all_models
def test_parameter_tree_is_fixed(name):
  _, params, _ = built(name)
  shapes = jax.tree.map(lambda leaf: leaf.shape, params)
  assert shapes == SHAPES[name]
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {'float32'}


@all_models
def test_init_is_a_function_of_the_key(name):
  _, params, state = built(name)
  _, again, same_state = built(name)
  _, other, _ = built(name, seed=1)
  assert cases.same_bits(params, again)
  assert cases.same_bits(state, same_state)
  assert not cases.same_bits(params, other)


@all_models
def test_init_does_not_look_at_the_batch(name):
  model, params, state = built(name)
  more = jax.eval_shape(model.init, jax.random.key(0), images(4))
  assert more == jax.eval_shape(lambda: (params, state))
  blank, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  assert cases.same_bits(blank, params)


@all_models
@pytest.mark.parametrize('train', [False, True])
def test_logits_have_a_column_per_class(name, train):
  model, params, state = built(name)
  logits, after = model.apply(params, state, images(), train)
  assert logits.shape == (6, 10)
  assert logits.dtype == jnp.float32
  assert np.all(np.isfinite(logits))
  assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize('name', ['mlp', 'mlp_bn'])
def test_mlp_takes_vectors(name):
  logits = logits_of(models.MODELS[name](3), jnp.ones((2, 7)))
  assert logits.shape == (2, 3)


@pytest.mark.parametrize('name', ['cnn', 'cnn_bn', 'cnn3'])
def test_cnn_takes_images_of_any_size(name):
  logits = logits_of(models.MODELS[name](3), jnp.ones((2, 11, 13, 3)))
  assert logits.shape == (2, 3)


@all_models
def test_inference_does_not_change_the_state(name):
  model, params, state = built(name)
  _, state = model.apply(params, state, images(), True)
  _, after = model.apply(params, state, images(seed=1), False)
  assert cases.same_bits(after, state)


@all_models
def test_training_changes_the_state_where_there_are_statistics(name):
  model, params, state = built(name)
  _, after = model.apply(params, state, images(), True)
  if name.endswith('_bn'):
    changed = jax.tree.map(lambda a, b: bool(jnp.all(a != b)), state, after)
    assert all(jax.tree.leaves(changed))
    assert jax.tree.leaves(changed)
  else:
    assert state == ()
    assert after == ()


@all_models
def test_inference_judges_every_example_alone(name):
  model, params, state = built(name)
  _, state = model.apply(params, state, images(), True)
  x, other = images(), images(seed=1)
  mixed = jnp.concatenate([x[:3], other[3:]])
  logits, _ = model.apply(params, state, x, False)
  among_others, _ = model.apply(params, state, mixed, False)
  np.testing.assert_allclose(logits[:3], among_others[:3], rtol=1e-4, atol=1e-5)
  assert not np.allclose(logits[3:], among_others[3:])


def test_running_statistics_after_one_batch():
  model, params, state = built('mlp_bn')
  x = images()
  kernel = np.asarray(params['Dense_0']['kernel'], np.float64)
  before = np.asarray(x, np.float64).reshape(6, -1) @ kernel
  _, after = model.apply(params, state, x, True)
  seen = after['BatchNorm_0']
  np.testing.assert_allclose(
    seen['mean'], 0.9 * 0 + 0.1 * before.mean(0), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    seen['var'], 0.9 * 1 + 0.1 * before.var(0), rtol=1e-4
  )


@with_statistics
def test_statistics_have_the_momentum_that_the_model_states(name):
  model, params, state = built(name)
  _, once = model.apply(params, state, images(), True)
  _, twice = model.apply(params, once, images(), True)
  m = model.stats_momentum
  assert 0 < m < 1
  # The first layer sees the same batch twice: s ← m s + (1 − m) b.
  start, first, second = (s['BatchNorm_0'] for s in (state, once, twice))
  for kind in ('mean', 'var'):
    batch = (first[kind] - m * start[kind]) / (1 - m)
    wanted = m * first[kind] + (1 - m) * batch
    np.testing.assert_allclose(second[kind], wanted, rtol=1e-4, atol=1e-6)


@with_statistics
def test_training_normalises_by_the_batch(name):
  model, params, state = built(name)
  strange = jax.tree.map(lambda leaf: leaf + 7.0, state)
  logits, _ = model.apply(params, state, images(), True)
  same, _ = model.apply(params, strange, images(), True)
  other, _ = model.apply(params, strange, images(), False)
  np.testing.assert_array_equal(logits, same)
  assert not np.allclose(logits, other)
