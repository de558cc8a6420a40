"""What users pass instead of what is wanted: one line says what that is."""

import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax.guards import memory
from ga_jax.job import source as source_lib
from ga_jax.workers import worker

pytestmark = pytest.mark.usefixtures('quick_compiler')


def run(**wrong):
  given = {
    'loss_fn': lambda p, state, x, key: (jnp.mean((x @ p) ** 2), state),
    'params': jnp.zeros(4),
    'batches': lambda batch_id: np.ones((8, 4), np.float32),
    'rule': ga_jax.gap_aware(0.1),
    'policy': ga_jax.policies.asynchronous(),
  }
  clock = wrong.pop('clock', ga_jax.clocks.homogeneous(seed=0))
  how = {'num_workers': 2, 'num_batches': 4}
  for name in ('num_workers', 'num_batches', 'block', 'executor', 'live'):
    how |= {name: wrong.pop(name)} if name in wrong else {}
  if how.get('executor') == 'threads':
    del how['executor']
    return ga_jax.run_on_threads(ga_jax.Job(**{**given, **wrong}), **how)
  return ga_jax.simulate(ga_jax.Job(**{**given, **wrong}), clock, **how)


@pytest.mark.parametrize(
  ('wrong', 'said'),
  [
    ({'policy': 'asynchronous'}, r'policy must be .* got .asynchronous'),
    ({'policy': ga_jax.policies.asynchronous}, 'policy must be a Policy'),
    ({'clock': None}, 'clock must be a Clock, such as .* got None'),
    ({'rule': ga_jax.gap_aware}, 'a rule must be an optax transformation'),
    ({'rule': 0.1}, 'a rule must be an optax transformation.* got 0.1'),
    ({'batches': [1, 2]}, 'batches must be a function .* got .*list'),
    (
      {'loss_fn': lambda p, state, x, key: jnp.mean(x @ p)},
      r'loss_fn\(params.*must return two values',
    ),
    (
      {'loss_fn': lambda p, state, x, key: (x @ p, state)},
      r'the loss must be a scalar, got shape \(8,\)',
    ),
  ],
)
def test_a_wrong_argument_is_refused_with_what_is_wanted(wrong, said):
  with pytest.raises(TypeError, match=said) as raised:
    run(**wrong)
  assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize('executor', ['fast', 'exact', 'threads'])
@pytest.mark.parametrize(
  ('wrong', 'error', 'said'),
  [
    ({'batches': lambda i: None}, TypeError, r'batch_fn\(0\) must .* got None'),
    ({'batches': lambda i: {}}, TypeError, r'batch_fn\(0\) must .* got {}'),
    ({'batches': lambda i: 'abc'}, TypeError, r'batch_fn\(0\) must .* .abc'),
    (
      {'params': {'n': jnp.zeros(2, int)}},
      TypeError,
      r"params\['n'\] .* int32",
    ),
    ({'params': [1, 2]}, TypeError, r'params\[0\] must hold .*, got int'),
    ({'params': {'w': 'a'}}, TypeError, r"params\['w'\] must hold .* got str"),
    ({'params': {}}, TypeError, r'params must be a pytree of arrays, got {}'),
    ({'params': None}, TypeError, 'params must be .* got None'),
    ({'params': jnp.full(4, jnp.nan)}, ValueError, 'params must be finite at'),
    (
      {'loss_fn': lambda p, state, x, key: (None, state)},
      TypeError,
      'the loss must be a real number, got None',
    ),
    (
      {'loss_fn': lambda p, state, x, key: (jnp.int32(1), state)},
      TypeError,
      'the loss must be a real number, got int32',
    ),
  ],
)
def test_what_nothing_can_be_trained_with_is_named(
  wrong, error, said, executor
):
  with pytest.raises(error, match=said) as raised:
    run(executor=executor, **wrong)
  assert len(str(raised.value).splitlines()) == 1
  if 'params' in wrong:
    with pytest.raises(error, match=said):
      ga_jax.Server(
        wrong['params'],
        ga_jax.gap_aware(0.1),
        ga_jax.policies.asynchronous(),
        num_workers=1,
        num_batches=1,
      )


def test_a_batch_of_another_shape_is_named():
  def batches(batch_id):
    return {'x': np.ones((8 + batch_id % 2, 4), np.float32)}

  source = ga_jax.Source(batches)
  with pytest.raises(ValueError, match=r'batch_fn\(3\) returns float32\[9,'):
    source_lib.host_batches(source, 2, 2)
  job = {
    'batches': batches,
    'loss_fn': lambda p, state, x, key: (jnp.mean((x['x'] @ p) ** 2), state),
  }
  with pytest.raises(ValueError, match=r'batch_fn\(\d\) returns .* for a'):
    run(block=4, **job)
  run(executor='exact', **job)  # one by one they can be computed
  run(executor='threads', **job)


@pytest.mark.parametrize('executor', ['fast', 'exact', 'threads'])
def test_parameters_may_be_a_list_and_may_be_empty(executor):
  def loss_fn(params, state, x, key):
    first, second, empty = params
    return (jnp.mean(x) - first) ** 2 + second**2 + empty.sum(), state

  found = run(
    executor=executor, params=[0.5, 1.0, jnp.zeros((0, 3))], loss_fn=loss_fn
  )
  assert all(np.isfinite(values).all() for values in found.metrics.values())
  assert found.params[2].shape == (0, 3)


@pytest.mark.parametrize(
  ('sizes', 'error', 'said'),
  [
    ({'num_batches': 10**13}, ValueError, 'num_batches must .* to 2147483647'),
    (
      {'num_workers': 10**13},
      memory.TooLargeError,
      'num_workers=1.* too',
    ),
  ],
)
def test_a_run_that_no_machine_holds_is_refused(sizes, error, said):
  for executor in ('fast', 'exact', 'threads'):
    with pytest.raises(error, match=said):
      run(executor=executor, **sizes)
  sizes = {'num_workers': 1, 'num_batches': 1, **sizes}
  policy = ga_jax.policies.asynchronous()
  with pytest.raises(error, match=said):
    ga_jax.schedule(policy, ga_jax.clocks.constant(), **sizes)
  with pytest.raises(error, match=said):
    ga_jax.Server(jnp.zeros(1), ga_jax.gap_aware(0.1), policy, **sizes)


def test_what_does_not_fit_here_is_refused(monkeypatch):
  monkeypatch.setattr(memory, 'total', lambda: 10**6)
  with pytest.raises(memory.TooLargeError, match=r'num_batches=9999 .* record'):
    run(num_batches=9999)
  with pytest.raises(memory.TooLargeError, match='batches_per_ticket=99999 is'):
    source_lib.host_batches(ga_jax.Source(lambda i: np.ones(9)), 0, 99999)
  with pytest.raises(memory.TooLargeError, match='2 versions of the param'):
    run(params=jnp.zeros(200_000), loss_fn=lambda p, s, x, k: (p.sum(), s))


def test_a_lease_may_be_longer_than_any_run():
  live = ga_jax.Live(lease_seconds=1e300)
  assert run(executor='threads', live=live).trace.updates() == 4


def test_a_thread_too_many_is_said(monkeypatch):
  def start(thread):
    raise RuntimeError("can't start new thread")

  monkeypatch.setattr('ga_jax.workers.worker.threading.Thread.start', start)
  with pytest.raises(memory.TooLargeError, match='worker 0 cannot be started'):
    worker.Worker(0, None, None, None)


def test_server_and_schedule_refuse_wrong_arguments_too():
  with pytest.raises(TypeError, match='policy must be a Policy'):
    ga_jax.Server(
      jnp.zeros(4),
      ga_jax.gap_aware(0.1),
      'asynchronous',
      num_workers=1,
      num_batches=1,
    )
  with pytest.raises(TypeError, match='clock must be a Clock'):
    ga_jax.schedule(
      ga_jax.policies.asynchronous(), 'constant', num_workers=1, num_batches=1
    )


def loss_fn(params, state, x, key):
  return jnp.mean((x @ params) ** 2), state


@pytest.mark.parametrize(
  ('verb', 'called'),
  [
    ('simulate', r'simulate\(job, clock, num_workers=\.\.\., num_batch'),
    ('run_on_threads', r'run_on_threads\(job, num_workers=\.\.\., num_batch'),
    ('run_on_ray', r'run_on_ray\(job, num_workers=\.\.\., num_batches=\.\.\.'),
  ],
)
def test_a_call_of_version_0_1_is_told_how_it_is_called_now(verb, called):
  if verb == 'run_on_ray':
    pytest.importorskip('ray')
  with pytest.raises(TypeError, match=called) as raised:
    getattr(ga_jax, verb)(
      loss_fn,
      jnp.zeros(4),
      lambda batch_id: np.ones((8, 4), np.float32),
      ga_jax.gap_aware(0.1),
      policy=ga_jax.policies.asynchronous(),
      num_workers=2,
      num_batches=4,
    )
  said = 'ga_jax.Job(loss_fn, params, batches, rule, policy, ...); got a funct'
  assert said in str(raised.value)


def test_simulate_many_refuses_what_is_no_job():
  with pytest.raises(
    TypeError, match=r'simulate_many\(jobs, clocks, .* a dict'
  ):
    ga_jax.simulate_many([{'loss_fn': loss_fn}], 64)
