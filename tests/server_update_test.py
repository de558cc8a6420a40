"""The update of the server: no copy that is not needed, and what is donated."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from ga_jax import policies, rules
from ga_jax.server import compiled as compiled_lib
from ga_jax.server import server, statistics, update
from tests import cases

SIZE = 1 << 20
RATE, MOMENTUM, DECAY, EPS = 0.1, 0.9, 0.999, 1e-8


def compiled(rule, size=SIZE):
  """The update of one vector, parameters and state donated."""

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params, state, grads, stale, staleness, worker_id):
    updates, state = rule.update(
      grads,
      state,
      params,
      stale_params=stale,
      staleness=staleness,
      worker_id=worker_id,
    )
    return optax.apply_updates(params, updates), state

  vector = jax.ShapeDtypeStruct((size,), jnp.float32)
  state = jax.eval_shape(rule.init, vector)
  return update.lower(
    vector, state, vector, vector, np.int32(1), np.int32(0)
  ).compile()


@pytest.mark.parametrize(
  ('make', 'spare'),
  [
    (lambda: rules.asgd(RATE), 0.01),
    (lambda: rules.staleness_aware(RATE), 0.01),
    (lambda: rules.dc_asgd(RATE), 0.01),
    (lambda: rules.dc_asgd_adaptive(RATE), 0.01),
    (lambda: rules.multi_asgd(RATE, num_workers=16), 0.01),
    (lambda: rules.dana_zero(RATE, num_workers=16), 0.01),
    (lambda: ga_jax.gap_aware(RATE), 0.2),  # 3 sums of every 16 numbers
  ],
  ids=['asgd', 'sa', 'dc', 'dc_a', 'multi_asgd', 'dana_zero', 'ga'],
)
def test_an_update_needs_little_memory_of_its_own(make, spare):
  memory = compiled(make()).memory_analysis()
  assert memory.temp_size_in_bytes < spare * 4 * SIZE
  # Parameters and state are written where they were.
  assert memory.alias_size_in_bytes >= memory.output_size_in_bytes - 4096


def tree(rng):
  """Leaves that are many blocks and a rest, small, empty and narrow."""

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  return {
    'large': normal(3, 6001),
    'block': normal(16, 1024),
    'small': [normal(5), normal(2, 7)],
    'empty': normal(0),
    'narrow': normal(33).astype(jnp.bfloat16),
    'narrow, large': normal(17001).astype(jnp.bfloat16),
  }


def two_updates(stale_params=None):
  """A tree's state after one update, and what the second one makes of it."""
  rng = np.random.default_rng(0)
  params, grads, stale = tree(rng), tree(rng), tree(rng)
  rule = ga_jax.gap_aware(RATE, momentum=0.0, decay=DECAY, eps=EPS)
  update = jax.jit(rule.update)
  _, state = update(grads, rule.init(params), params, stale_params=params)
  stale = stale if stale_params is None else stale_params(stale, params)
  updates, after = update(grads, state, params, stale_params=stale)
  return params, stale, grads, updates, ga_jax.gap_metrics(after)


def test_metrics_are_those_of_every_parameter():
  params, stale, grads, updates, metrics = two_updates()
  gap = abs(cases.flat(params) - cases.flat(stale))
  moment = cases.flat(grads) ** 2  # after one direction, without its bias
  g = 1 + gap / (RATE * (np.sqrt(moment) + EPS))
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5)
  close(metrics.mean_gap, np.sqrt(np.mean(gap**2)))
  close(metrics.mean_penalty, np.mean(g))
  close(metrics.max_penalty, np.max(g))
  wide = {'large': 0, 'block': 0, 'small': 0}
  expected = -RATE * cases.flat(grads) / g
  narrow = np.concatenate(
    [
      np.full(jnp.size(x), path[0].key not in wide)
      for path, x in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
  )
  close(cases.flat(updates)[~narrow], expected[~narrow])
  close(cases.flat(updates)[narrow], expected[narrow], rtol=2e-2)


def test_where_nothing_moved_there_is_no_penalty():
  *_, metrics = two_updates(lambda stale, params: params)
  assert (metrics.mean_gap, metrics.mean_penalty, metrics.max_penalty) == (
    0,
    1,
    1,
  )


@pytest.mark.parametrize('leaf', ['large', 'block', 'empty'])
def test_one_leaf_that_moved_gives_a_gap(leaf):
  def one(stale, params):
    return {**params, leaf: stale[leaf]}

  params, stale, _, _, metrics = two_updates(one)
  gap = abs(cases.flat(params) - cases.flat(stale))
  np.testing.assert_allclose(
    metrics.mean_gap, np.sqrt(np.mean(gap**2)), rtol=1e-5
  )
  assert (metrics.max_penalty > 1) == (leaf != 'empty')


@pytest.mark.parametrize('place', [0, 5000, 18002])
def test_a_nan_shows_in_metrics_and_update(place):
  def broken(stale, params):
    large = params['large'].ravel().at[place].set(jnp.nan)
    return {**params, 'large': large.reshape(params['large'].shape)}

  _, _, _, updates, metrics = two_updates(broken)
  assert np.isnan(metrics.mean_gap)
  assert np.isnan(metrics.mean_penalty)
  assert np.isnan(metrics.max_penalty)
  assert np.isnan(cases.flat(updates)).sum() == 1


def started(rule):
  params = {'w': jnp.arange(6.0).reshape(2, 3), 'b': jnp.ones(3)}
  made = server.Server(
    params, rule, policies.asynchronous(), num_workers=3, num_batches=30
  )
  return made, params


def large(tree):
  """The shapes of all leaves that are no scalars, in order."""
  return sorted(x.shape for x in jax.tree.leaves(tree) if x.ndim)


def submit(made, work):
  made.submit(work.ticket, jax.tree.map(jnp.ones_like, work.params))


@pytest.mark.parametrize(
  'make',
  [
    lambda: ga_jax.gap_aware(RATE),
    lambda: rules.dana_zero(RATE, num_workers=3),
    # keeps the parameters themselves in its state
    lambda: ga_jax.chain(rules.penalize_gap(), optax.sgd(RATE)),
    # begins with them
    lambda: optax.contrib.schedule_free_sgd(RATE),
  ],
  ids=['ga', 'dana_zero', 'penalize_gap', 'schedule_free'],
)
@pytest.mark.optax_promotes
def test_an_update_donates_the_optimiser_state_alone(make):
  made, params = started(make())
  works = [made.ticket(worker) for worker in range(3)]
  sent = [jax.tree.map(np.array, work.params) for work in works]
  seen = made.state  # it was looked at: it stays
  kept = jax.tree.map(np.array, seen)
  submit(made, works[0])
  before = jax.live_arrays()  # the server's own are among them
  submit(made, works[1])
  deleted = [x for x in before if x.is_deleted()]
  assert large(deleted) == large(kept.opt_state) != []
  submit(made, works[2])
  assert cases.same_bits(seen, kept)
  assert cases.same_bits([work.params for work in works], sent)
  assert float(params['b'].sum()) == 3.0


def test_an_update_writes_the_state_in_place():
  rule = compiled_lib.fixed(ga_jax.gap_aware(RATE))
  functions = compiled_lib.compiled(rule, statistics.NOTHING, False)
  state = functions.init((), jnp.zeros(SIZE), ())
  arrival = update.any_arrival(state)
  rest = state._replace(opt_state=())
  memory = (
    functions.apply.jitted.lower((), state.opt_state, rest, arrival, None)
    .compile()
    .memory_analysis()
  )
  assert memory.alias_size_in_bytes >= 2 * 4 * SIZE  # momentum and s
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  assert new <= 4 * SIZE + 4096  # the new parameters
  assert memory.temp_size_in_bytes < 0.2 * 4 * SIZE


@pytest.mark.slow
def test_the_benchmark_of_updates_runs(tmp_path):
  path = tmp_path / 'out.json'
  command = [sys.executable, '-m', 'experiments.bench.update_kernel']
  flags = ['--rules=SGD,GA', '--scale=0.001', '--rounds=1', f'--json={path}']
  flags += ['--shapes=flat', '--dtypes=float32']
  done = subprocess.run(
    command + flags, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr
  assert 'GA, flat: times SGD: ' in done.stdout
  assert path.exists()
  wrong = subprocess.run(
    [*command, '--rules=GAA'], capture_output=True, text=True, timeout=120
  )
  assert wrong.returncode != 0
  assert len(wrong.stderr.strip().splitlines()) == 1
  assert 'GAA' in wrong.stderr
  assert 'DANA-Zero' in wrong.stderr


def test_processes_of_a_ray_run_get_large_pages_unless_told(monkeypatch):
  ray = pytest.importorskip('ga_jax.live.ray.cluster')
  name = 'GLIBC_TUNABLES'
  monkeypatch.delenv(name, raising=False)
  assert ray.environment(1, None)[name] == 'glibc.malloc.hugetlb=1'
  monkeypatch.setenv(name, 'mine')
  assert ray.environment(1, None)[name] == 'mine'
  assert ray.environment(1, {name: ''})[name] == ''
  assert ray.environment(3, None)['JAX_NUM_CPU_DEVICES'] == '3'
