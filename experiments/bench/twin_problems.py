"""What is compared with PyTorch: models, data and parameters of both sides."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import byte_transformer
from ga_jax import data, models
from ga_jax.job import source as batches

CLASSES, EXAMPLES, SEED = 10, 1024, 0


class TwinProblem(NamedTuple):
  """A model and what it is measured on.

  Attributes:
    make: `make() -> models.Model`.
    shape: of one example; (L,) of a text.
    batch_size: examples per gradient.
    updates: per turn.
    twin: name of the class in `torch_twins`, and its arguments.
    on_cpu: whether the bound is meant for the CPU too.
  """

  make: Callable[[], models.Model]
  shape: tuple[int, ...]
  batch_size: int
  updates: int
  twin: tuple
  on_cpu: bool = False


PROBLEMS = {
  'mlp': TwinProblem(
    lambda: models.mlp(CLASSES), (784,), 64, 512, ('MLP', 784), on_cpu=True
  ),
  'transformer': TwinProblem(
    byte_transformer.byte_transformer,
    (32,),
    4,
    256,
    ('TorchByteTransformer', 32),
    on_cpu=True,
  ),
  'transformer_1024': TwinProblem(
    byte_transformer.byte_transformer,
    (64,),
    16,
    128,
    ('TorchByteTransformer', 64),
  ),
  'cnn_bn': TwinProblem(
    lambda: models.cnn_bn(CLASSES), (28, 28, 1), 64, 128, ('CNN',)
  ),
  'resnet20': TwinProblem(
    lambda: models.resnet20(CLASSES), (32, 32, 3), 32, 4, ('ResNet20',)
  ),
}


def examples(problem: TwinProblem) -> tuple[np.ndarray, np.ndarray]:
  """Random inputs and labels; of a text its next bytes."""
  rng = np.random.default_rng(SEED)
  if problem.make().reads == 'tokens':
    shape = EXAMPLES, problem.shape[0] + 1
    text = rng.integers(0, byte_transformer.BYTES, shape).astype(np.int32)
    return text[:, :-1], text[:, 1:]
  inputs = rng.normal(size=(EXAMPLES, *problem.shape)).astype(np.float32)
  return inputs, rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)


def source(problem: TwinProblem) -> batches.Source:
  """Shuffled batches of the examples, which are on the device once."""

  def load(resident, indices, key):
    del key
    return jax.tree.map(lambda x: x[indices], resident)

  return batches.Source(
    data.base.shuffled(EXAMPLES, problem.batch_size, SEED),
    load,
    jax.tree.map(jnp.asarray, examples(problem)),
  )


def initial(problem: TwinProblem):
  """(params, model_state) that both sides begin with."""
  inputs, _ = examples(problem)
  return problem.make().init(jax.random.key(SEED), jnp.asarray(inputs[:1]))
