"""The simulator's compiled blocks, for benchmarks whose candidates take turns.

`fast.execute` computes a trace to its end; here a run stays alive between its
turns, so that others can have theirs. Policy and clock are the asynchronous one
and the homogeneous one.
"""

import jax

import ga_jax
from experiments.bench import timing
from ga_jax import clocks, policies
from ga_jax.executors import blocks, lengths, slots
from ga_jax.simulation import virtual_cluster


def schedule(num_workers: int, num_updates: int):
  """The plan of a run, see `slots.plan`."""
  trace = virtual_cluster.schedule(
    policies.asynchronous(),
    clocks.homogeneous(0),
    num_workers=num_workers,
    num_batches=num_updates,
  )
  return slots.plan(trace)


class TimedBlocks:
  """A simulated run; a call makes some updates and says what one took."""

  def __init__(self, loss_fn, start, source, rule, num_workers, updates, turns):
    """Compiles it and goes through the buffer of live versions once.

    Args:
      loss_fn: see `ga_jax.Job`.
      start: (parameters, model statistics).
      source: `Source` of the batches.
      rule: the server's.
      num_workers: N, at least 1.
      updates: per turn; a block's length divides it.
      turns: how often it will be called.
    """
    params, model_state = start
    self._job = ga_jax.Job(
      loss_fn,
      params,
      source,
      rule,
      policies.asynchronous(),
      model_state=model_state,
      stats_momentum=0.9 if jax.tree.leaves(model_state) else None,
    )
    warm = -(-num_workers // updates) + 1
    self._plan = schedule(num_workers, (warm + turns) * updates)
    unrolled = lengths.unrolled_convolutions(self._job)
    self._length = lengths.block_length(unrolled, updates)
    self._block = blocks.block_of(self._job, False, unrolled)
    self._carry = blocks.first_carry(self._job, self._plan, num_workers)
    self._key = jax.random.key(self._job.seed)
    self._done, self._updates = 0, updates
    for _ in range(warm):
      self()

  def __call__(self) -> float:
    """Milliseconds per update of the next turn."""
    return 1e3 * timing.seconds(self._turn) / self._updates

  def _turn(self):
    log, end = [], self._done + self._updates
    for start in range(self._done, end, self._length):
      part = slice(start, start + self._length)
      self._carry, metrics = self._block(
        self._carry,
        blocks.steps_of(self._job, self._plan, part),
        self._job.hparams,
        self._job.source.resident,
        self._key,
      )
      log.append(metrics)
    self._done = end
    jax.block_until_ready((self._carry, log))
