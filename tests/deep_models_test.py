"""The papers' networks: their size, their parts, their options; one run.

Almost nothing is computed here: shapes say most. models_torch_test.py compares
values and gradients with PyTorch.
"""

import functools
import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax import clocks, models, policies, rules
from ga_jax.executors import blocks, lengths
from ga_jax.models import caffe, layers, resnet, wide_resnet
from tests import cases

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CIFAR, IMAGENET = (2, 32, 32, 3), (2, 224, 224, 3)
DEEP = {'resnet20': CIFAR, 'wrn_16_4': CIFAR, 'resnet50': IMAGENET}
BLOCKS = {  # name of the last block, and its parts
  'resnet20': ('stage3_block3', {'Conv': 2, 'BatchNorm': 2}),
  'wrn_16_4': ('stage3_block2', {'Conv': 2, 'BatchNorm': 2}),
  'resnet50': ('stage4_block3', {'Conv': 3, 'BatchNorm': 3}),
}

deep_models = pytest.mark.parametrize('name', DEEP)


@functools.lru_cache
def shapes(name, **options):
  """Model, and shapes of parameters, state and inputs; nothing is computed."""
  model = models.MODELS[name](1000 if name == 'resnet50' else 10, **options)
  inputs = jax.ShapeDtypeStruct(DEEP.get(name, CIFAR), jnp.float32)
  return model, *jax.eval_shape(model.init, jax.random.key(0), inputs), inputs


def size(tree):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def linen_size(module, shape):
  init = models.from_linen(module).init
  inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
  return size(jax.eval_shape(init, jax.random.key(0), inputs)[0])


def equations(jaxpr, name):
  """Every equation of a primitive, however deep."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == name:
      yield eqn
    inner = jax.tree.leaves(
      tuple(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    )
    for part in inner:
      if hasattr(part, 'eqns'):
        yield from equations(part, name)


# Parameters. Convolutions have k² · in · out, BatchNorm 2 per channel.


def conv(k, *channels):
  return sum(k * k * a * b for a, b in itertools.pairwise(channels))


def resnet_count(n, classes):
  """Section 4.2 of He et al.: 6n + 2 layers, option A."""
  stages = sum(
    conv(3, before, *(2 * n * (width,)))
    for before, width in ((16, 16), (16, 32), (32, 64))
  )
  norms = 2 * (16 + 2 * n * (16 + 32 + 64))
  return conv(3, 3, 16) + stages + norms + 64 * classes + classes


def wrn_count(depth, k, classes):
  """Table 1 of Zagoruyko and Komodakis, with 1x1 convolutions as shortcuts."""
  n, total, before = (depth - 4) // 6, conv(3, 3, 16), 16
  for width in (16 * k, 32 * k, 64 * k):
    total += conv(3, before, *(2 * n * (width,))) + conv(1, before, width)
    total += 2 * before + 2 * (2 * n - 1) * width
    before = width
  return total + 2 * before + before * classes + classes


def resnet50_count(classes):
  """Table 1 of He et al."""
  total, before = conv(7, 3, 64) + 2 * 64, 64
  for n, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
    out = 4 * width
    total += conv(1, before, out) + 2 * out  # the projection
    for i in range(n):
      total += conv(1, out if i else before, width) + conv(3, width, width)
      total += conv(1, width, out) + 2 * (width + width + out)
    before = out
  return total + before * classes + classes


@pytest.mark.parametrize(
  ('name', 'formula', 'count', 'published'),
  [
    ('resnet20', resnet_count(3, 10), 269_722, '0.27'),
    ('wrn_16_4', wrn_count(16, 4, 10), 2_748_890, '2.7'),
    ('resnet50', resnet50_count(1000), 25_557_032, '25.6'),
    (
      'cnn3',
      conv(5, 3, 32, 32, 64) + 32 + 32 + 64 + 4 * 4 * 64 * 10 + 10,
      89_578,
      '0.09',
    ),
  ],
)
def test_parameters_are_as_many_as_published(name, formula, count, published):
  _, params, _, _ = shapes(name)
  assert size(params) == formula == count
  digits = len(published.partition('.')[2])
  # Papers cut or round the last digit.
  assert abs(count / 1e6 - float(published)) < 10**-digits


@pytest.mark.parametrize(
  ('length', 'published'), [(5, 0.46), (7, 0.66), (9, 0.85)]
)
def test_longer_cifar_networks_are_those_of_the_paper(length, published):
  count = linen_size(resnet.CifarResNet(10, length=length), CIFAR)
  assert count == resnet_count(length, 10)
  assert round(count / 1e6, 2) == published


@pytest.mark.parametrize(
  ('depth', 'widen', 'published'), [(40, 4, 8.9), (16, 8, 11.0)]
)
def test_wider_networks_are_those_of_the_paper(depth, widen, published):
  module = wide_resnet.WideResNet(10, depth=depth, widen=widen)
  count = linen_size(module, CIFAR)
  assert count == wrn_count(depth, widen, 10)
  assert round(count / 1e6, 1) == published


@deep_models
def test_parameter_names_are_fixed(name):  # they are in people's checkpoints
  _, params, state, _ = shapes(name)
  block, parts = BLOCKS[name]
  names = {f'{part}_{i}' for part, n in parts.items() for i in range(n)}
  assert set(params[block]) == names
  assert set(params) - set(state) == {'Conv_0', 'Dense_0'}
  norms = {path for path in names if path.startswith('BatchNorm')}
  assert set(state[block]) == norms


# Shapes and arithmetic.


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow) if name == 'resnet50' else name
    for name in (*DEEP, 'cnn3')
  ],
)
def test_logits_have_a_column_per_class(name):
  model, params, state, inputs = shapes(name)
  classes = 1000 if name == 'resnet50' else 10
  for train in (False, True):
    logits, after = jax.eval_shape(
      lambda p, s, x, train=train: model.apply(p, s, x, train),
      params,
      state,
      inputs,
    )
    assert (logits.shape, logits.dtype) == ((2, classes), jnp.float32)
    assert after == state
  assert model.reads == 'images'


@pytest.mark.parametrize(
  ('name', 'millions'),
  [('resnet20', 40.6), ('resnet50', 4089.2)],
)
def test_multiplications_are_as_many_as_known(name, millions):
  """Strides in the wrong place (v1 against v1.5) change their number."""
  model, params, state, inputs = shapes(name)
  jaxpr = jax.make_jaxpr(lambda *a: model.apply(*a, False))(
    params, state, inputs
  )
  total = 0
  for eqn in equations(jaxpr, 'conv_general_dilated'):
    total += size(eqn.outvars[0].aval) * np.prod(eqn.invars[1].aval.shape[:3])
  for eqn in equations(jaxpr, 'dot_general'):
    total += size(eqn.outvars[0].aval) * eqn.invars[1].aval.shape[0]
  assert round(total / inputs.shape[0] / 1e6, 1) == millions


def test_shortcut_option_a_by_hand():
  x = np.arange(2 * 5 * 4 * 3, dtype=np.float32).reshape(2, 5, 4, 3)
  short = resnet.option_a(jnp.asarray(x), 5, 2)
  wanted = np.zeros((2, 3, 2, 5), np.float32)
  for i in range(3):
    for j in range(2):
      wanted[:, i, j, :3] = x[:, 2 * i, 2 * j]
  np.testing.assert_array_equal(short, wanted)
  np.testing.assert_array_equal(resnet.option_a(jnp.asarray(x), 3, 1), x)


@pytest.mark.slow
def test_residual_blocks_begin_as_their_shortcuts():
  x = np.random.default_rng(0).normal(size=(2, 3, 3, 8)).astype(np.float32)
  model = models.from_linen(resnet.Bottleneck(2))

  @jax.jit
  def first(key):
    params, state = model.init(key, x)
    return params, model.apply(params, state, x, True)[0]

  params, y = first(jax.random.key(0))
  np.testing.assert_array_equal(y, np.maximum(x, 0))
  assert np.ptp(params['Conv_0']['kernel']) > 0


def test_convolutions_begin_with_he_s_variance():
  # Of the rectifiers paper: 2 / (k² · filters), and no bound on a normal.
  conv = layers.conv(64, 3)
  x = jnp.zeros((1, 4, 4, 48))
  variables = cases.fast_jit(conv.init)(jax.random.key(0), x)
  kernel = np.asarray(variables['params']['kernel'], np.float64)
  std = np.sqrt(2 / (9 * 64))
  assert abs(kernel.std() / std - 1) < 0.02  # 27,648 values
  assert abs(kernel.mean()) < 0.03 * std
  assert np.abs(kernel).max() > 3 * std
  assert set(variables['params']) == {'kernel'}


@pytest.mark.parametrize('side', [8, 9, 14, 32])
def test_caffe_pooling_cuts_windows_off_at_the_lower_edge(side):
  x = np.random.default_rng(side).normal(size=(1, side, side, 2))
  x = x.astype(np.float32)
  starts = range(0, side - 1, 2)  # each window has at least two rows
  windows = [[x[0, i : i + 3, j : j + 3] for j in starts] for i in starts]
  largest = [[w.max((0, 1)) for w in row] for row in windows]
  mean = [[w.mean((0, 1)) for w in row] for row in windows]
  np.testing.assert_array_equal(caffe.max_pool(jnp.asarray(x))[0], largest)
  np.testing.assert_allclose(
    caffe.mean_pool(jnp.asarray(x))[0], mean, rtol=1e-5, atol=1e-6
  )


def test_response_normalisation_by_hand():
  x = np.random.default_rng(0).normal(size=(1, 4, 5, 2), scale=100)
  padded = np.pad(x**2, ((0, 0), (1, 1), (1, 1), (0, 0)))
  wanted = np.zeros_like(x)
  for i in range(4):
    for j in range(5):
      mean = padded[:, i : i + 3, j : j + 3].sum((1, 2)) / 9
      wanted[:, i, j] = x[:, i, j] / (1 + 5e-5 * mean) ** 0.75
  got = caffe.normalised(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  assert np.abs(wanted / x).min() < 0.9


# Options.


@deep_models
def test_bfloat16_is_for_what_is_computed_only(name):
  model, params, state, inputs = shapes(name, compute_dtype='bfloat16')
  assert (params, state) == shapes(name)[1:3]

  def loss_fn(params, state, inputs):
    logits, state = model.apply(params, state, inputs, True)
    return logits.sum(), (logits, state)

  grad_fn = jax.grad(loss_fn, has_aux=True)
  grads, (logits, after) = jax.eval_shape(grad_fn, params, state, inputs)
  assert grads == params
  assert after == state
  assert logits.dtype == jnp.float32
  jaxpr = jax.make_jaxpr(grad_fn)(params, state, inputs)
  convolutions = list(equations(jaxpr, 'conv_general_dilated'))
  assert len(convolutions) >= 3 * 16 - 1  # the images have no gradient
  for eqn in convolutions:
    assert {str(v.aval.dtype) for v in eqn.invars} == {'bfloat16'}
  for eqn in equations(jaxpr, 'rsqrt'):  # BatchNorm's
    assert str(eqn.invars[0].aval.dtype) == 'float32'


@pytest.mark.slow
@deep_models
def test_rematerialised_blocks_keep_less_for_the_backward_pass(name):
  kept = {}
  for remat in (False, True):
    model, params, state, inputs = shapes(name, remat=remat)
    assert (params, state) == shapes(name)[1:3]

    def backward(params, state, inputs, model=model):
      return jax.vjp(lambda p: model.apply(p, state, inputs, True)[0], params)[
        1
      ]

    kept[remat] = size(jax.eval_shape(backward, params, state, inputs))
  assert kept[True] - size(params) < 0.5 * (kept[False] - size(params))


SMALL = {  # one block per stage
  'basic': lambda **o: resnet.CifarResNet(3, length=1, **o),
  'bottleneck': lambda **o: resnet.ResNet(3, lengths=(1,), **o),
  'wide': lambda **o: wide_resnet.WideResNet(3, depth=10, widen=1, **o),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind',
  [
    'basic',
    *(
      pytest.param(kind, marks=pytest.mark.slow)
      for kind in ('bottleneck', 'wide')
    ),
  ],
)
def test_model_options_change_no_values(kind):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
  labels = jnp.arange(4) % 3
  plain = models.from_linen(SMALL[kind]())
  params, state = jax.tree.map(
    lambda leaf: rng.uniform(-0.2, 0.5, leaf.shape).astype(np.float32),
    jax.eval_shape(plain.init, jax.random.key(0), x),
  )

  def gradient_of(model):
    def loss_fn(params):
      logits, after = model.apply(params, state, x, True)
      log_probs = jax.nn.log_softmax(logits)
      loss = -jnp.take_along_axis(log_probs, labels[:, None], 1).mean()
      return loss, (logits, after)

    grad_fn = jax.grad(loss_fn, has_aux=True)
    return cases.fast_jit(grad_fn)(params)

  grads, (logits, after) = gradient_of(plain)
  again = gradient_of(models.from_linen(SMALL[kind](remat=True)))
  for a, b in zip(
    jax.tree.leaves((grads, (logits, after))),
    jax.tree.leaves(again),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  half = models.from_linen(SMALL[kind](dtype=jnp.bfloat16))
  apply = cases.fast_jit(half.apply, static_argnums=3)
  shorter, _ = apply(params, state, x, True)
  spread = float(jnp.std(logits))
  assert spread > 0
  assert 0 < float(jnp.abs(shorter - logits).max()) < 0.3 * spread


def test_another_dtype_is_refused():
  with pytest.raises(ValueError, match='float16: must be one of float32, bf'):
    models.resnet20(10, compute_dtype='float16')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'model': 'mlp', 'remat': True},
      r'--remat=True: taken by .*resnet20.* not by --model=mlp$',
    ),
    (
      {'model': 'cnn3', 'compute_dtype': 'bfloat16'},
      r'--compute_dtype=bfloat16: taken by .*wrn_16_4.* not by --model=cnn3$',
    ),
    (
      {'model': 'resnet20', 'compute_dtype': 'half'},
      '--compute_dtype=half: must be one of float32, bfloat16$',
    ),
  ],
)
def test_options_that_a_model_does_not_take_are_refused(fields, message):
  with pytest.raises(settings_lib.SettingError, match=message):
    check.check(settings_lib.Settings(**fields))


def test_settings_pass_their_options_to_the_model():
  settings = check.check(
    settings_lib.Settings(
      model='resnet50', compute_dtype='bfloat16', remat=True
    )
  )
  options = settings.model_options()
  assert options == {'compute_dtype': 'bfloat16', 'remat': True}
  assert settings_lib.Settings().model_options() == {}


# Runs.


@pytest.mark.parametrize(
  ('name', 'convolutions'),
  [('mlp_bn', 0), ('cnn', 3), ('resnet20', 19), ('wrn_16_4', 16)],
)
def test_convolutions_of_a_job_are_counted(name, convolutions):
  model, params, state, inputs = shapes(name)

  def loss_fn(params, model_state, batch, key):
    del key
    logits, model_state = model.apply(params, model_state, batch, True)
    return logits.mean(), model_state

  job = ga_jax.Job(
    loss_fn,
    params,
    lambda batch_id: np.zeros(inputs.shape, np.float32),
    rules.asgd(0.1),
    policies.asynchronous(),
    model_state=state,
    stats_momentum=0.9,
  )
  # For values, parameters and inputs; the images have no gradient.
  assert lengths.convolutions(job) == max(3 * convolutions - 1, 0)


def test_blocks_of_deep_networks_are_short():
  found = [lengths.block_length(n, None) for n in (0, 2, 8, 17, 56, 158)]
  assert found == [lengths.SCANNED_BLOCK, 8, 8, 3, 1, 1]
  assert lengths.block_length(8, 5) == 5  # no longer than an epoch
  assert lengths.block_length(56, 5) == 1


def test_unrolled_blocks_have_no_loop(monkeypatch):
  """Nor has the one arrival that is left: convolutions in a loop are slow."""
  jaxprs, compiled_block = {}, blocks.compiled_block

  def traced(*arguments):
    run = compiled_block(*arguments)

    def call(carry, steps, *rest):
      jaxpr = jax.make_jaxpr(run)(carry, steps, *rest)
      jaxprs[len(steps.weight)] = jaxpr
      return run(carry, steps, *rest)

    return call

  monkeypatch.setattr(blocks, 'compiled_block', traced)
  monkeypatch.setattr(lengths, 'convolutions', lambda job: 8)
  result = ga_jax.simulate(
    ga_jax.Job(
      lambda params, state, batch, key: (jnp.sum(params * batch), state),
      np.ones(3, np.float32),
      lambda batch_id: np.full(3, batch_id, np.float32),
      rules.asgd(0.1, momentum=0.0),
      policies.asynchronous(),
    ),
    clocks.constant(),
    num_workers=2,
    num_batches=5,
    block=2,
  )
  np.testing.assert_allclose(result.params, np.zeros(3), atol=1e-6)
  assert set(jaxprs) == {1, 2}
  for jaxpr in jaxprs.values():
    assert not list(equations(jaxpr, 'while'))
  assert not list(equations(jaxprs[1], 'scan'))
  for scan in equations(jaxprs[2], 'scan'):
    assert scan.params['unroll'] == scan.params['length'] == 2


def train(workdir, *flags):
  """Runs the script on 16 images of noise; returns its summary."""
  rng = np.random.default_rng(0)
  path = os.path.join(workdir, 'noise.npz')
  x = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
  y = np.arange(20) % 10
  np.savez(path, x_train=x[:16], y_train=y[:16], x_test=x[16:], y_test=y[16:])
  folder = os.path.join(workdir, 'run')
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'experiments.train', '--dataset=npz'),
      *(f'--data_path={path}', f'--workdir={folder}', '--batch_size=8'),
      *('--epochs=1', '--workers=2', '--method=ga', '--learning_rate=0.01'),
      *flags,
    ],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  with open(os.path.join(folder, 'summary.json')) as file:
    return json.load(file)


@pytest.mark.slow
def test_resnet20_trains(tmp_path):
  summary = train(tmp_path, '--model=resnet20', '--augment')
  assert (summary['updates'], summary['batches']) == (2, 2)
  assert not summary['diverged']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['wrn_16_4', 'resnet50'])
def test_deeper_networks_train_in_bfloat16(name, tmp_path):
  flags = (f'--model={name}', '--compute_dtype=bfloat16', '--remat')
  summary = train(tmp_path, *flags)
  assert (summary['updates'], summary['batches']) == (2, 2)
  assert not summary['diverged']
