"""What users pass instead of what is wanted: one line says what that is."""

import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax


def run(**wrong):
  given = {
    'loss_fn': lambda p, state, x, key: (jnp.mean((x @ p) ** 2), state),
    'params': jnp.zeros(4),
    'batches': lambda batch_id: np.ones((8, 4), np.float32),
    'rule': ga_jax.gap_aware(0.1),
    'policy': ga_jax.policies.asynchronous(),
  }
  clock = wrong.pop('clock', ga_jax.clocks.homogeneous(seed=0))
  job = ga_jax.Job(**{**given, **wrong})
  return ga_jax.simulate(job, clock, num_workers=2, num_batches=4)


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
