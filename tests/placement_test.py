"""A worker with several devices computes what one with a single device does."""

import functools

import jax
import numpy as np
import optax
import pytest

import ga_jax
from ga_jax import models, policies, programs, rules
from ga_jax.executors import exact
from ga_jax.live import threads
from ga_jax.models.mlp import MLP
from ga_jax.record import trace
from ga_jax.workers import placement
from tests import cases

BATCH = 8


@pytest.fixture(autouse=True)
def relaxed():
  """Models of Flax need NumPy's promotion of ranks."""
  with jax.numpy_rank_promotion('allow'):
    yield


@functools.cache
def job_of(model_name: str, program=programs.gradient) -> ga_jax.Job:
  """Sixteen numbers to three classes."""
  module = MLP(3, (32,), batch_norm=model_name == 'mlp_bn')
  model = models.base.from_linen(module)
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(256, 16)).astype(np.float32)
  labels = np.argmax(inputs @ rng.normal(size=(16, 3)), -1).astype(np.int32)
  params, stats = cases.fast_jit(model.init)(jax.random.key(0), inputs[:1])

  def loss_fn(params, model_state, batch, key):
    del key
    logits, model_state = model.apply(params, model_state, batch[0], True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return losses.mean(), model_state

  def batch_fn(batch_id):
    rows = np.random.default_rng([1, batch_id]).integers(0, 256, BATCH)
    return inputs[rows], labels[rows]

  return ga_jax.Job(
    loss_fn,
    params,
    batch_fn,
    cases.rule('ga', 0.02) if program is programs.gradient else PLAIN,
    policies.asynchronous(),
    model_state=stats,
    stats_momentum=model.stats_momentum,
    program=program,
  )


PLAIN = rules.asgd(0.02, momentum=0.0)


def shared(size: int) -> placement.Placement:
  return placement.shared_out(jax.local_devices(), size)[0]


# dana_slim's workers keep a state, which goes from ticket to ticket.
@pytest.mark.parametrize(
  ('model', 'size', 'program'),
  [
    ('mlp', 2, programs.gradient),
    pytest.param('mlp_bn', 4, programs.gradient, marks=pytest.mark.slow),
    pytest.param('mlp', 4, programs.gradient, marks=pytest.mark.slow),
    pytest.param('mlp_bn', 2, programs.gradient, marks=pytest.mark.slow),
    pytest.param('mlp_bn', 2, programs.dana_slim, marks=pytest.mark.slow),
  ],
)
def test_a_run_with_several_devices_per_worker_replays(model, size, program):
  job = job_of(model, program)
  run = threads.Threads(
    job,
    num_workers=3,  # more than there are placements
    num_batches=60,
    devices_per_worker=size,
  )
  result = run.run()
  result.trace.verify()
  again, metrics, _ = exact.execute(job, result.trace, placement=shared(size))
  assert cases.same_bits(again, result.state)
  assert cases.same_bits(metrics, result.metrics)
  # One device sums in another order, and rounding grows along the way.
  short = result.trace._replace(events=result.trace.events[:40])
  many, seen, _ = exact.execute(job, short, placement=shared(size))
  one, alone, _ = exact.execute(job, short)
  assert int(one.version) > 10
  assert cases.distance(many.params, one.params) < 1e-5
  np.testing.assert_allclose(seen['loss'], alone['loss'], rtol=1e-5)
  if job.model_state != ():
    assert cases.distance(many.model_state, one.model_state) < 1e-5
  assert not cases.same_bits(many.params, one.params)  # it was shared


def test_examples_are_split_and_the_rest_is_on_every_device():
  where = shared(4)
  inputs, number = where.batches((np.zeros((2, BATCH, 3)), np.zeros(2)))
  assert {s.data.shape for s in inputs.addressable_shards} == {(2, 2, 3)}
  assert {s.data.shape for s in number.addressable_shards} == {(2,)}
  assert len(inputs.devices()) == len(number.devices()) == 4
  everywhere = where.replicated(np.zeros((3, 3)))
  assert {s.data.shape for s in everywhere.addressable_shards} == {(3, 3)}


def test_devices_are_shared_out_in_turn():
  devices = jax.local_devices()
  assert len(devices) == 4
  for size, groups in ((1, 4), (2, 2), (3, 1), (4, 1)):
    found = placement.shared_out(devices, size)
    assert [d for one in found for d in one.devices] == devices[: groups * size]
  for size in (0, 5):
    with pytest.raises(ValueError, match=f'from 1 to .*=4, got {size}'):
      placement.shared_out(devices, size)


def test_batches_that_cannot_be_shared_are_refused():
  with pytest.raises(ValueError, match='batches of 8 examples cannot'):
    shared(3).batches(np.zeros((1, BATCH, 3)))


def test_a_killed_run_is_recovered_on_the_workers_devices(tmp_path):
  """What its devices would give differs from what one of them gives."""
  job, path, part = job_of('mlp'), tmp_path / 'rows', tmp_path / 'part'
  options = {'num_workers': 2, 'num_batches': 60, 'devices_per_worker': 2}
  live = ga_jax.Live(trace_path=str(path))
  whole = threads.Threads(job, live=live, **options).run()
  part.write_bytes(path.read_bytes()[: 90 * trace.ROW_DTYPE.itemsize])
  live = ga_jax.Live(trace_path=str(part), recover=True)
  rest = threads.Threads(job, live=live, **options).run()
  assert (rest.trace.events[:90] == whole.trace.events[:90]).all()
  again, metrics, _ = exact.execute(job, rest.trace, placement=shared(2))
  assert cases.same_bits(again, rest.state)
  assert cases.same_bits(metrics, rest.metrics)
