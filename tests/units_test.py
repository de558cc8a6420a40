"""Results do not depend on the units of what is measured.

Powers of two multiply without rounding, so most of these compare bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tasks
from experiments.running import train
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax import clocks, data, policies, rules
from ga_jax.simulation import virtual_cluster
from tests import data_test, method_cases


@pytest.fixture(scope='module')
def digits():
  """Digits as vectors of floats; pixels at the edge are constant."""
  found = data.digits()
  return {
    f'{key}_{part}': array
    for part, split in (('train', found.train), ('test', found.test))
    for key, array in (
      ('x', split.inputs.reshape(len(split.labels), 64).astype(np.float64)),
      ('y', split.labels),
    )
  }


def trained(arrays, folder, **own):
  """A short training, as the commands do it."""
  settings = check.check(
    settings_lib.Settings(
      dataset='npz',
      data_path=data_test.write_npz(folder, **arrays),
      holdout=300,
      model='mlp',
      method='ga',
      workers=4,
      epochs=1.0,
      **own,
    )
  )
  done = train.train(settings)
  task, state = tasks.task_of(settings), done.result.state
  logits = task.predict(state.params, state.model_state, arrays['x_test'])
  wrong = np.argmax(logits, -1) != arrays['y_test']
  assert np.mean(wrong) == done.summary['test_error']
  kept = ('test_error', 'validation_error', 'train_loss', 'mean_gap')
  return {k: done.summary[k] for k in kept}, done.result.metrics['loss']


@pytest.fixture(scope='module')
def plain(digits, tmp_path_factory):
  found = trained(digits, tmp_path_factory.mktemp('plain'))
  assert found[0]['test_error'] < 0.3  # it learns
  return found


@pytest.mark.parametrize(
  'power', [pytest.param(-60, marks=pytest.mark.slow), 60]
)
def test_scaled_data_train_to_the_same_bits(digits, plain, power, tmp_path):
  other = {
    key: np.ldexp(array, power) if key.startswith('x') else array
    for key, array in digits.items()
  }
  summary, losses = trained(other, tmp_path)
  assert summary == plain[0]
  assert np.array_equal(losses, plain[1])


def test_shifted_data_train_to_the_same_errors(digits, plain, tmp_path):
  other = {
    key: array + 1e6 * 255 if key.startswith('x') else array
    for key, array in digits.items()
  }
  summary, losses = trained(other, tmp_path)
  for name in ('test_error', 'validation_error'):
    assert summary[name] == plain[0][name]
  np.testing.assert_allclose(losses, plain[1], rtol=1e-4)


# Times and losses: what policies decide by.


def played(policy, unit, loss_unit=1.0):
  """The record of a cluster whose times and losses are in some unit."""
  clock = clocks.heterogeneous(1, mean=unit)
  clock = clocks.with_communication(clock, latency=0.125 * unit)
  for worker, time, duration in ((1, 5.0, 20.0), (3, 9.0, np.inf)):
    clock = clocks.with_fault(
      clock,
      worker_id=worker,
      time=time * unit,
      duration=duration * unit,
      noticed_after=3.0 * unit,
    )

  def loss_fn(ticket):
    noise = np.random.default_rng(ticket.first_batch).uniform(0.5, 2.0)
    return loss_unit * noise / (1.0 + 0.1 * ticket.first_batch)

  books = virtual_cluster.play(
    policy, clock, num_workers=6, num_batches=150, loss_fn=loss_fn
  )
  *_, book = books
  found = book.trace(6)
  found.verify()
  return found.events


@pytest.mark.parametrize('name', policies.POLICIES)
@pytest.mark.parametrize('power', [-60, 60])
def test_policies_decide_the_same_in_other_units_of_time_and_loss(name, power):
  unit = 2.0**power
  policy = policies.make(name, 6)
  plain, other = played(policy, 1.0), played(policy, unit, 1 / unit)
  assert len(plain) == len(other)
  for column in plain.dtype.names:
    scale = unit if column == 'time' else 1
    if column == 'loss':
      scale = 1 / unit
    assert np.array_equal(scale * plain[column], other[column], equal_nan=True)


# Gradients: c times as large at the rate η / c.


SCALED = {
  name: case.scaled
  for name, case in method_cases.RULES.items()
  if case.scaled is not None
}


def path(arrive, c):
  """Parameters after every arrival of a scripted run."""
  rng = np.random.default_rng(0)
  params = jnp.asarray(rng.normal(size=5), jnp.float32)
  state, seen = None, [params]
  for step in range(6):
    late = min(step, 2)
    g = np.float32(np.cos(seen[-1 - late]) + 0.1 * rng.normal(size=5))
    extra = {
      'stale_params': seen[-1 - late],
      'staleness': np.int32(late),
      'worker_id': np.int32(step % 3),
      'count': np.int32(step),
    }
    params, state = arrive(np.float32(c), g, state, params, extra)
    seen.append(params)
  return np.stack(seen)


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('asgd', 'ga', 'penalize_gap')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in SCALED
  ],
)
def test_gradients_in_another_unit_make_the_same_path(name):
  @jax.jit
  def arrive(c, g, state, params, extra):
    rule = SCALED[name](c)
    state = rule.init(params) if state is None else state
    updates, state = rule.update(c * g, state, params, **extra)
    return jax.tree.map(jnp.add, params, updates), state

  plain = path(arrive, 1.0)
  assert np.ptp(plain, axis=0).min() > 0
  for c in (2.0**-20, 2.0**20):
    assert np.array_equal(path(arrive, c), plain)


def test_parameters_in_another_unit_have_the_same_penalties():
  """`penalize_gap` sees parameters alone, and has no ε."""
  link = rules.penalize_gap()
  update = jax.jit(link.update)

  def penalised(c):
    rng = np.random.default_rng(0)
    positions = c * rng.normal(size=(6, 4)).astype(np.float32)
    positions[:, 3] = c  # never moves
    state, grads = link.init(positions[0]), []
    for i, params in enumerate(positions):
      stale = positions[max(0, i - 2)] + np.float32(c) * (i > 0)
      g, state = update(
        jnp.ones(4), state, params, stale_params=stale, staleness=np.int32(i)
      )
      grads.append(g)
    return np.stack(grads)

  plain = penalised(1.0)
  assert np.all(plain[2:, :3] < 0.99)
  assert np.all(plain[:, 3] == 1)
  for power in (-40, 40):
    assert np.array_equal(penalised(2.0**power), plain)
