"""Every registered method has its case, and is what its oracle says."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, compression, policies, programs, rules
from ga_jax.job import program as program_lib
from ga_jax.server import update
from tests import cases, cluster, method_cases

# (what it is, registry, its module, the cases).
FAMILIES = (
  ('rule', rules.RULES, rules, method_cases.RULES),
  ('policy', policies.POLICIES, policies, method_cases.POLICIES),
  ('program', programs.PROGRAMS, programs, method_cases.PROGRAMS),
  (
    'compression',
    compression.COMPRESSIONS,
    compression,
    method_cases.COMPRESSIONS,
  ),
  ('clock', clocks.CLOCKS, clocks, method_cases.CLOCKS),
)
REGISTERED = [
  pytest.param(kind, name, module, id=f'{kind} {name}')
  for kind, registry, module, _ in FAMILIES
  for name in registry
]
# Two clocks are one family of distributions, and stand in one file.
ELSEWHERE = {'homogeneous': 'gamma', 'heterogeneous': 'gamma'}


@pytest.mark.parametrize(('kind', 'name', 'module'), REGISTERED)
def test_what_is_registered_has_a_case_with_an_oracle(kind, name, module):
  del module
  table = {k: table for k, _, _, table in FAMILIES}[kind]
  where = f'{kind} {name!r} has no case: one in tests/method_cases.py is to say'
  assert name in table, f'{where} what is right for it'
  assert table[name].oracle, f'the case of {kind} {name!r} has no oracle'


def test_a_case_is_of_a_registered_method_or_a_known_variant():
  """What is no rule of its own is a way to call one."""
  for kind, registry, _, table in FAMILIES:
    others = set(table) - set(registry)
    ways = {'nag_asgd', 'ga_nesterov', 'ga_global', 'penalize_gap'}
    assert others == (ways if kind == 'rule' else set())
    for name in others:
      assert table[name].oracle, f'the case of {kind} {name!r} has no oracle'


@pytest.mark.parametrize(('kind', 'name', 'module'), REGISTERED)
def test_a_method_has_one_name_wherever_it_stands(kind, name, module):
  """In the registry, in Python, in its file."""
  registry = {k: registry for k, registry, _, _ in FAMILIES}[kind]
  made = registry[name]
  assert made is getattr(module, name)
  assert made.__name__ == name
  file = ELSEWHERE.get(name, name)
  assert made.__module__ == f'{module.__name__}.{file}'
  assert made.__doc__
  assert name in module.__all__


@pytest.mark.parametrize('module', [rules, policies], ids=['rules', 'policies'])
def test_other_names_are_the_same_method(module):
  registry = rules.RULES if module is rules else policies.POLICIES
  for other, name in module.OTHER_NAMES.items():
    assert other not in registry
    assert getattr(module, other) is registry[name]
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    _ = module.nothing


def test_other_names_in_the_package_are_the_same_functions():
  assert ga_jax.gap_aware is ga_jax.ga is rules.ga
  assert ga_jax.gap_aware_adam is ga_jax.ga_adam is rules.ga_adam
  assert policies.make('adaptive_bounded_staleness', 4).needs_loss


# Policies.


@pytest.mark.parametrize('name', method_cases.POLICIES)
def test_rounds_and_staleness_are_those_of_the_oracle(name):
  for seed in range(8):
    own = method_cases.drawn(name, 5, np.random.default_rng(seed))
    policy = policies.make(name, 5, **own)
    size, stalest = method_cases.POLICIES[name].oracle(5, **own)
    if size is None:
      assert policy.round_size is None
    else:
      # 0 says that it is all workers, whoever is there.
      assert (policy.round_size or 5) == size
      assert policy.accumulates == (policy.round_size != 1)
    book = cluster.play(
      policy,
      clocks.heterogeneous(seed),
      num_workers=5,
      num_batches=200,
      loss_fn=lambda ticket: 1 / (1 + ticket.first_batch / 50),
    )
    run = book.trace()
    run.verify()
    assert run.applied()['staleness'].max() <= stalest
    if size is not None:
      assert set(cluster.round_sizes(run)[:-1]) <= {size}


@pytest.mark.parametrize('name', method_cases.POLICIES)
def test_a_case_draws_every_parameter(name):
  read = set(inspect.signature(policies.POLICIES[name]).parameters)
  assert set(method_cases.POLICIES[name].ranges) == read - {'num_workers'}


# Worker programs.


@pytest.mark.parametrize('name', method_cases.PROGRAMS)
def test_a_worker_submits_what_the_oracle_does(name, x64):
  del x64

  def loss_fn(params, model_state, batch, key):
    del key
    return 0.5 * jnp.sum((params - batch) ** 2), model_state

  case = method_cases.PROGRAMS[name]
  program, oracle = case.make(loss_fn), case.oracle()
  rng = np.random.default_rng(0)
  state = program.init(jnp.zeros(4))
  for ticket in range(4):
    sent, now = rng.normal(size=(2, 4))
    batches = rng.normal(size=(program.num_batches, 4))
    work = program_lib.work(jax.random.key(0), batches, 0, ticket)
    submission, state = program.run(state, update.Snapshot(sent, ()), work)
    if program.exchange is not None:
      submission, state = program.exchange(state, submission, now)
    expected = oracle.submits(sent, now, batches)
    np.testing.assert_allclose(submission.grads, expected, rtol=1e-12)


# Compression.


@pytest.mark.parametrize('name', method_cases.COMPRESSIONS)
def test_what_arrives_is_what_the_oracle_says(name):
  case = method_cases.COMPRESSIONS[name]
  stage, oracle = case.make(), case.oracle()
  sizes, rng = [15, 7], np.random.default_rng(0)
  state = stage.init({'a': jnp.zeros((3, 5)), 'b': jnp.zeros(7)})
  keys = jax.random.split(jax.random.key(0), 2000)

  @cases.fast_jit
  @functools.partial(jax.vmap, in_axes=(0, None, None))
  def through(key, grads, state):
    message, kept = stage.encode(grads, state, key)
    return jax.tree.leaves(stage.decode(message, grads)), kept

  for _ in range(3):
    flat = rng.normal(size=sum(sizes)).astype(np.float32)
    grads = {'a': jnp.asarray(flat[:15].reshape(3, 5)), 'b': flat[15:]}
    leaves, kept = through(keys, grads, state)
    state = jax.tree.map(lambda x: x[0], kept)
    arrived = np.concatenate([x.reshape(2000, -1) for x in leaves], 1)
    # Most are not drawn, and have no deviation.
    error = 5 * arrived.astype(np.float64).std(0) / np.sqrt(2000) + 1e-6
    expected = oracle.arrives(flat)
    assert (np.abs(arrived.mean(0, np.float64) - expected) < error).all()
    assert stage.message_bytes(grads) == case.message_bytes(sizes)


# Clocks.


@pytest.mark.parametrize('name', method_cases.CLOCKS)
def test_times_are_as_likely_as_the_oracle_says(name):
  case = method_cases.CLOCKS[name]
  clock = case.make(0)
  assert clock.mean == 1.0
  found = method_cases.chances(clock, case.oracle)
  # Three standard errors of 4000 workers, whose batches may be alike.
  chances = np.array(list(case.oracle.values()))
  error = 3 * np.sqrt(chances * (1 - chances) / 4000) + 1e-12
  assert (np.abs(found - chances) <= error).all()
