"""Transformer-XL against its formulas, and the adaptive softmax."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ga_jax import models
from ga_jax.models import adaptive_softmax
from ga_jax.models.transformer_xl import (  # its module has a model's name
  Memory,
  TransformerXL,
  language_model,
  relative_shift,
)
from tests import cases

pytestmark = pytest.mark.usefixtures('quick_compiler')

CLASSES, LENGTH, ROWS = 31, 6, 3
TINY = {
  'num_classes': CLASSES,
  'num_layers': 2,
  'features': 8,
  'num_heads': 2,
  'inner': 12,
  'cutoffs': (9, 20),
}


@functools.cache
def tiny(memory_length=None, segment_length=LENGTH, **own):
  """A model of two layers, compiled, and parameters far from initial ones."""
  module = TransformerXL(**{**TINY, **own})
  model = language_model(module, segment_length, memory_length)
  params = drawn(model.init)
  return (
    model._replace(
      losses=jax.jit(model.losses), log_probs=jax.jit(model.log_probs)
    ),
    params,
  )


def drawn(init):
  """Parameters, scales about 1 and the others about 0."""
  rng = np.random.default_rng(1)

  def draw(path, shape):
    centre = jax.tree_util.keystr(path).endswith("['scale']")
    return (centre + 0.3 * rng.normal(size=shape.shape)).astype(shape.dtype)

  shapes = jax.eval_shape(init, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def some_text(length, seed=0):
  rng = np.random.default_rng(seed)
  text = rng.integers(0, CLASSES, (ROWS, length + 1)).astype(np.int32)
  return text[:, :-1], text[:, 1:]


def number_of_parameters(model):
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def test_the_base_configuration_has_the_published_number_of_parameters():
  """151 M in table 1 of the paper; the authors' logs say 151,107,538."""
  words, d, inner, layers = 267_735, 410, 2100, 16
  attention, dense = 5 * d * d, 2 * d * inner + d + inner
  normalisation, u_and_v = 2 * 2 * d, 2 * d
  network = layers * (attention + dense + normalisation) + u_and_v
  softmax = words * (d + 1) + 3 * (d + 1)  # with an entry per tail
  found = number_of_parameters(models.transformer_xl(words))
  assert found == network + softmax == 151_107_538


def test_the_small_configuration_has_its_sizes():
  model = models.transformer_xl_small(8_000)
  assert number_of_parameters(model) == 735_489
  assert model.memory(5).hidden.shape == (4, 5, 64, 64)


def test_a_segment_with_memory_is_one_pass_over_two():
  """The memory is as long as the segment: the same positions are seen."""
  model, params = tiny()
  tokens, targets = some_text(2 * LENGTH)
  whole, _ = tiny(memory_length=0)[0].losses(
    params, tiny(memory_length=0)[0].memory(ROWS), tokens, targets
  )
  memory, parts = model.memory(ROWS), []
  for begin in (0, LENGTH):
    part = slice(begin, begin + LENGTH)
    losses, memory = model.losses(
      params, memory, tokens[:, part], targets[:, part]
    )
    parts.append(losses)
  np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-4)
  alone, _ = model.losses(
    params, model.memory(ROWS), tokens[:, LENGTH:], targets[:, LENGTH:]
  )
  assert np.abs(alone - whole[:, LENGTH:]).max() > 0.01  # it does remember
  assert int(memory.length) == LENGTH


@pytest.mark.slow
def test_the_small_model_with_memory_is_one_pass_over_two():
  model = models.transformer_xl_small(3_000)
  params = drawn(model.init)
  text = np.random.default_rng(0).integers(0, 3_000, (2, 129))
  tokens, targets = text[:, :-1].astype('i4'), text[:, 1:].astype('i4')
  losses = cases.fast_jit(model.losses)
  memory = models.transformer_xl_small(3_000, memory_length=0).memory(2)
  whole, _ = losses(params, memory, tokens, targets)
  _, memory = losses(params, model.memory(2), tokens[:, :64], targets[:, :64])
  second, _ = losses(params, memory, tokens[:, 64:], targets[:, 64:])
  np.testing.assert_allclose(second, whole[:, 64:], atol=1e-4)


@pytest.mark.slow
def test_a_long_memory_keeps_several_segments_and_no_more():
  model, params = tiny(memory_length=2 * LENGTH + 2)
  tokens, targets = some_text(4 * LENGTH)
  memory, lengths = model.memory(ROWS), []
  for begin in range(0, 4 * LENGTH, LENGTH):
    part = slice(begin, begin + LENGTH)
    before = memory
    losses, memory = model.losses(
      params, memory, tokens[:, part], targets[:, part]
    )
    lengths.append(int(memory.length))
  assert lengths == [LENGTH, 2 * LENGTH, 2 * LENGTH + 2, 2 * LENGTH + 2]
  # What is beyond it cannot be seen.
  junk = jnp.where(
    jnp.arange(2 * LENGTH + 2)[None, None, :, None] < 2, 7.0, before.hidden
  )
  other, _ = model.losses(
    params,
    Memory(junk, jnp.int32(2 * LENGTH)),
    tokens[:, part],
    targets[:, part],
  )
  unseen = before._replace(length=jnp.int32(2 * LENGTH))
  same, _ = model.losses(params, unseen, tokens[:, part], targets[:, part])
  np.testing.assert_array_equal(other, same)
  assert np.abs(np.asarray(losses) - same).max() > 1e-4


def test_no_gradient_flows_into_the_memory():
  model, params = tiny()
  tokens, targets = some_text(LENGTH)
  _, memory = model.losses(params, model.memory(ROWS), tokens, targets)

  def through(params):
    return jnp.sum(
      model.losses(params, model.memory(ROWS), tokens, targets)[1].hidden
    )

  grads = cases.fast_jit(jax.grad(through))(params)
  assert all(not g.any() for g in jax.tree.leaves(grads))
  assert memory.hidden.any()


@pytest.mark.parametrize(('queries', 'keys'), [(4, 4), (3, 8), (1, 5)])
def test_relative_shift_is_the_naive_loop(queries, keys):
  scores = np.random.default_rng(0).normal(size=(2, 3, queries, keys))
  shifted = relative_shift(jnp.asarray(scores, jnp.float32))
  for i in range(queries):
    for j in range(keys - queries + i + 1):
      distance = keys - queries + i - j
      np.testing.assert_array_equal(
        shifted[..., i, j], scores[..., i, keys - 1 - distance].astype('f')
      )


# --- against the formulas, in NumPy -----------------------------------------


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def normalised(x, p):
  centred = x - x.mean(-1, keepdims=True)
  scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
  return centred / scale * p['scale'] + p['bias']


def attention_of(x, memory, p, u, v):
  """Pair by pair; x [L, d] and memory [m, d] of one row."""
  (d, heads, width), context = p['query']['kernel'].shape, [*memory, *x]
  out = np.zeros_like(x)
  for i in range(len(x)):
    place = len(memory) + i
    for h in range(heads):
      q = x[i] @ p['query']['kernel'][:, h]
      scores, values = [], []
      for j in range(place + 1):
        angles = (place - j) / 10000.0 ** (np.arange(0, d, 2) / d)
        r = np.concatenate([np.sin(angles), np.cos(angles)])
        key = context[j] @ p['key']['kernel'][:, h]
        distance = r @ p['distance']['kernel'][:, h]
        scores.append((q + u[h]) @ key + (q + v[h]) @ distance)
        values.append(context[j] @ p['value']['kernel'][:, h])
      weights = softmax(np.array(scores) / np.sqrt(width))
      out[i] += weights @ np.array(values) @ p['out']['kernel'][h]
  return out


def log_probs_of(hidden, p):
  """Head and tails of TINY; hidden [n, d] -> [n, V]."""
  head = np.concatenate([p['table_0'], p['tail_table']])
  bias = np.concatenate([p['bias_0'], p['tail_bias']])
  entries = softmax(hidden @ head.T + bias)
  parts = [entries[:, :9]]
  for i in (1, 2):
    own = softmax(hidden @ p[f'table_{i}'].T + p[f'bias_{i}'])
    parts.append(entries[:, 8 + i, None] * own)
  return np.log(np.concatenate(parts, 1))


def losses_of(params, memory, tokens, targets):
  """(losses, inputs of every layer); memory [layers, B, m, d]."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  table = np.concatenate([p['softmax'][f'table_{i}'] for i in range(3)])
  losses, kept = [], []
  for row, (own, wanted) in enumerate(zip(tokens, targets, strict=True)):
    x, inputs = table[own] * np.sqrt(8.0), []
    for i in range(2):
      layer = p[f'layers_{i}']
      inputs.append(x)
      attention = layer['RelativeAttention_0']
      y = attention_of(x, memory[i][row], attention, p['u'], p['v'])
      x = normalised(x + y, layer['LayerNorm_0'])
      y = np.maximum(
        x @ layer['Dense_0']['kernel'] + layer['Dense_0']['bias'], 0
      )
      y = y @ layer['Dense_1']['kernel'] + layer['Dense_1']['bias']
      x = normalised(x + y, layer['LayerNorm_1'])
    found = log_probs_of(x, p['softmax'])
    losses.append(-found[np.arange(len(wanted)), wanted])
    kept.append(inputs)
  return np.array(losses), np.swapaxes(np.array(kept), 0, 1)


def test_losses_and_memory_are_those_of_the_formulas():
  model, params = tiny()
  tokens, targets = some_text(2 * LENGTH)
  memory, before = model.memory(ROWS), np.zeros((2, ROWS, 0, 8))
  for begin in (0, LENGTH):
    part = slice(begin, begin + LENGTH)
    now = tokens[:, part], targets[:, part]
    losses, memory = model.losses(params, memory, *now)
    wanted, before = losses_of(params, before, *now)
    np.testing.assert_allclose(losses, wanted, rtol=2e-5)
    np.testing.assert_allclose(memory.hidden, before, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.optax_promotes  # so does Flax's LayerNorm in double precision
def test_the_gradient_is_that_of_the_formulas(x64):
  """Along random directions, against central differences of the formulas."""
  del x64
  model, params = tiny()
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
  tokens, targets = some_text(LENGTH)
  _, before = losses_of(params, np.zeros((2, ROWS, 0, 8)), tokens, targets)
  memory = Memory(jnp.asarray(before), jnp.int32(LENGTH))
  tokens, targets = some_text(LENGTH, seed=1)

  def loss(params):
    return model.losses(params, memory, tokens, targets)[0].mean()

  grads, rng = cases.fast_jit(jax.grad(loss))(params), np.random.default_rng(0)
  for _ in range(2):
    way = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    wanted = [
      losses_of(
        jax.tree.map(lambda p, w, s=step: p + s * w, params, way),
        before,
        tokens,
        targets,
      )[0].mean()
      for step in (-1e-5, 1e-5)
    ]
    slope = sum(
      jax.tree.leaves(jax.tree.map(lambda g, w: np.sum(g * w), grads, way))
    )
    np.testing.assert_allclose(slope, np.diff(wanted)[0] / 2e-5, rtol=1e-4)


# --- options ----------------------------------------------------------------


@pytest.mark.slow
def test_dropout_follows_its_key():
  model, params = tiny(num_layers=1, cutoffs=())
  memory, text = model.memory(ROWS), some_text(LENGTH)

  def losses(key):
    return model.losses(params, memory, *text, key)[0]

  one, again, other = map(losses, map(jax.random.key, (0, 0, 1)))
  np.testing.assert_array_equal(one, again)
  assert (np.asarray(one) != other).mean() > 0.9
  assert (np.asarray(one) != losses(None)).mean() > 0.9


@pytest.mark.slow
def test_remat_computes_the_same():
  def found(model, params):
    def loss(params):
      return model.losses(params, model.memory(ROWS), *some_text(LENGTH))[
        0
      ].mean()

    return cases.fast_jit(jax.value_and_grad(loss))(params)

  (loss, grads), (same, others) = (
    found(*tiny(num_layers=1, cutoffs=(), remat=remat))
    for remat in (False, True)
  )
  np.testing.assert_allclose(loss, same, rtol=1e-6)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_is_computed_in_and_kept_in_the_memory():
  plain, params = tiny()
  model, same = tiny(dtype=jnp.bfloat16)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(same))
  text = some_text(LENGTH)
  losses, memory = model.losses(params, model.memory(ROWS), *text)
  assert memory.hidden.dtype == jnp.bfloat16
  assert losses.dtype == jnp.float32
  wanted, _ = plain.losses(params, plain.memory(ROWS), *text)
  assert 0 < np.abs(np.asarray(losses) - wanted).max() < 0.3


@pytest.mark.slow
def test_probabilities_of_the_next_token_agree_with_the_losses():
  model, params = tiny()
  tokens, targets = some_text(LENGTH)
  found, memory = model.log_probs(params, model.memory(ROWS), tokens)
  losses, same = model.losses(params, model.memory(ROWS), tokens, targets)
  assert found.shape == (ROWS, CLASSES)
  np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, rtol=1e-5)
  picked = -np.asarray(found)[np.arange(ROWS), targets[:, -1]]
  np.testing.assert_allclose(picked, losses[:, -1], rtol=1e-5)
  np.testing.assert_array_equal(memory.hidden, same.hidden)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      {'segment_length': 0},
      'segment_length must be an integer of at least 1, got 0',
    ),
    (
      {'memory_length': -2},
      'memory_length must be an integer of at least 0, got -2',
    ),
    ({'compute_dtype': 'float16'}, 'compute_dtype'),
  ],
)
def test_options_out_of_range_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    models.transformer_xl_small(10, **arguments)


# --- adaptive softmax -------------------------------------------------------


def softmax_of(cutoffs, n, **own):
  """(module, its parameters, hidden [n, 8], targets [n])."""
  module = adaptive_softmax.AdaptiveSoftmax(CLASSES, 8, cutoffs, **own)
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(n, 8)).astype('f')
  targets = rng.integers(0, CLASSES, n).astype('i4')
  init = functools.partial(module.init, method=module.embed)
  return module, drawn(lambda key: init(key, targets)), hidden, targets


@pytest.mark.parametrize(
  ('cutoffs', 'own'),
  [
    ((9, 20), {'div_val': 2}),
    pytest.param((9, 20), {}, marks=pytest.mark.slow),
    ((), {}),
  ],
)
def test_likelihood_and_its_gradient_are_those_of_all_probabilities(
  cutoffs, own
):
  """More targets than are computed at once, so that pieces are skipped."""
  n = 2 * adaptive_softmax.PIECE + 7
  module, variables, hidden, targets = softmax_of(cutoffs, n, **own)

  def one(variables, hidden):
    found = module.apply(
      variables, hidden, targets, method=module.log_likelihood
    )
    return jnp.sum(found * jnp.cos(jnp.arange(n))), found

  def all_of(variables, hidden):
    every = module.apply(variables, hidden, method=module.log_probs)
    found = every[jnp.arange(n), targets]
    return jnp.sum(found * jnp.cos(jnp.arange(n))), (found, every)

  grads, found = cases.fast_jit(jax.grad(one, (0, 1), has_aux=True))(
    variables, hidden
  )
  wanted, (same, every) = cases.fast_jit(
    jax.grad(all_of, (0, 1), has_aux=True)
  )(variables, hidden)
  assert every.shape == (n, CLASSES)
  np.testing.assert_allclose(np.exp(every).sum(-1), 1.0, rtol=1e-5)
  np.testing.assert_allclose(found, same, rtol=1e-4, atol=1e-4)
  leaves = zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True)
  for a, b in leaves:
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_adaptive_softmax_without_tails_is_the_plain_softmax():
  module, variables, hidden, targets = softmax_of((), 40)
  p = variables['params']
  assert set(p) == {'table_0', 'bias_0'}
  wanted = jax.nn.log_softmax(hidden @ p['table_0'].T + p['bias_0'], axis=-1)
  found = module.apply(variables, hidden, method=module.log_probs)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  picked = module.apply(
    variables, hidden, targets, method=module.log_likelihood
  )
  np.testing.assert_allclose(
    picked, wanted[jnp.arange(40), targets], rtol=1e-5, atol=1e-5
  )


def test_inputs_share_the_tables_of_the_softmax():
  module, variables, _, _ = softmax_of((9, 20), 5)
  p = variables['params']
  found = module.apply(
    variables, jnp.arange(CLASSES)[None], method=module.embed
  )
  tables = np.concatenate([p[f'table_{i}'] for i in range(3)])
  np.testing.assert_array_equal(found[0], tables)
