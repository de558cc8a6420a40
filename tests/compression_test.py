"""What compression does to a submission on its way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from ga_jax import clocks, compression, programs
from ga_jax.policies.parts.base import Action, Decision, Kind, Policy
from tests import cases, method_cases


def some_gradient(seed):
  rng = np.random.default_rng(seed)
  return {
    'a': jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
    'b': (jnp.asarray(rng.normal(size=7), jnp.float32), jnp.float32(0.0)),
  }


@pytest.mark.parametrize('name', sorted(compression.COMPRESSIONS))
def test_messages_decode_to_the_gradients_tree(name):
  stage = compression.COMPRESSIONS[name]()
  for dtype in ('float32', 'bfloat16'):
    grads = jax.tree.map(lambda g: g.astype(dtype), some_gradient(0))  # noqa: B023
    message, _ = jax.jit(stage.encode)(
      grads, stage.init(grads), jax.random.key(0)
    )
    decoded = jax.jit(stage.decode)(message, grads)
    spec = jax.tree.map(lambda x: (x.shape, x.dtype), grads)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), decoded) == spec
    sent = sum(x.nbytes for x in jax.tree.leaves(message))
    assert stage.message_bytes(grads) == sent
  n = 23
  assert (
    stage.message_bytes(some_gradient(0))
    == {
      'none': 4 * n,
      'bf16': 2 * n,
      'terngrad': (4 + 4) + (4 + 2) + (4 + 1),  # scale and 4 per byte, per leaf
      'topk': 4 + 4,  # ceil(0.01 · 23) = 1 value and its index
    }[name]
  )


def test_bf16_rounds_also_where_conversions_are_dropped():
  """As a compiler may that is allowed more precision than it was asked for."""
  stage, key = compression.bf16(), jax.random.key(0)

  def through(grad):
    message, _ = stage.encode(grad, (), key)
    return stage.decode(message, grad)

  rng = np.random.default_rng(0)
  grad = rng.normal(size=1000).astype(np.float32) * 10.0 ** rng.integers(-9, 9)
  rounded = grad.astype(jnp.bfloat16).astype(np.float32)
  assert (rounded != grad).any()
  np.testing.assert_array_equal(jax.jit(through)(grad), rounded)
  value, conversions = jnp.asarray(grad), 0
  for equation in jax.make_jaxpr(through)(grad).eqns:
    if equation.primitive.name == 'convert_element_type':
      conversions += 1
    else:
      value = equation.primitive.bind(value, **equation.params)
  assert conversions == 2
  np.testing.assert_array_equal(value, rounded)


def test_terngrad_is_unbiased():
  grads = some_gradient(1)
  stage = compression.terngrad()

  @jax.jit
  def draw(key):
    message, _ = stage.encode(grads, (), key)
    return stage.decode(message, grads)

  n = 10_000
  drawn = jax.lax.map(draw, jax.random.split(jax.random.key(0), n))
  tests = 0
  for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(drawn), strict=True):
    g, d = np.asarray(g, np.float64), np.asarray(d, np.float64)
    s = np.abs(g).max()
    assert set(np.unique(d)) <= {-np.float32(s), 0.0, np.float32(s)}
    variance = s * np.abs(g) - g**2  # of s · sign(g) · Bernoulli(|g| / s)
    fixed_ = variance < 1e-6  # 0, and the largest component
    z = (d.mean(0) - g)[~fixed_] / np.sqrt(variance[~fixed_] / n)
    np.testing.assert_allclose(d.mean(0)[fixed_], g[fixed_], rtol=1e-6)
    assert (np.abs(z) < 4.5).all()  # 1.5e-4 over all components
    tests += z.size
  assert tests == 20


def test_topk_sends_everything_over_time_refused_submissions_included():
  """Σ sent + residual = Σ gradients of all accepted tickets, exactly once."""

  def decide(state, event):  # every third answer is thrown away
    if event.kind == Kind.JOIN:
      return state, Decision(start=(event.worker_id,))
    action = Action.DISCARD if state % 3 == 2 else Action.APPLY
    return state + 1, Decision(action, 1.0, (event.worker_id,))

  policy = Policy(init=lambda: 0, decide=decide)
  gradients = np.random.default_rng(0).normal(size=(40, 50))

  def loss_fn(params, model_state, batch, key):
    del key
    return params @ batch, model_state  # its gradient is the batch

  def simulate(program, executor):
    with jax.enable_x64(True):
      return ga_jax.simulate(
        ga_jax.Job(
          loss_fn,
          np.zeros(50),
          lambda batch_id: gradients[batch_id],
          optax.sgd(1.0),
          policy,
          program=program,
        ),
        clocks.homogeneous(0),
        num_workers=2,
        num_batches=40,
        executor=executor,
      )

  program = method_cases.compressed(programs.gradient, compression.topk(0.1))
  for executor in ('exact', 'fast'):
    result = simulate(program, executor)
    assert (result.trace.events['action'] == Action.DISCARD).sum() > 5
    # What was not sent yet, worker by worker, by the definition.
    missing, sent = np.zeros((2, 50)), np.zeros(50)
    for row in result.trace.applied():
      total = missing[row['worker_id']] + gradients[row['first_batch']]
      largest = np.argsort(-np.abs(total))[:5]
      sent[largest] += total[largest]
      total[largest] = 0.0
      missing[row['worker_id']] = total
    np.testing.assert_allclose(result.params, -sent, atol=1e-12)
    np.testing.assert_allclose(
      sent + missing.sum(0), gradients.sum(0), atol=1e-12
    )
    assert np.abs(missing).max() > 0.5


def test_compression_refuses_parameters_and_complex_gradients():
  loss_fn, *_ = cases.tiny_problem()
  program = method_cases.compressed(
    method_cases.PROGRAMS['easgd'].make, compression.topk()
  )
  with pytest.raises(ValueError, match='exchanges parameters'):
    program(loss_fn)
  z = jnp.ones(3, jnp.complex64)
  for name in ('bf16', 'terngrad', 'topk'):
    stage = compression.COMPRESSIONS[name]()
    with pytest.raises(ValueError, match='takes real gradients'):
      stage.encode(z, jnp.zeros(3), jax.random.key(0))
