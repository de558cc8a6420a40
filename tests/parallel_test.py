"""Several devices compute one simulation: the exact executor's bits."""

import collections
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from experiments.replaying import rounding
from experiments.running import devices as devices_lib
from experiments.running import train
from experiments.settings import check
from experiments.settings import table as settings_lib
from ga_jax import clocks, compression, policies, programs, rules
from ga_jax.executors.saving import Checkpoints
from ga_jax.record.checkpoints import CheckpointStore
from tests import cases

WORKERS = 6
PLAIN = rules.asgd(0.02, 0.0)  # one object: compiled once


def simulated(rule, policy='asynchronous', devices=None, **changes):
  of_job = {'loss_fn', 'params', 'batches', 'program', 'model_state'}
  own = {name: changes.pop(name) for name in of_job & changes.keys()}
  job = cases.tiny_job(rule, policies.make(policy, WORKERS), **own)
  arguments = {
    'num_workers': WORKERS,
    'num_batches': 61,
    'executor': 'exact',
    'devices': jax.local_devices()[:devices] if devices else devices,
    **changes,
  }
  clock = arguments.pop('clock', clocks.heterogeneous(0))
  before = threading.active_count()
  try:
    return ga_jax.simulate(job, clock, **arguments)
  finally:
    assert threading.active_count() == before  # no thread is left behind


def check_same_bits(rule, policy='asynchronous', devices=2, **changes):
  one = simulated(rule, policy, **changes)
  several = simulated(rule, policy, devices, **changes)
  assert one.executed == several.executed == len(one.metrics['loss'])
  assert (one.trace.events == several.trace.events).all()
  assert cases.same_bits(one.state, several.state)
  assert cases.same_bits(one.metrics, several.metrics)


@pytest.mark.parametrize(
  ('name', 'policy', 'devices'),
  [
    ('ga', 'asynchronous', 3),
    pytest.param('ga', 'softsync', 2, marks=pytest.mark.slow),
    ('asgd', 'synchronous', 3),
    ('asgd', 'ringmaster_stops', 2),  # tickets are revoked
    pytest.param('ormo', 'asynchronous', 2, marks=pytest.mark.slow),
    pytest.param('ga', 'k_sync', 3, marks=pytest.mark.slow),
    pytest.param('ga', 'backup_workers', 2, marks=pytest.mark.slow),
  ],
)
def test_several_devices_give_the_bits_of_one(name, policy, devices):
  check_same_bits(cases.rule(name, 0.02), policy, devices)


@pytest.mark.slow
def test_several_devices_give_the_bits_of_one_with_look_ahead():
  check_same_bits(rules.dana_ga(0.01, WORKERS), devices=3)


@functools.cache
def program(name):
  """A worker program with a state, or whose answer is finished at arrival."""
  if name == 'topk':
    return lambda loss_fn: compression.compressed(
      programs.gradient(loss_fn), compression.COMPRESSIONS['topk']()
    )
  arguments = {
    'local_sgd': {'learning_rate': 0.02, 'local_steps': 2},
    'easgd': {'learning_rate': 0.02, 'num_workers': 6, 'local_steps': 2},
  }.get(name, {})
  return lambda loss_fn: programs.PROGRAMS[name](loss_fn, **arguments)


@pytest.mark.parametrize(
  'name',
  [
    'easgd',  # state, exchange, two batches per ticket
    'topk',  # state, decode
    pytest.param('dana_slim', marks=pytest.mark.slow),
    pytest.param('local_sgd', marks=pytest.mark.slow),
  ],
)
def test_several_devices_give_the_bits_of_one_with_lost_workers(name):
  clock = clocks.with_fault(clocks.heterogeneous(0), worker_id=2, time=4.0)
  clock = clocks.with_fault(clock, worker_id=1, time=2.0, duration=3.0)
  check_same_bits(PLAIN, program=program(name), clock=clock, num_batches=60)


@pytest.mark.slow
def test_several_devices_give_the_bits_of_one_with_a_short_last_ticket():
  check_same_bits(PLAIN, program=program('easgd'), num_batches=61, devices=3)


@pytest.mark.slow
def test_double_precision_reaches_the_threads_of_devices(x64):
  del x64
  one, several = (
    ga_jax.simulate(
      cases.tiny_job(
        cases.rule('ga', 0.02), policies.asynchronous(), np.float64
      ),
      clocks.homogeneous(0),
      num_workers=4,
      num_batches=20,
      executor='exact',
      devices=devices,
    )
    for devices in (None, jax.local_devices()[:2])
  )
  assert several.params['w'].dtype == np.float64
  assert cases.same_bits(one.state, several.state)


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
  arguments = {'program': program('topk'), 'block': 7}
  whole = simulated(PLAIN, **arguments)
  for devices, stop_at in ((2, 20), (None, 40), (2, 10**9)):
    part = simulated(
      PLAIN,
      devices=devices,
      checkpoints=Checkpoints(CheckpointStore(str(tmp_path)), 15),
      observe=lambda batches, *_, stop_at=stop_at: batches >= stop_at,
      **arguments,
    )
  assert part.executed == 61
  assert cases.same_bits(whole.state, part.state)
  assert cases.same_bits(whole.metrics, part.metrics)


def test_every_gradient_is_computed_once_and_few_of_them_ahead():
  _, _, _, batch_fn = cases.tiny_problem()
  asked, applied, most = collections.Counter(), 0, 0

  def counted(batch_id):
    nonlocal most
    asked[batch_id] += 1
    most = max(most, asked.total() - applied)
    return batch_fn(batch_id)

  def observe(batches, state, metrics):
    nonlocal applied
    del state, metrics
    applied = batches

  simulated(
    cases.rule('ga', 0.02),
    devices=2,
    batches=counted,
    observe=observe,
    num_workers=40,
    num_batches=200,
  )
  assert asked == dict.fromkeys(range(200), 1)
  assert most <= 5  # two threads are four ahead of the one that is applied


def test_devices_compute_at_the_same_time():
  """Each of two gradients waits for the other to have begun."""
  met = threading.Barrier(2)
  pairs = []

  def meet():
    pairs.append(met.wait(60.0))
    return np.float32(0)

  def loss_fn(params, model_state, batch, key):
    del key
    zero = jax.pure_callback(meet, jax.ShapeDtypeStruct((), jnp.float32))
    return jnp.mean((batch - params) ** 2) + zero, model_state

  ga_jax.simulate(
    ga_jax.Job(
      loss_fn,
      np.zeros((), np.float32),
      lambda batch_id: np.ones(4, np.float32),
      rules.asgd(0.1),
      policies.synchronous(),
    ),
    clocks.constant(),
    num_workers=2,
    num_batches=4,
    devices=jax.local_devices()[:2],
  )
  assert sorted(pairs) == [0, 0, 1, 1]


@pytest.mark.parametrize('failing', ['loss_fn', 'batches'])
def test_an_error_on_a_device_is_raised_as_it_is(failing):
  _, _, _, batch_fn = cases.tiny_problem()

  def broken_loss(*arguments):
    raise ArithmeticError('this loss is broken')

  def broken_batches(batch_id):
    if batch_id == 20:
      raise ArithmeticError('this batch is broken')
    return batch_fn(batch_id)

  broken = {'loss_fn': broken_loss, 'batches': broken_batches}[failing]
  with pytest.raises(ArithmeticError, match='is broken'):
    simulated(cases.rule('ga', 0.02), devices=3, **{failing: broken})


def test_policies_that_need_losses_are_refused():
  with pytest.raises(ValueError, match='decides by losses'):
    simulated(cases.rule('ga', 0.02), 'abs', devices=2)
  with pytest.raises(ValueError, match='at least one'):
    simulated(cases.rule('ga', 0.02), devices=[])


@pytest.mark.parametrize(
  'fields',
  [
    {'simulate_devices': '0'},
    {'simulate_devices': 'two'},
    {'simulate_devices': 'all', 'runtime': 'threads'},
    {'simulate_devices': '2', 'method': 'abs'},
  ],
)
def test_bad_values_of_simulate_devices_are_refused(fields):
  with pytest.raises(settings_lib.SettingError, match='--simulate_devices='):
    check.check(settings_lib.Settings(workers=4, **fields))


def test_more_devices_than_there_are_are_refused():
  settings = settings_lib.Settings(workers=4, simulate_devices='99')
  with pytest.raises(settings_lib.SettingError, match='has 4 devices'):
    devices_lib.use(check.check(settings))


@pytest.mark.slow
@pytest.mark.optax_promotes
def test_simulate_devices_gives_the_bits_of_the_exact_executor():
  common = {'workers': 4, 'epochs': 0.4, 'model': 'mlp'}
  one, several = (
    train.train(
      check.check(settings_lib.Settings(**common, **fields)),
      evaluate_epochs=False,
    )
    for fields in ({'executor': 'exact'}, {'simulate_devices': 'all'})
  )
  assert not rounding.differing(
    (one.result.params, one.result.state.model_state),
    (several.result.params, several.result.state.model_state),
  )
