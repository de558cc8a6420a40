"""The papers' networks against PyTorch: values, gradients, statistics.

Each network is written here again from its paper, with PyTorch's functions on
the parameters of ours, and compared in double precision. Needs PyTorch:

  pip install torch==2.13.0
  python -m pytest tests/models_torch_test.py -m torch
"""

import functools

import jax
import numpy as np
import pytest

from ga_jax import models
from tests import cases

pytestmark = cases.AGAINST_TORCH
CLASSES = 7


class Oracle:
  """PyTorch's layers on parameters and statistics named as ours are.

  Attributes:
    train: BatchNorm normalises by the batch.
    params: by name, e.g. 'stage1_block1/Conv_0/kernel'; they have gradients.
    stats: running statistics; training changes them as PyTorch does.
    counts: how many values each BatchNorm saw of a channel.
  """

  def __init__(self, params, stats, train):
    import torch  # takes seconds, so only where it is used

    self.torch, self.f = torch, torch.nn.functional
    self.train, self.counts = train, {}
    self.params = {k: self.tensor(v) for k, v in named(params).items()}
    self.stats = {k: self.tensor(v) for k, v in named(stats).items()}
    for value in self.params.values():
      value.requires_grad_()

  def tensor(self, x):
    """Double precision; kernels [.., in, out] become [out, in, ..]."""
    x = np.array(x)
    if x.ndim > 1:
      x = np.moveaxis(x, (-1, -2), (0, 1))
    return self.torch.tensor(x, dtype=self.torch.float64)

  def conv(self, name, x, stride=1, padding=0):
    kernel = self.params[f'{name}/kernel']
    bias = self.params.get(f'{name}/bias')
    return self.f.conv2d(x, kernel, bias, stride, padding)

  def norm(self, name, x):
    self.counts[name] = x.numel() // x.shape[1]
    return self.f.batch_norm(
      x,
      self.stats[f'{name}/mean'],
      self.stats[f'{name}/var'],
      self.params[f'{name}/scale'],
      self.params[f'{name}/bias'],
      training=self.train,
      momentum=0.1,
      eps=1e-5,
    )

  def dense(self, x):
    kernel, bias = self.params['Dense_0/kernel'], self.params['Dense_0/bias']
    return self.f.linear(x, kernel, bias)


def named(tree):
  """The leaves of nested dicts, by their path."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {'/'.join(str(k.key) for k in path): leaf for path, leaf in flat}


# The networks, on images [B, C, H, W].


def resnet20(o, x):
  """He et al., section 4.2, option A."""
  x = o.f.relu(o.norm('BatchNorm_0', o.conv('Conv_0', x, padding=1)))
  for stage in range(3):
    for i in range(3):
      block = f'stage{stage + 1}_block{i + 1}'
      stride = 2 if stage and not i else 1
      y = o.conv(f'{block}/Conv_0', x, stride, 1)
      y = o.f.relu(o.norm(f'{block}/BatchNorm_0', y))
      y = o.norm(f'{block}/BatchNorm_1', o.conv(f'{block}/Conv_1', y, 1, 1))
      if stride == 2:
        x = o.f.avg_pool2d(x, 1, 2)  # a window of one pixel: every other one
        x = o.torch.cat([x, o.torch.zeros_like(x)], 1)
      x = o.f.relu(x + y)
  return o.dense(x.mean((2, 3)))


def resnet50(o, x):
  """He et al., table 1, strides in the 3x3 convolutions."""
  x = o.f.relu(o.norm('BatchNorm_0', o.conv('Conv_0', x, 2, 3)))
  x = o.f.max_pool2d(x, 3, 2, 1)
  for stage, length in enumerate((3, 4, 6, 3)):
    for i in range(length):
      block = f'stage{stage + 1}_block{i + 1}'
      stride = 2 if stage and not i else 1
      y = o.f.relu(o.norm(f'{block}/BatchNorm_0', o.conv(f'{block}/Conv_0', x)))
      y = o.conv(f'{block}/Conv_1', y, stride, 1)
      y = o.f.relu(o.norm(f'{block}/BatchNorm_1', y))
      y = o.norm(f'{block}/BatchNorm_2', o.conv(f'{block}/Conv_2', y))
      if not i:
        x = o.conv(f'{block}/Conv_3', x, stride)
        x = o.norm(f'{block}/BatchNorm_3', x)
      x = o.f.relu(x + y)
  return o.dense(o.f.adaptive_avg_pool2d(x, 1).flatten(1))


def wrn_16_4(o, x):
  """Zagoruyko and Komodakis: pre-activation, shared where the shape changes.

  Our convolutions are numbered in the order of their calls: where there is a
  shortcut, it is the first.
  """
  x = o.conv('Conv_0', x, padding=1)
  for stage in range(3):
    for i in range(2):
      block = f'stage{stage + 1}_block{i + 1}'
      stride = 2 if stage and not i else 1
      first = 0 if i else 1
      y = o.f.relu(o.norm(f'{block}/BatchNorm_0', x))
      if not i:
        x = o.conv(f'{block}/Conv_0', y, stride)
      y = o.conv(f'{block}/Conv_{first}', y, stride, 1)
      y = o.f.relu(o.norm(f'{block}/BatchNorm_1', y))
      x = x + o.conv(f'{block}/Conv_{first + 1}', y, 1, 1)
  x = o.f.relu(o.norm('BatchNorm_0', x))
  return o.dense(x.mean((2, 3)))


def cnn3(o, x):
  """Caffe's cifar10_full; its pooling rounds the number of windows up."""

  def normalised(x):
    mean = o.f.avg_pool2d(x**2, 3, 1, 1, count_include_pad=True)
    return x * (1 + 5e-5 * mean) ** -0.75

  x = o.conv('Conv_0', 64.0 * x, padding=2)
  x = normalised(o.f.relu(o.f.max_pool2d(x, 3, 2, ceil_mode=True)))
  x = o.f.relu(o.conv('Conv_1', x, padding=2))
  x = normalised(o.f.avg_pool2d(x, 3, 2, ceil_mode=True))
  x = o.f.relu(o.conv('Conv_2', x, padding=2))
  x = o.f.avg_pool2d(x, 3, 2, ceil_mode=True)
  return o.dense(x.permute(0, 2, 3, 1).flatten(1))  # flattened as ours


NETWORKS = {
  'resnet20': (resnet20, (6, 32, 32, 3)),
  'wrn_16_4': (wrn_16_4, (4, 16, 16, 3)),
  'resnet50': (resnet50, (3, 64, 64, 3)),
  'cnn3': (cnn3, (4, 32, 32, 3)),
}
networks = pytest.mark.parametrize('name', NETWORKS)


@functools.lru_cache
def problem(name):
  """(model, params, state, images, labels) in double precision, no zeros."""
  rng = np.random.default_rng(0)
  model = models.MODELS[name](CLASSES)
  shape = NETWORKS[name][1]
  params, state = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32)
  )

  def parameter(path, leaf):
    if path[-1].key == 'kernel':
      std = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      return rng.normal(0, std, leaf.shape)
    return rng.normal(path[-1].key == 'scale', 0.1, leaf.shape)

  params = jax.tree_util.tree_map_with_path(parameter, params)
  state = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape), state)
  images = rng.normal(size=shape)
  return model, params, state, images, rng.integers(0, CLASSES, shape[0])


@functools.lru_cache
def ours(name, train):
  """(loss, logits, state, gradients)."""
  model, params, state, images, labels = problem(name)

  def loss_fn(params):
    logits, after = model.apply(params, state, images, train)
    losses = -jax.nn.log_softmax(logits)[np.arange(len(labels)), labels]
    return losses.mean(), (logits, after)

  grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (loss, (logits, after)), grads = grad_fn(params)
  assert logits.dtype == np.float64
  return loss, logits, after, grads


@functools.lru_cache
def theirs(name, train):
  """(loss, logits, oracle after the backward pass)."""
  _, params, state, images, labels = problem(name)
  o = Oracle(params, state, train)
  logits = NETWORKS[name][0](o, o.torch.tensor(images).permute(0, 3, 1, 2))
  loss = o.f.cross_entropy(logits, o.torch.tensor(labels))
  loss.backward()
  return loss.item(), logits.detach().numpy(), o


@networks
@pytest.mark.parametrize('train', [True, False])
def test_values_and_gradients_are_pytorch_s(name, train, x64):
  loss, logits, after, grads = ours(name, train)
  their_loss, their_logits, o = theirs(name, train)
  assert cases.distance(loss, their_loss) < 1e-8
  assert cases.distance(logits, their_logits) < 1e-8
  grads = named(grads)
  assert set(grads) == set(o.params)
  largest = max(float(np.linalg.norm(g)) for g in grads.values())
  for path, grad in grads.items():
    wanted, got = o.params[path].grad.numpy(), o.tensor(grad).numpy()
    error = np.linalg.norm(got - wanted)
    assert error < 1e-8 * max(np.linalg.norm(wanted), 1e-3 * largest), path
  if not train:
    assert named(after).keys() == o.stats.keys()
    for path, value in named(after).items():
      np.testing.assert_array_equal(value, o.stats[path].numpy())


@pytest.mark.parametrize('name', [n for n in NETWORKS if n != 'cnn3'])
def test_running_statistics_are_pytorch_s_but_for_its_variance(name, x64):
  """Flax keeps the batch's variance, PyTorch n / (n − 1) times as much.

  With n values per channel and momentum m = 0.9, theirs after one batch is
  m v + (1 − m) n / (n − 1) b, ours m v + (1 − m) b.
  """
  model, _, before, _, _ = problem(name)
  _, _, after, _ = ours(name, True)
  _, _, o = theirs(name, True)
  m, before = model.stats_momentum, named(before)
  assert named(after).keys() == o.stats.keys()
  for path, value in named(after).items():
    norm, kind = path.rsplit('/', 1)
    wanted, start = o.stats[path].numpy(), before[path]
    if kind == 'var':
      n = o.counts[norm]
      batch = (wanted - m * start) / (1 - m) * (n - 1) / n
      wanted = m * start + (1 - m) * batch
    assert cases.distance(value, wanted) < 1e-8, path
    assert cases.distance(value, start) > 1e-3, path
