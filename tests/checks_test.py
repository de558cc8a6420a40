"""Numbers as arguments: one that is none, or out of range, is refused at once.

The parameters are found by their annotations, so that a new factory is checked
as soon as it stands in its registry.
"""

import dataclasses
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from ga_jax import clocks, compression, data, models, policies, programs, rules
from ga_jax.data import base as data_base
from ga_jax.data import corpus
from ga_jax.executors.saving import Checkpoints
from ga_jax.guards import checks
from ga_jax.live import server, threads
from ga_jax.record import checkpoints
from ga_jax.server.split import split
from ga_jax.simulation import virtual_cluster
from ga_jax.workers import placement

NO_NUMBERS = [
  '0.1',
  b'1',
  1j,
  np.complex64(1),
  True,
  np.True_,
  jnp.bool_(True),
  np.ones(1),
  jnp.ones(1),
  np.ones(1, int),
  [1],
  (),
  object(),
  np.datetime64(1, 's'),
  np.str_('1'),
  jax.random.key(0),
  np.float32('nan'),
  np.array(np.nan),
  jnp.float32(jnp.nan),
  float('nan'),
]
# Out of every range: no number here may be negative.
NEGATIVE = [np.float32(-0.05), jnp.float32(-0.1), np.float64(-1), np.array(-2)]
FLOATS = (np.float32, np.float64, np.array, jnp.float32)
FRACTIONS = [2.5, 2.0, np.float32(2), np.float64(2), jnp.float32(2)]


def parameters_of(make):
  """Of a factory: name -> (whether it is an integer, whether None is one)."""
  found = {}
  for name, parameter in inspect.signature(make).parameters.items():
    kind = parameter.annotation
    optional = isinstance(kind, types.UnionType) and type(None) in kind.__args__
    kinds = set(kind.__args__ if optional else [kind]) - {type(None)}
    if kind == optax.ScalarOrSchedule or kinds == {float}:
      found[name] = (False, optional)
    elif kinds == {int}:
      found[name] = (True, optional)
  return found


def loss_fn(params, model_state, batch, key):
  del key
  return jnp.mean((params - batch) ** 2), model_state


TRAINED = {
  'loss_fn': loss_fn,
  'params': np.zeros(()),
  'batches': lambda batch_id: np.ones(4, np.float32),
  'rule': optax.sgd(0.1),
  'policy': policies.asynchronous(),
}
JOB = ga_jax.Job(**TRAINED)
STATISTICS = {'model_state': np.zeros(1), 'stats_momentum': 0.9}
SIZES = {'num_workers': 1, 'num_batches': 2}
SIMULATED = {'job': JOB, 'clock': clocks.constant(), **SIZES}


def dataset():
  labels = np.arange(8, dtype=np.int32) % 2
  one = data.Split(np.ones((8, 3), np.float32), labels)
  return data.make_dataset('two', one, one)


def text():
  words = corpus.Vocabulary(('a', '<unk>'), 'word')
  return corpus.Corpus(*3 * [np.zeros(99, np.int32)], vocabulary=words)


def batches(size: int):
  return next(dataset().batches('train', size))


def run_live(block: int | None = None):
  server.LiveRun(JOB, None, **SIZES).run(block=block)


def join(worker_id: int):
  ga_jax.Ledger(policies.asynchronous(), num_batches=1).join(worker_id)


def add_to_a_server(worker_id: int):
  alone = ga_jax.Server(
    np.zeros(1), JOB.rule, JOB.policy, num_workers=1, num_batches=1
  )
  alone.add_worker(worker_id)


def add_to_a_run(worker_id: int):
  server.LiveRun(JOB, None, **SIZES).add_worker(worker_id)


def save(step: int):
  checkpoints.CheckpointStore('nowhere').save(step, ())


RATED = {'learning_rate': 0.1}
WORKERS = {'num_workers': 4}
LOSS = {'loss_fn': loss_fn}
# What is not in a registry, with the arguments that it needs.
OTHERS = {
  'scale_by_learning_rate': (rules.scale_by_learning_rate, RATED),
  'clip_by_global_norm': (rules.clip_by_global_norm, {'max_norm': 1.0}),
  'scale_by_gap': (
    rules.scale_by_gap,
    {'direction': optax.identity(), 'max_learning_rate': 0.1},
  ),
  'penalize_gap': (rules.penalize_gap, {}),
  'multi_steps': (
    rules.multi_steps,
    {'rule': optax.sgd(0.1), 'every_k': 2},
  ),
  'recurrent': (
    programs.recurrent,
    {**LOSS, 'memory': lambda: np.zeros(1), 'streams': 2},
  ),
  'recorded': (clocks.recorded, {'times': [[1.0]]}),
  'with_fault': (
    clocks.with_fault,
    {'clock': clocks.constant(), 'worker_id': 0, 'time': 1.0},
  ),
  'with_communication': (
    clocks.with_communication,
    {'clock': clocks.constant()},
  ),
  'from_linen': (models.from_linen, {'module': None}),
  'make_dataset': (
    data.make_dataset,
    {'name': 'a', 'train': dataset().train, 'test': dataset().test},
  ),
  'source': (dataset().source, {'batch_size': 2, 'seed': 0}),
  'hold_out': (dataset().hold_out, {'size': 2}),
  'batches': (batches, {'size': 2}),
  'corpus': (
    text().source,
    {'batch_size': 2, 'segment_length': 3, 'streams': 1, 'seed': 0},
  ),
  'corpus_hold_out': (text().hold_out, {'size': 2}),
  'shuffled': (
    data_base.shuffled,
    {'n': 9, 'batch_size': 2, 'seed': 0},
  ),
  'ledger': (
    ga_jax.Ledger,
    {'policy': policies.asynchronous(), 'num_batches': 1},
  ),
  'join': (join, {'worker_id': 1}),
  'add_to_a_server': (add_to_a_server, {'worker_id': 1}),
  'add_to_a_run': (add_to_a_run, {'worker_id': 1}),
  'server': (
    ga_jax.Server,
    {'params': np.zeros(1), 'rule': JOB.rule, 'policy': JOB.policy}
    | {**SIZES, **STATISTICS},
  ),
  'schedule': (
    ga_jax.schedule,
    {'policy': JOB.policy, 'clock': clocks.constant(), **SIZES},
  ),
  'play': (
    lambda **given: next(virtual_cluster.play(**given)),
    {'policy': JOB.policy, 'clock': clocks.constant(), **SIZES},
  ),
  'job': (ga_jax.Job, {**TRAINED, **STATISTICS}),
  'simulate': (ga_jax.simulate, SIMULATED),
  'many': (
    ga_jax.simulate_many,
    {'jobs': [JOB], 'clocks': [clocks.constant()], **SIZES},
  ),
  'run_on_threads': (ga_jax.run_on_threads, {'job': JOB, **SIZES}),
  'live': (ga_jax.Live, {}),
  'live_run': (server.LiveRun, {'job': JOB, 'pool': None, **SIZES}),
  'run_live': (run_live, {}),
  'threads': (threads.Threads, {'job': JOB, **SIZES}),
  'shared_out': (placement.shared_out, {'devices': [0, 1], 'size': 1}),
  'split': (split, {'tree': np.zeros(3), 'shards': 2}),
  'resident': (
    ga_jax.resident,
    {'rule': ga_jax.gap_aware(0.1), 'params': np.zeros(1), **WORKERS},
  ),
  'checkpoints': (Checkpoints, {'store': None}),
  'store': (checkpoints.CheckpointStore, {'folder': 'nowhere'}),
  'save': (save, {'step': 0}),
}
# Under which name a parameter is told where it is not its own.
TOLD_AS = {
  ('ledger', 'depth'): 'pipeline_depth',
  ('shared_out', 'size'): 'devices_per_worker',
}
NO_CHECKS = {('shuffled', 'n'), ('transformer_xl', 'remat')}


def registered():
  for table in (
    rules.RULES,
    policies.POLICIES,
    programs.PROGRAMS,
    clocks.CLOCKS,
    compression.COMPRESSIONS,
    models.MODELS,
  ):
    for name, make in table.items():
      known = inspect.signature(make).parameters
      given = {**RATED, **WORKERS, **LOSS, 'num_classes': 3}
      yield name, make, {k: v for k, v in given.items() if k in known}
  for name, (make, given) in OTHERS.items():
    yield name, make, given


FACTORIES = list(registered())


@pytest.mark.parametrize(
  ('name', 'make', 'given'), FACTORIES, ids=[name for name, *_ in FACTORIES]
)
def test_what_is_no_number_in_range_is_refused_by_name(name, make, given):
  for parameter, (integer, optional) in parameters_of(make).items():
    if (name, parameter) in NO_CHECKS:
      continue
    bad = NO_NUMBERS + NEGATIVE + (FRACTIONS if integer else [])
    told = TOLD_AS.get((name, parameter), parameter)
    if not optional and parameter != 'momentum':  # no buffer, as in optax
      bad = [*bad, None]
    for value in bad:
      with pytest.raises(ValueError) as raised:
        make(**{**given, parameter: value})
      message = str(raised.value)
      assert message.startswith(f'{told} must be '), (parameter, value)
      assert len(message.splitlines()) == 1


def test_numeric_parameters_of_every_factory_are_found():
  found = {name: parameters_of(make) for name, make, _ in FACTORIES}
  assert set(found['ga']) == {
    *('learning_rate', 'momentum', 'weight_decay', 'decay', 'eps'),
  }
  assert set(found['ga'].values()) == {(False, False)}
  assert found['lwp']['horizon'] == (False, True)
  assert found['backup_workers']['backups'] == (True, True)
  assert sum(map(len, found.values())) > 200


@pytest.mark.parametrize(
  ('name', 'make', 'given'), FACTORIES, ids=[name for name, *_ in FACTORIES]
)
def test_numbers_of_numpy_and_jax_are_accepted(name, make, given):
  if name in ('simulate', 'many', 'run_on_threads', 'run_live', 'save', 'play'):
    return  # they run; see below
  own = {
    k: p.default
    for k, p in inspect.signature(make).parameters.items()
    if p.default is not p.empty
  } | given
  for parameter, (integer, _) in parameters_of(make).items():
    value = own[parameter]
    if value is None or callable(value):
      continue
    kinds = (np.int64, np.array, jnp.int32) if integer else FLOATS
    for kind in kinds:
      make(**{**given, parameter: kind(value)})


def test_a_run_accepts_numpy_integers():
  def run(integer):
    job = dataclasses.replace(JOB, seed=integer(3))
    numbers = {'num_workers': 2, 'num_batches': 5, 'block': 2, 'align': 2}
    numbers = {name: integer(value) for name, value in numbers.items()}
    return ga_jax.simulate(job, clocks.constant(), **numbers)

  plain, again = run(int), run(np.int64)
  assert again.params.tobytes() == plain.params.tobytes()
  assert again.trace.events.tobytes() == plain.trace.events.tobytes()
  assert type(again.trace.num_workers) is type(again.trace.num_batches) is int


def test_seeds_beyond_32_bits_are_refused():
  # Of a seed JAX takes 32 bits, so that 2**32 would be 0.
  with pytest.raises(ValueError, match='seed must be an integer from 0 to 429'):
    dataclasses.replace(JOB, seed=2**32)


# A learning rate and a momentum, as they may come.


def step(rate, momentum):
  rule = rules.asgd(rate, momentum)
  params = jnp.ones(3)
  state = rule.init(params)
  for _ in range(2):
    updates, state = rule.update(params, state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_traced_numbers_are_accepted():
  rates = jnp.array([0.05, 0.1])
  mapped = jax.jit(jax.vmap(step))(rates, jnp.array([0.5, 0.9]))
  alone = [step(0.05, 0.5), step(0.1, 0.9)]
  np.testing.assert_allclose(mapped, jnp.stack(alone), rtol=1e-6)


@pytest.mark.parametrize(
  'traced', [jnp.ones(2), jnp.complex64(1), jnp.bool_(True), jnp.ones((1, 1))]
)
def test_traced_arrays_that_are_no_number_are_refused(traced):
  with pytest.raises(ValueError, match='learning_rate must be a number'):
    jax.jit(lambda rate: step(rate, 0.9))(traced)


def test_schedules_are_accepted_as_learning_rates_only():
  rate = optax.constant_schedule(0.1)
  np.testing.assert_array_equal(step(rate, 0.9), step(0.1, 0.9))
  with pytest.raises(ValueError, match='momentum must be a number'):
    step(0.1, rate)
  with pytest.raises(ValueError, match='weight_decay must be a number'):
    ga_jax.gap_aware_adam(0.1, weight_decay=rate)


def test_injected_hyperparameters_are_accepted():
  opt = optax.inject_hyperparams(rules.asgd)(
    learning_rate=optax.linear_schedule(0.1, 0.0, 10), momentum=0.5
  )
  params = jnp.ones(2)
  state = opt.init(params)
  updates, state = jax.jit(opt.update)(params, state, params)
  np.testing.assert_allclose(updates, -0.1, rtol=1e-6)
  state.hyperparams['momentum'] = jnp.float32(0.0)
  updates, _ = jax.jit(opt.update)(params, state, params)
  np.testing.assert_allclose(updates, -0.09, rtol=1e-6)


def test_an_accepted_number_keeps_its_bits():
  value = np.float32(0.1)
  wanted = step(float(value), 0.9)
  for kind in FLOATS:
    assert step(kind(value), 0.9).tobytes() == wanted.tobytes()


def test_a_violated_limit_is_named_with_the_number():
  assert checks.number('x', 10**400, finite=False) == float('inf')
  with pytest.raises(ValueError, match=r'^x must be finite and >= 0, got 1000'):
    checks.number('x', 10**400, low=0)
  with pytest.raises(ValueError, match=r'^x must be > 0 and <= 1, got 1\.5$'):
    checks.number('x', 1.5, above=0, high=1, finite=False)
  with pytest.raises(ValueError, match=r'^x must be no NaN, got nan$'):
    checks.number('x', float('nan'), finite=False)
  with pytest.raises(ValueError, match=r'^x must be a number, got None$'):
    checks.number('x', None, finite=False)
  with pytest.raises(ValueError, match=r'of shape \(2,\)$'):
    checks.integer('x', np.zeros(2, int), 0)
  with pytest.raises(
    ValueError, match=r'^n must be .* from 1 to N=3, got np.*4'
  ):
    checks.integer('n', np.uint8(4), 1, 3, 'N')
  assert checks.integer('n', np.uint8(3), 1, 3) == 3
  assert checks.number('x', jnp.bfloat16(0.5)) == 0.5
