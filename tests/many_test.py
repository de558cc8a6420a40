"""Many runs in one program: what each of them gives alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, policies, programs, rules
from tests import cases

WORKERS, BATCHES = 5, 75
PLAIN = rules.asgd(0.02, 0.0)


def run_of(seed, rule, dtype=np.float32, policy='asynchronous', **changes):
  """A job and a clock that differ by seed in all that they may."""
  loss_fn, params, stats, batch_fn = cases.tiny_problem(dtype)
  rng = np.random.default_rng(seed)
  clock = changes.pop('clock', clocks.heterogeneous(seed))
  own = {
    'params': jax.tree.map(
      lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(dtype), params
    ),
    'batches': lambda batch_id: batch_fn(1000 * seed + batch_id),
    'model_state': stats,
    'stats_momentum': 0.9,
    'seed': seed,
    **changes,
  }
  policy = policies.make(policy, WORKERS)
  return ga_jax.Job(loss_fn, rule=rule, policy=policy, **own), clock


def mapped(runs, num_batches=BATCHES, **options):
  jobs, theirs = [job for job, _ in runs], [clock for _, clock in runs]
  sizes = {'num_workers': WORKERS, 'num_batches': num_batches}
  return ga_jax.simulate_many(jobs, theirs, **sizes, **options)


def check_same(runs, apart, **options):
  results = mapped(runs, **options)
  assert len(results) == len(runs)
  for (job, clock), result in zip(runs, results, strict=True):
    alone = ga_jax.simulate(
      job, clock, num_workers=WORKERS, num_batches=BATCHES, **options
    )
    assert (alone.trace.events == result.trace.events).all()
    assert cases.distance(result.state, alone.state) < apart
    assert result.executed == alone.executed
    assert result.metrics.keys() == alone.metrics.keys()
    for name, values in alone.metrics.items():
      np.testing.assert_allclose(result.metrics[name], values, 10 * apart)
  assert not cases.same_bits(results[0].params, results[1].params)


def rule_fn(hparams):
  return rules.gap_aware(hparams['rate'], 0.0)


def program_fn(hparams):
  del hparams
  return programs.dana_slim  # workers have a state


@pytest.mark.slow
def test_runs_with_own_seeds_rates_and_deaths_equal_each_alone(x64):
  del x64
  clock = clocks.with_fault(clocks.heterogeneous(1), worker_id=2, time=4.0)
  runs = [
    run_of(
      seed,
      rule_fn,
      np.float64,
      hparams={'rate': np.float64(rate)},
      program=program_fn,
      **more,
    )
    for seed, rate, more in ((0, 0.02, {}), (1, 0.02, {'clock': clock}))
  ]
  check_same(runs, 1e-10, block=25)


@pytest.mark.slow
@pytest.mark.parametrize('block', [None, 20])
def test_a_last_block_that_is_not_full_is_computed_too(block):
  rule = cases.rule('ga', 0.02)
  check_same([run_of(seed, rule) for seed in range(3)], 1e-3, block=block)


@pytest.mark.slow
@pytest.mark.parametrize('policy', ['softsync', 'k_sync', 'ringmaster_stops'])
def test_runs_whose_rounds_close_at_other_times_equal_each_alone(policy, x64):
  del x64
  rule = cases.rule('ga', 0.02)
  runs = [run_of(seed, rule, np.float64, policy) for seed in range(3)]
  check_same(runs, 1e-10)


def source(resident):
  return ga_jax.Source(lambda batch_id: np.int32(batch_id % 4), pick, resident)


def pick(resident, host_batch, key):
  del key
  return resident[host_batch]


def test_runs_that_are_not_one_computation_are_refused():
  def refuses(match, *runs, **options):
    with pytest.raises(ValueError, match=match):
      mapped(runs, **options)

  rule = cases.rule('ga', 0.02)
  one = run_of(0, rule)
  refuses('at least one')
  refuses('rule differs', one, run_of(0, PLAIN))
  refuses('accumulates differs', one, run_of(0, rule, policy='synchronous'))
  two_steps = run_of(0, PLAIN, program=two_steps_each)
  refuses('num_batches', two_steps, num_batches=25)
  refuses('needs losses', run_of(0, rule, policy='abs'))
  data = jnp.ones((4, 16, 6)), jnp.zeros((4, 16, 6))
  refuses(
    'resident',
    *(run_of(0, rule, batches=source(resident)) for resident in data),
  )
  with pytest.raises(ValueError, match='one for each, got 1 and 0'):
    ga_jax.simulate_many([one[0]], [], num_workers=WORKERS, num_batches=9)


def two_steps_each(loss_fn):
  return programs.local_sgd(loss_fn, learning_rate=0.02, local_steps=2)
