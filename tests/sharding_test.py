"""A server in pieces does what a whole one does."""

import concurrent.futures
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ga_jax
from experiments.running import compilation
from ga_jax import policies, programs, rules
from ga_jax.executors import execution
from ga_jax.policies.parts.base import Action
from ga_jax.rules.parts import global_sums
from ga_jax.server import compiled, ledger, sharded, statistics
from ga_jax.server import core as core_lib
from ga_jax.server import shard as shard_lib
from ga_jax.server import shards as shards_lib
from ga_jax.server import split as split_lib
from tests import cases

WORKERS = cases.WORKERS
SIZES = st.integers(0, 4)
SHAPES = st.lists(st.lists(SIZES, max_size=3).map(tuple), min_size=1)


def params_of(dtype='float32'):
  rng = np.random.default_rng(2)
  shapes = {'a': (5, 3), 's': ()}
  return {
    name: np.asarray(rng.normal(size=shape), dtype)
    for name, shape in shapes.items()
  }


@functools.cache
def fixed(rule):
  """The same function for the same rule, so that it is compiled once."""
  return compiled.fixed(rule)


def core(rule, shards, *, dtype='float32', accumulates=False, **options):
  stats = {'mean': np.zeros(3, dtype)}
  return shards_lib.core(
    fixed(rule),
    statistics.Averages(0.9),
    accumulates,
    (),
    params_of(dtype),
    stats,
    shards=shards,
    **options,
  )


def kept(kind=shard_lib.Shard):
  """A list of shards, and what starts them and adds them to it."""
  shards = []

  def start(*args):
    shards.append(kind(*args))
    return shards[-1]

  return shards, shards_lib.Remote(start, gather_fn=list)


@functools.partial(jax.jit, static_argnums=1)
def gradient(sent, arrival):
  """What a worker computes, not linear in what it was sent."""
  spread = jnp.int32(arrival % 4 + 1)
  return jax.tree.map(lambda p: jnp.cos(p * spread.astype(p.dtype)), sent)


class Run:
  """A core that answers of workers enter, some of them late."""

  def __init__(self, made, accumulates=False):
    self.core = made
    self.metrics = []
    self._accumulates = accumulates
    self.rng = np.random.default_rng(4)
    self.tickets = {}  # worker_id -> ticket
    for worker in range(WORKERS):
      self._issue(worker)

  def _issue(self, worker):
    version = self.core.version
    self.tickets[worker] = ledger.Ticket(0, worker, version, 0, 2, 0)
    self.core.hold(version)

  def arrive(self, arrivals):
    for arrival in range(arrivals):
      worker = int(self.rng.integers(WORKERS))
      ticket = self.tickets[worker]
      sent = self.core.read(ticket.version)
      last = not self._accumulates or arrival % 3 == 2
      entry = core_lib.Entry(
        ticket,
        gradient(sent.params, arrival),
        {'mean': sent.model_state['mean'] * 0.81 + worker},
        weight=1.0 + worker,
        staleness=self.core.version - ticket.version,
      )
      metrics, _ = self.core.enter(
        entry, Action.APPLY if last else Action.ACCUMULATE
      )
      self.core.release(ticket.version)
      self._issue(worker)
      self.metrics.append(np.array([np.asarray(x) for x in metrics]))
    return self

  def holders(self):
    return self.core.holders()


def assert_same_end(whole, parts, tolerance):
  """Two runs ended at the same, but for rounding."""
  a, b = whole.core.state, parts.core.state
  assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
  assert cases.distance(b.params, a.params) < tolerance
  sent = [run.core.snapshot().params for run in (parts, whole)]
  assert cases.distance(*sent) < tolerance
  assert cases.same_bits(a.model_state, b.model_state)
  assert whole.core.version == parts.core.version == int(b.version)
  assert int(a.count) == int(b.count)
  np.testing.assert_allclose(whole.metrics, parts.metrics, rtol=tolerance)


@pytest.mark.parametrize('kind', [core_lib.ServerCore, sharded.ShardedCore])
def test_every_core_has_all_methods_of_the_protocol(kind):
  names = {name for name in vars(core_lib.Core) if not name.startswith('_')}
  assert {'enter', 'hold', 'to_send', 'state'} < names <= vars(kind).keys()


QUICK = (('ga_global', True),)


@pytest.mark.parametrize(
  ('name', 'accumulates'),
  [
    pytest.param(
      name,
      accumulates,
      marks=[
        *([] if (name, accumulates) in QUICK else [pytest.mark.slow]),
        *([pytest.mark.optax_promotes] if name in cases.ADAMS else []),
      ],
    )
    for name in cases.RULES
    for accumulates in (False, True)
    if not accumulates or name in cases.accumulating_rules()
  ],
)
def test_every_rule_is_the_same_on_three_shards(name, accumulates, x64):
  del x64
  rule = cases.rule(name, 0.02)
  options = {'dtype': 'float64', 'accumulates': accumulates}
  whole, parts = (
    Run(core(rule, shards, **options), accumulates).arrive(30)
    for shards in (1, 3)
  )
  assert_same_end(whole, parts, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize('name', cases.EVERY_RULE)
def test_every_rule_is_the_same_in_float32(name):
  rule = cases.rule(name, 0.02)
  whole, parts = (Run(core(rule, shards)).arrive(30) for shards in (1, 3))
  assert_same_end(whole, parts, 1e-5)


# What stands between the halves of a tree.


@settings(deadline=None)
@given(shapes=SHAPES, shards=st.integers(1, 7))
def test_pieces_join_to_the_same_bits(shapes, shards):
  rng = np.random.default_rng(0)
  dtypes = [np.float32, np.float16, np.int32, jnp.bfloat16]
  tree = [
    (np.asarray(100 * rng.normal(size=shape)).astype(dtypes[i % 4]), None)
    for i, shape in enumerate(shapes)
  ]
  number = sum(leaf.size for leaf, _ in tree)
  if shards > max(number, 1):
    with pytest.raises(
      ValueError, match=f'shards must be .* 1 to .*={max(number, 1)},'
    ):
      split_lib.split(tree, shards)
    return
  split = split_lib.split(tree, shards)
  assert sum(split.sizes) == number
  assert max(split.sizes) - min(split.sizes) <= 1
  pieces = split.pieces(tree)
  flat = [np.asarray(x).ravel() for piece in pieces for x in _leaves(piece)]
  assert b''.join(x.tobytes() for x in flat) == b''.join(
    leaf.tobytes() for leaf, _ in tree
  )
  joined = split.join(pieces)
  assert cases.same_tree(joined, tree)
  for piece in pieces:
    for leaf, (like, _) in zip(piece, tree, strict=True):
      assert leaf[0] is None or leaf[0].ndim == like.ndim
      if leaf[0] is not None and leaf[0].size:
        assert np.shares_memory(leaf[0], like)


def _leaves(tree):
  return jax.tree.leaves(tree)


def test_pieces_are_checked_and_cut_in_compiled_code():
  tree = {
    'a': jnp.arange(6.0).reshape(2, 3),
    'b': jnp.bfloat16(7),
    'c': jnp.zeros((0, 2)),
  }
  split = split_lib.split(tree, 3)
  assert split.sizes == (2, 2, 3)
  assert hash(split) == hash(split_lib.split(tree, 3))
  cut = jax.jit(split.pieces)(tree)
  assert cut[0]['b'] is None
  assert cut[2]['a'].shape == (1, 2)
  assert cut[2]['c'].shape == (0, 2)
  joined = jax.jit(split.join)(cut)
  for name, leaf in tree.items():
    assert (joined[name].shape, joined[name].dtype) == (leaf.shape, leaf.dtype)
  assert cases.same_bits(joined, tree)
  for other in ({**tree, 'a': tree['a'].T}, {'a': tree['a']}):
    with pytest.raises(ValueError, match='this splits trees'):
      split.pieces(other)
  for shards in (0, 8):
    with pytest.raises(
      ValueError, match=r'shards must be an integer from 1 to .*=7'
    ):
      split_lib.split(tree, shards)


# What rules are told of the other shards.


def test_a_global_sum_is_its_argument_where_the_server_is_whole():
  one = jnp.float32(3.0)
  assert global_sums.global_sum(one) is one
  np.testing.assert_array_equal(global_sums.global_mean(one, 0), 3.0)
  np.testing.assert_array_equal(global_sums.global_mean(one, 4), 0.75)

  def mean_of_means(x):
    first = global_sums.global_mean(x.sum(), x.size)
    return global_sums.global_mean(jnp.sum(x - first), x.size), first

  assert global_sums.count_sums(mean_of_means, jnp.ones(3)) == 2
  a, b = jnp.float32([1, 2, 3]), jnp.float32([6])
  totals = ()
  for _ in range(2):
    part = global_sums.part(mean_of_means)
    totals += (global_sums.total([part(x, totals=totals) for x in (a, b)]),)
  for x in (a, b):
    found = global_sums.with_totals(mean_of_means)(x, totals=totals)
    np.testing.assert_allclose(found, (0.0, 3.0), atol=1e-6)


class Counted(shard_lib.Shard):
  """A shard that counts what it is asked."""

  def __init__(self, *args):
    super().__init__(*args)
    self.asked = []

  def enter_part(self, totals):
    self.asked.append('enter')
    return super().enter_part(totals)

  def close_part(self, totals):
    self.asked.append('close')
    return super().close_part(totals)


@pytest.mark.parametrize('accumulates', [False, True])
def test_only_rules_with_global_sums_pay_for_them(accumulates, x64):
  del x64
  shards, remote = kept(Counted)
  made = core(
    cases.rule('ga_global', 0.02),
    3,
    dtype='float64',
    accumulates=accumulates,
    remote=remote,
  )
  Run(made, accumulates).arrive(6)
  sums, calls = ((1, 1), (6, 2)) if accumulates else ((2, 0), (12, 0))
  for shard in shards:
    assert shard.sums() == sums
    assert tuple(map(shard.asked.count, ('enter', 'close'))) == calls


@pytest.mark.optax_promotes
def test_only_ga_global_and_penalize_gap_ask_for_global_sums():
  asks = {'ga_global': (2, 0), 'penalize_gap': (1, 0)}
  for name in cases.RULES:
    shard = shard_lib.Shard(
      fixed(cases.rule(name, 0.02)), statistics.NOTHING, False, (), params_of()
    )
    assert shard.sums() == asks.get(name, (0, 0)), name


def by_dimensions(params):
  return jax.tree.map(lambda p: p.ndim > 1, params)


SEPARATE = optax.partition(
  {
    'x': rules.gap_aware(
      0.05, weight_decay=0.1, weight_decay_mask=by_dimensions
    ),
    'y': optax.sgd(0.1),
  },
  {'a': 'x', 's': 'y'},
  mask_compatible_extra_args=True,
)
CLIPPED = ga_jax.chain(
  rules.clip_by_global_norm(0.5), rules.staleness_aware(0.05)
)


@pytest.mark.parametrize(
  'rule', [ga_jax.lift(SEPARATE), CLIPPED], ids=['separate', 'clipped']
)
def test_masks_partitions_and_clipping_are_the_same_on_shards(rule, x64):
  del x64
  whole, parts = (
    Run(core(rule, shards, dtype='float64')).arrive(8) for shards in (1, 3)
  )
  if rule is not CLIPPED:  # its mean penalty is not of all parameters
    for run in (whole, parts):
      run.metrics = [np.delete(row, 1) for row in run.metrics]
  assert_same_end(whole, parts, 1e-9)


def test_clipping_is_that_of_optax():
  params = params_of()
  for bound in (0.1, 100.0):
    ours, theirs = (
      jax.jit(make(bound).update)(params, optax.EmptyState())[0]
      for make in (rules.clip_by_global_norm, optax.clip_by_global_norm)
    )
    assert cases.distance(ours, theirs) < 1e-6


def factored(rate):
  return optax.chain(
    optax.scale_by_factored_rms(min_dim_size_to_factor=4), optax.sgd(rate)
  )


def asks_per_leaf(rate):
  def update(grads, state, params=None):
    del params
    asked = jax.tree.map(lambda g: global_sums.global_sum(g.sum()), grads)
    return jax.tree.map(lambda g, s: -rate * g * s, grads, asked), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def compiles_itself(rate):
  rule = rules.gap_aware(rate, granularity='global')
  return rule, optax.GradientTransformationExtraArgs(
    rule.init, jax.jit(rule.update)
  )


REFUSED = {
  'clip': (
    ga_jax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    'several parameters together',
  ),
  'rarely clips': (
    optax.chain(optax.clip_by_global_norm(1e5), optax.sgd(0.1)),
    'several parameters together',
  ),
  'layers': (
    optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)),
    'several parameters together',
  ),
  'all finite': (
    optax.apply_if_finite(optax.sgd(0.1), 3),
    'several parameters together',
  ),
  'factored': (factored(0.1), 'needs whole leaves'),
  'per leaf': (asks_per_leaf(0.1), 'another number of sums'),
  'jitted': (compiles_itself(0.1)[1], 'inside jax.jit'),
  'every_k': (
    rules.multi_steps(rules.gap_aware(0.1, granularity='global'), 2),
    'inside jax.jit',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_a_shard_cannot_do_alone_is_refused(name):
  rule, message = REFUSED[name]
  params = {'w': np.ones((8, 8), np.float32), 's': np.float32(1)}
  rule = ga_jax.lift(rule)
  shards_lib.check(1, rule, params)
  with pytest.raises(ValueError, match=message):
    shards_lib.core(
      fixed(rule), statistics.NOTHING, False, (), params, shards=2
    )


def test_a_rule_that_looks_at_two_scalars_together_is_refused():
  params = {'a': 1.0, 'b': 2.0}
  shards_lib.check(2, optax.sgd(0.1), params)
  with pytest.raises(ValueError, match='several parameters together'):
    shards_lib.check(2, REFUSED['clip'][0], params)


def test_exchanges_and_too_many_shards_are_refused():
  rule = rules.asgd(0.1)
  job = ga_jax.Job(
    lambda params, model_state, batch, key: (params.sum(), model_state),
    np.ones(16, np.float32),
    np.float32,
    rule,
    policies.asynchronous(),
    program=lambda loss_fn: programs.easgd(loss_fn, 0.1, 2),
  )
  execution.check_shards(job, 1)
  with pytest.raises(ValueError, match='exchanges with the whole'):
    execution.check_shards(job, 2)
  with pytest.raises(
    ValueError, match=r'shards must be an integer from 1 to .*=16'
  ):
    core(rule, 17)
  assert isinstance(core(rule, 1), core_lib.ServerCore)


# Where shards are.


class Actor:
  """A shard in a thread of its own, with pickled messages."""

  def __init__(self, *args):
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._shard = self._pool.submit(shard_lib.Shard, *args).result()

  def __getattr__(self, method):
    return lambda *args: self._pool.submit(
      self._call, method, pickle.dumps(jax.device_get(args))
    )

  def _call(self, method, message):
    with jax.numpy_dtype_promotion('strict'):
      value = getattr(self._shard, method)(*pickle.loads(message))
      return pickle.loads(pickle.dumps(jax.device_get(value)))


def gather(handles):
  return [handle.result() for handle in handles]


@pytest.mark.parametrize(
  'accumulates', [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_actors_give_the_bits_of_one_process(accumulates):
  rule = cases.rule('ga_global', 0.02)
  options = {'accumulates': accumulates}
  here, again = (
    Run(core(rule, 2, **options), accumulates).arrive(12) for _ in range(2)
  )
  remote = shards_lib.Remote(Actor, gather)
  actors = core(rule, 2, remote=remote, **options)
  there = Run(actors, accumulates).arrive(12)
  for other in (again, there):
    assert cases.same_bits(here.core.state, other.core.state)
    assert cases.same_bits(here.metrics, other.metrics)
    assert here.holders() == other.holders()


def test_metrics_of_actors_are_fetched_when_they_are_looked_at():
  fetched = []

  def gather_slowly(handles):
    fetched.append(len(handles))
    return gather(handles)

  remote = shards_lib.Remote(Actor, gather_slowly)
  made = core(cases.rule('ga', 0.02), 2, remote=remote)
  made.hold(0)
  sent = made.read(0)
  ticket = ledger.Ticket(0, 0, 0, 0, 1, 0)
  before = len(fetched)
  grads = jax.tree.map(np.asarray, sent.params)
  entry = core_lib.Entry(ticket, grads, sent.model_state, 1.0, 0)
  metrics, _ = made.enter(entry, Action.APPLY)
  assert len(fetched) == before
  assert (float(metrics.gap), float(metrics.mean_penalty)) == (0.0, 1.0)
  assert len(fetched) == before + 1


def test_all_shards_have_the_same_version_and_snapshots():
  shards, remote = kept()
  run = Run(core(cases.rule('asgd', 0.02), 3, remote=remote)).arrive(5)
  held = list(run.holders())
  for shard in shards:
    assert int(shard.state().version) == run.core.version == 5
    assert shard.held() == sorted(held)
    assert len(held) <= WORKERS
    with pytest.raises(ValueError, match='told the same'):
      shard.hold(4)


@pytest.mark.parametrize(
  'accumulates', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_saved_run_goes_on_to_the_same_bits(accumulates):
  rule = cases.rule('ga', 0.02)
  through = Run(core(rule, 2, accumulates=accumulates), accumulates).arrive(7)
  saved, holders = through.core.save(), through.holders()
  like = core(rule, 2, accumulates=accumulates).like(holders)
  assert jax.tree.structure(like) == jax.tree.structure(saved)
  resumed = Run(core(rule, 2, accumulates=accumulates), accumulates)
  resumed.core.restore(jax.tree.map(np.asarray, saved), holders)
  resumed.tickets = dict(through.tickets)
  resumed.rng.bit_generator.state = through.rng.bit_generator.state
  for run in (through, resumed):
    run.arrive(6)
  assert cases.same_bits(through.core.state, resumed.core.state)
  assert cases.same_bits(through.core.save(), resumed.core.save())
  assert through.holders() == resumed.holders()


def test_warm_up_compiles_all_and_changes_nothing():
  rule = ga_jax.chain(CLIPPED, rules.clip_by_global_norm(1.0))
  shards, remote = kept()
  # What workers and snapshots compile is of no rule.
  Run(core(cases.rule('asgd', 0.02), 2, accumulates=True), True).arrive(6)
  made = core(rule, 2, accumulates=True, remote=remote)
  before = made.state
  made.warm_up(made.snapshot().params, made.snapshot().model_state)
  assert cases.same_bits(before, made.state)
  assert shards[0].sums() == (1, 1)
  until_now = compilation.so_far()
  Run(made, True).arrive(6)
  assert compilation.so_far().since(until_now).programs == 0
