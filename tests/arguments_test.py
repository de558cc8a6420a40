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
    'clock': ga_jax.clocks.homogeneous(seed=0),
    'num_workers': 2,
    'num_batches': 4,
  }
  return ga_jax.simulate(**{**given, **wrong})


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
def test_what_is_wanted_is_said(wrong, said):
  with pytest.raises(TypeError, match=said) as raised:
    run(**wrong)
  assert len(str(raised.value).splitlines()) == 1


def test_a_server_and_a_schedule_say_it_too():
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
