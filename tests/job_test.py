"""A job: what is trained, checked when it is made and never changed."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, policies, programs, rules
from ga_jax.executors import blocks, saving
from ga_jax.record import checkpoints
from tests import cases

RULE = rules.gap_aware(0.02, 0.0)
SIZES = {'num_workers': 3, 'num_batches': 16}


def rule_fn(hparams):
  return rules.gap_aware(hparams['rate'], 0.0)


def trained(job):
  return ga_jax.simulate(job, clocks.constant(), **SIZES)


def test_a_job_is_frozen_and_copies_its_parameters():
  params = np.ones(3, np.float32)
  job = ga_jax.Job(
    lambda p, state, x, key: (jnp.sum(p * x), state),
    params,
    lambda batch_id: np.ones(3, np.float32),
    RULE,
    policies.asynchronous(),
  )
  params[:] = 7
  assert job.params.tolist() == [1, 1, 1]
  with pytest.raises(dataclasses.FrozenInstanceError):
    job.seed = 1
  with pytest.raises(ValueError, match='seed must be'):
    dataclasses.replace(job, seed=-1)


def test_another_job_of_the_same_parts_compiles_nothing_again():
  job = cases.tiny_job(RULE, policies.asynchronous())
  trained(job)
  before = blocks.compiled_block.cache_info().misses
  other = dataclasses.replace(job, seed=5)
  trained(other)
  trained(cases.tiny_job(RULE, policies.ringmaster(3)))
  assert blocks.compiled_block.cache_info().misses == before


@pytest.mark.parametrize(
  'own',
  [
    {'rule': RULE, 'seed': 3, 'program': programs.dana_slim},
    {'rule': rule_fn, 'hparams': {'rate': 0.02}},
  ],
)
def test_a_pickled_job_gives_the_same_bits(own):
  own = {**own, 'params': jax.tree.map(jnp.asarray, cases.tiny_problem()[1])}
  job = cases.tiny_job(own.pop('rule'), policies.asynchronous(), **own)
  sent = copy.copy(job)  # the way of pickle, which wants importable functions
  assert isinstance(sent.params['w'], np.ndarray)
  assert cases.same_bits(trained(sent).state, trained(job).state)


def test_pickled_live_options_keep_their_checkpoints(tmp_path):
  store = checkpoints.CheckpointStore(str(tmp_path))
  live = ga_jax.Live(
    trace_path=str(tmp_path / 'rows'),
    checkpoints=saving.Checkpoints(store, 5, about={'rate': 0.02}),
  )
  sent = pickle.loads(pickle.dumps(live))
  job = cases.tiny_job(RULE, policies.asynchronous())
  ga_jax.run_on_threads(job, live=sent, **SIZES)
  assert store.steps()


def test_making_and_pickling_a_job_takes_no_device():
  """A driver on a node with an accelerator leaves it to the workers."""
  code = (
    'import ga_jax, numpy as np; '
    'source = ga_jax.Source(lambda i: np.ones(3), resident=np.ones(3)); '
    'job = ga_jax.Job(lambda p, s, x, key: (p.sum(), s), np.ones(3), source, '
    'ga_jax.gap_aware(0.1), ga_jax.policies.asynchronous()); '
    'job.check_workers(4); job.__reduce__(); '
    'from jax._src import xla_bridge; print(len(xla_bridge._backends))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  ).stdout
  assert out.strip() == '0'
