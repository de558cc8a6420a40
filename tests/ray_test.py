"""Server and workers as processes on Ray: what ran is replayed."""

import functools
import gc
import json
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import compression, policies, programs, rules
from ga_jax.compression import base as compression_base
from ga_jax.live import server
from ga_jax.live.ray import messages, seats, shards, snapshots, wire
from ga_jax.server import ledger, statistics, update
from ga_jax.workers import placement
from tests import cases, ray_runs

WORKERS = 2
LARGE = 70_001  # values; of a leaf that is not gathered with the small ones


# --- trees as buffers


def mixed_tree():
  """Every kind of leaf."""
  rng = np.random.default_rng(0)
  return {
    'large': jnp.asarray(rng.normal(size=(LARGE, 1)), jnp.float32),
    'matrix': jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
    'none': jnp.zeros((0, 4), jnp.float32),
    'scalar': jnp.float32(0.1),
    'half': jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    'tiny': jnp.asarray(rng.normal(size=2), jnp.float16),
    'count': jnp.int32(-(2**31)),
    'mask': jnp.asarray([True, False, True]),
    'complex': jnp.asarray([1 + 2j], jnp.complex64),
    'nested': (jnp.arange(6, dtype=jnp.uint8), {'x': jnp.zeros((2, 0, 3))}),
  }


def here():
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[-1])


@pytest.mark.parametrize('make', [mixed_tree, dict, lambda: (jnp.zeros(0),)])
def test_a_tree_comes_back_from_its_buffers(make):
  tree = make()
  layout = wire.Layout(jax.eval_shape(lambda: tree))
  buffers = layout.pack(tree)
  assert sum(buffer.nbytes for buffer in buffers) == layout.nbytes
  for sent in (buffers, layout.copied(buffers)):
    back = layout.unpack(sent, here())
    assert cases.same_tree(back, tree)
    assert all(leaf.sharding == here() for leaf in jax.tree.leaves(back))


def test_double_precision_is_sent_as_it_is(x64):
  tree = {'a': jnp.asarray([1 / 3], jnp.float64), 'b': jnp.int64(2**40)}
  layout = wire.Layout(tree)
  back = layout.unpack(layout.pack(tree), here())
  assert cases.same_bits(back, tree)
  assert back['a'].dtype == jnp.float64


def test_leaves_in_a_buffer_are_aligned():
  layout = wire.Layout(mixed_tree())
  packed = layout.pack(mixed_tree())
  for buffers in (packed, layout.copied(packed)):
    for leaf in layout.leaves(buffers):
      assert leaf.ctypes.data % 64 == 0 or leaf.size == 0


def test_a_tree_keeps_the_memory_that_it_shares_with_its_buffers():
  layout = wire.Layout(mixed_tree())
  tree = layout.unpack(layout.copied(layout.pack(mixed_tree())), here())
  gc.collect()
  for _ in range(3):  # memory that is free is used again
    for buffer in layout.copied(layout.pack(mixed_tree())):
      buffer.fill(1)
  assert cases.same_bits(tree, mixed_tree())


def test_the_space_between_leaves_is_zero():
  tree = {'x': jnp.ones(LARGE)}
  (buffer,) = wire.Layout(tree).pack(tree)
  for _ in range(3):  # memory that is given back, and had other contents
    np.full(buffer.size + 16, np.nan, np.float32)
  (buffer,) = wire.Layout(tree).pack(tree)
  assert buffer.size > LARGE
  assert not buffer[LARGE:].any()
  assert wire.finite((buffer,))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  'name', ['large', 'matrix', 'scalar', 'half', 'tiny', 'complex']
)
def test_a_number_that_is_not_finite_is_found(name, value):
  tree = mixed_tree()
  leaf = tree[name]
  bad = leaf.ravel().at[-1].set(jnp.asarray(value, leaf.dtype))
  tree[name] = bad.reshape(leaf.shape)
  layout = wire.Layout(tree)
  assert not wire.finite(layout.pack(tree))


def test_large_numbers_are_finite():
  tree = {'x': jnp.full(4, 3e38, jnp.float32), 'y': jnp.full(9, 6e4, 'float16')}
  assert wire.finite(wire.Layout(tree).pack(tree))


def test_an_accelerator_is_given_whole_buffers(monkeypatch):
  """A copy for each dtype, not for each leaf."""
  tree = {'x': jnp.ones(LARGE), 'y': jnp.arange(3.0), 'n': jnp.arange(2)}
  layout = wire.Layout(tree)
  whole = layout.pack(tree)
  monkeypatch.setattr(wire, '_on_cpu', lambda sharding: False)
  put, sent = jax.device_put, []
  monkeypatch.setattr(
    jax, 'device_put', lambda *args: sent.append(args[0]) or put(*args)
  )
  back = layout.unpack(whole, here())
  (buffers,) = sent
  assert len(buffers) == 2
  assert all(map(operator.is_, buffers, whole))
  assert cases.same_bits(back, tree)
  assert all(leaf.sharding == here() for leaf in jax.tree.leaves(back))
  assert cases.same_bits(layout.pack(back), whole)
  assert len(sent) == 1


def test_a_snapshot_comes_to_the_host_once_for_each_version(monkeypatch):
  sent = update.Snapshot({'w': jnp.ones(LARGE)}, ())
  layout = wire.Layout(sent)
  packed = snapshots.PackedSnapshots(messages.Layouts(layout, layout))
  pack, packs = wire.Layout.pack, []
  monkeypatch.setattr(
    wire.Layout, 'pack', lambda *args: packs.append(args) or pack(*args)
  )
  first = packed.take(7, sent)
  assert packed.take(7, sent) is first
  assert len(packs) == 1
  packed.take(8, sent)
  assert len(packs) == 2


def test_a_shard_brings_a_gradient_to_its_device_once(monkeypatch):
  rule = cases.rule('ga_global', 0.02)  # it looks at it twice
  params = {'w': np.ones(3, np.float32)}
  monkeypatch.setattr(seats, 'tell_unused', lambda: None)
  shard = shards.RayShard(
    lambda hparams: rule, statistics.NOTHING, False, None, params
  )
  shard.hold(0)
  ticket = ledger.Ticket(0, 0, 0, 0, 1, 0)
  shard.offer(ticket, {'w': np.ones(3, np.float32)}, (), 1.0, 0)
  entered = []
  monkeypatch.setattr(
    shard._core, 'arrival', lambda entry: entered.append(entry.grads['w'])
  )
  monkeypatch.setattr(shard._core, 'enter_part', lambda arrival, totals: None)
  shard.enter_part(())
  shard.enter_part(())
  first, second = entered
  assert isinstance(first, jax.Array)
  assert first is second


def test_random_keys_cannot_be_sent():
  with pytest.raises(TypeError, match='cannot be sent'):
    wire.Layout({'key': jax.random.key(0)})


# --- runs


@pytest.fixture(scope='module')
def nodes():
  with ray_runs.cluster(num_cpus=WORKERS) as one:
    yield one


def sparse(loss_fn):
  """Keeps a residual at the worker."""
  return compression_base.compressed(
    programs.gradient(loss_fn), compression.topk(0.1)
  )


def elastic(loss_fn):
  """Exchanges parameters with the server at arrival."""
  return programs.easgd(loss_fn, learning_rate=0.02, num_workers=WORKERS)


def run(rule, policy, program=None, num_batches=120, how=None, **options):
  job = cases.tiny_job(rule, policy, program=program)
  options = {'num_workers': WORKERS, 'num_batches': num_batches, **options}
  result = ga_jax.run_on_ray(job, **cases.live_arguments(**options))
  ray_runs.check(job, result, **(how or {}))
  assert sum(one.answers for one in result.workers.values()) >= (
    result.executed
  )
  return result


@pytest.mark.ray
def test_a_run_replays_to_the_same_bits(nodes):
  result = run(cases.rule('ga', 0.02), policies.asynchronous())
  assert result.trace.updates() == 120
  assert set(result.workers) == set(range(WORKERS))
  assert all(one.utilisation > 0 for one in result.workers.values())
  assert result.refused == {}
  assert isinstance(result.params['w'], np.ndarray)


@pytest.mark.slow
@pytest.mark.ray
def test_rounds_of_compressed_gradients_replay_to_the_same_bits(nodes):
  """What is left out stays at the workers, and is committed there."""
  result = run(cases.rule('ga', 0.02), policies.synchronous(), sparse)
  assert result.trace.updates() == 60


@pytest.mark.slow
@pytest.mark.ray
def test_exchanges_replay_to_the_same_bits(nodes):
  result = run(rules.asgd(1.0, 0.0), policies.asynchronous(), elastic, 62)
  assert result.trace.updates() == 16  # a short last ticket


@pytest.mark.slow
@pytest.mark.ray
def test_shards_replay_to_the_same_bits_in_one_process(nodes):
  """A rule that asks all shards for sums; statistics are with the first."""
  rule = rules.gap_aware(0.02, granularity='global')
  how = {'shards': 2}
  result = run(rule, policies.asynchronous(), num_batches=40, how=how, **how)
  assert result.trace.updates() == 40


@pytest.mark.ray
@pytest.mark.slow
def test_devices_share_the_batches_of_a_worker(nodes):
  where = placement.shared_out(jax.local_devices(), 2)[0]
  result = run(
    cases.rule('ga', 0.02),
    policies.asynchronous(),
    num_batches=40,
    num_workers=1,
    devices_per_worker=2,
    how={'placement': where},
  )
  assert result.trace.updates() == 40


def fails_at(batch_id, failing):
  if batch_id == failing:
    raise FileNotFoundError(f'batch {batch_id} was on the other disk')
  return cases.tiny_problem()[3](batch_id)


@pytest.mark.ray
def test_when_all_workers_fail_their_error_is_shown(nodes):
  job = cases.tiny_job(
    rules.asgd(0.01),
    policies.asynchronous(),
    batches=functools.partial(fails_at, failing=7),
  )
  with pytest.raises(server.WorkersLostError) as caught:
    ga_jax.run_on_ray(job, num_workers=1, num_batches=50)
  said = str(caught.value)
  assert 'all workers have left or died at version 6' in said
  assert 'in fails_at' in said
  assert 'FileNotFoundError: batch 7 was on the other disk' in said


@pytest.mark.ray
@pytest.mark.slow
def test_the_scripts_replay_a_run_to_the_same_bits(nodes, tmp_path):
  workdir = f'--workdir={tmp_path}'
  done = ray_runs.script(
    'train',
    *('--runtime=ray', f'--address={nodes.address}', f'--workers={WORKERS}'),
    *('--method=ga', '--model=mlp', '--epochs=1', workdir),
  )
  assert done.returncode == 0, done.stdout + done.stderr
  done = ray_runs.script('replay', workdir)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.startswith('same bits: '), done.stdout
  rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(row)['epoch'] for row in rows] == [1.0]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'accelerator': 'abacus'}, "one of .*'tpu'.*, got 'abacus'"),
    (
      {'server_accelerator': 'abacus'},
      "server_accelerator must be one of .*'auto'.*, got 'abacus'",
    ),
    ({'num_workers': 0}, 'num_workers must be an integer of at least 1, got 0'),
    ({'wait_for_workers': 0}, 'wait_for_workers must be > 0.0, got 0'),
  ],
)
@pytest.mark.ray
def test_bad_arguments_of_run_on_ray_are_refused_by_name(
  change, message, nodes
):
  job = cases.tiny_job(rules.asgd(0.01), policies.asynchronous())
  with pytest.raises(ValueError, match=message):
    ga_jax.run_on_ray(job, **{'num_workers': 1, 'num_batches': 4, **change})
