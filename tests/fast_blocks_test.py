"""Compiled blocks: what XLA's CPU compiler may not copy in every step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, policies, rules
from ga_jax.executors import blocks, slots
from ga_jax.simulation import virtual_cluster

WORKERS, SIZE, LENGTH = 11, 4099, 2


def compiled(rule, unrolled):
  """The text of a block for one flat vector of parameters, and its rows."""

  def loss_fn(params, model_state, batch, key):
    del key
    return jnp.mean((jnp.tanh(params) - batch) ** 2), model_state

  policy = policies.asynchronous()
  job = ga_jax.Job(
    loss_fn, jnp.ones(SIZE), lambda batch_id: np.float32(batch_id), rule, policy
  )
  trace = virtual_cluster.schedule(
    policy, clocks.homogeneous(0), num_workers=WORKERS, num_batches=99
  )
  plan = slots.plan(trace)
  block = blocks.block_of(job, resets=False, unrolled=unrolled)
  program = block.lower(
    blocks.first_carry(job, plan, WORKERS),
    blocks.steps_of(job, plan, slice(0, LENGTH)),
    job.hparams,
    job.source.resident,
    jax.random.key(0),
  )
  return program.compile().as_text(), plan.rows


def copied(text, shape):
  """Instructions that copy an array of a shape, those of the start left out."""
  wanted = ','.join(map(str, shape))
  found = re.findall(rf'= \w+\[{wanted}\]\S* copy\((\S+?)\)', text)
  return [operand for operand in found if not operand.startswith('%carry_')]


@pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='reads what the CPU compiler makes'
)
@pytest.mark.parametrize('unrolled', [False, True])
def test_a_block_copies_neither_buffer_nor_parameters(unrolled):
  text, rows = compiled(rules.gap_aware(0.1), unrolled)
  assert rows == WORKERS
  assert f'f32[{rows},{SIZE}]' in text
  assert not copied(text, (rows, SIZE))
  assert not copied(text, (SIZE,))
