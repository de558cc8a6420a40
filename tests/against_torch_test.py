"""The twins of `experiments.bench.against_torch`: the same models, the same GA.

Needs PyTorch:

  pip install torch==2.13.0
  python -m pytest tests/against_torch_test.py -m torch
"""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import twin_problems
from tests import cases

pytestmark = cases.AGAINST_TORCH
problems = pytest.mark.parametrize(  # transformer_1024 is the transformer
  'name', [name for name in twin_problems.PROBLEMS if '1024' not in name]
)
WORKERS = 4


def small(name):
  """A problem with a batch that costs little."""
  problem = twin_problems.PROBLEMS[name]
  return problem._replace(batch_size=min(8, problem.batch_size))


def in_double(tree):
  return jax.tree.map(
    lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree
  )


def pair(name, monkeypatch, kind='loop', trace=None):
  """(ours, theirs) in double precision, from the same parameters."""
  import torch

  from experiments.bench import against_torch  # defines flags

  initial, examples = twin_problems.initial, twin_problems.examples
  monkeypatch.setattr(twin_problems, 'initial', lambda p: in_double(initial(p)))
  monkeypatch.setattr(
    twin_problems, 'examples', lambda p: in_double(examples(p))
  )
  torch.set_default_dtype(torch.float64)
  try:
    problem = small(name)
    ours = against_torch.Ours(problem, WORKERS)
    theirs = against_torch.theirs(
      problem, WORKERS, kind, torch.device('cpu'), trace
    )
  finally:
    torch.set_default_dtype(torch.float32)
  return ours, theirs


def assert_twins(module, tree, values, tolerance):
  """Whether torch's values by name are a tree of Flax's, near enough."""
  from experiments.bench import torch_twins

  flat = flax.traverse_util.flatten_dict(tree, sep='.')
  assert {torch_twins.name_of(path) for path in flat} == values.keys()
  largest = max(float(np.linalg.norm(leaf)) for leaf in flat.values())
  for path, leaf in flat.items():
    wanted = values[torch_twins.name_of(path)].numpy()
    got = torch_twins.array_of(module, path, leaf)
    error = np.linalg.norm(got - wanted)
    scale = max(np.linalg.norm(wanted), 1e-3 * largest)
    assert error < tolerance * scale, (path, error, scale)


@problems
def test_loss_and_gradient_equal_those_of_the_pytorch_twin(
  name, monkeypatch, x64
):
  ours, theirs = pair(name, monkeypatch)
  params, model_state = twin_problems.initial(small(name))
  inputs, labels = twin_problems.examples(small(name))
  rows = ours.source.batch_fn(3)
  batch = jnp.asarray(inputs[rows]), jnp.asarray(labels[rows])
  grad_fn = jax.jit(jax.value_and_grad(ours.loss_fn, has_aux=True))
  (loss, _), grads = grad_fn(params, model_state, batch, None)
  wanted = theirs.loss_fn(theirs.model, *theirs.batch_fn(3))
  wanted.backward()
  assert loss.dtype == np.float64
  # JAX's attention has its softmax in float32.
  np.testing.assert_allclose(loss, wanted.item(), rtol=1e-8)
  module = dict(theirs.model.named_parameters())
  counts = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert counts == sum(p.numel() for p in module.values())
  assert_twins(
    theirs.model, grads, {k: p.grad for k, p in module.items()}, 1e-6
  )


@pytest.mark.parametrize('kind', ['loop', 'foreach'])
@problems
def test_pytorch_gives_the_same_parameters_from_the_same_trace(
  name, kind, monkeypatch, x64
):
  """20 updates of Gap-Aware; most of them stale."""
  from experiments.bench import torch_simulation

  updates = 20
  trace = []
  ours, theirs = pair(name, monkeypatch, kind, iter(trace))
  result = ours.run(updates)
  arrivals = result.trace.applied()
  trace += [
    torch_simulation.Arrival(int(row['worker_id']), int(row['first_batch']))
    for row in arrivals
  ]
  assert (arrivals['staleness'] > 0).sum() > updates // 2
  theirs.run(updates)
  assert len(theirs.losses) == updates
  np.testing.assert_allclose(
    [loss.item() for loss in theirs.losses], result.metrics['loss'], rtol=1e-5
  )
  values = {k: p.detach() for k, p in theirs.model.named_parameters()}
  assert_twins(theirs.model, result.params, values, 1e-5)


def test_workers_of_the_event_heap_take_the_next_batch_in_turn():
  from experiments.bench import torch_simulation

  heap = torch_simulation.event_heap(WORKERS, seed=0)
  arrivals = [next(heap) for _ in range(200)]
  assert {a.worker_id for a in arrivals} == set(range(WORKERS))
  batches = [a.batch_id for a in arrivals]
  assert len(set(batches)) == 200
  assert max(batches) < 200 + WORKERS
  counts = np.bincount([a.worker_id for a in arrivals])
  assert counts.min() > 40  # equal machines


def test_parameters_that_do_not_fit_the_twin_are_refused():
  from experiments.bench import torch_twins

  params, _ = twin_problems.initial(small('cnn_bn'))
  with pytest.raises(ValueError, match=r'no twin: .* differ'):
    torch_twins.load(torch_twins.MLP(784), params)
  params, _ = twin_problems.initial(small('mlp'))
  with pytest.raises(ValueError, match=r'no twin: Dense_0.weight is \(128, 4'):
    torch_twins.load(torch_twins.MLP(4), params)
