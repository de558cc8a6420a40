"""Many runs of one configuration at once: one program, mapped over the runs.

Runs that differ in numbers alone, in their seeds say, are the same computation:
the compiled block of the fast executor is mapped over them. Their schedules
differ, so each has its own trace; the snapshot buffers of all have as many rows
as the run with the most live versions needs.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax import clocks as clocks_lib
from ga_jax.executors import blocks, lengths, slots
from ga_jax.guards import checks
from ga_jax.job import job as job_lib
from ga_jax.job import source as source_lib
from ga_jax.job.result import Result
from ga_jax.simulation import simulate, virtual_cluster


@job_lib.takes_a_job
def simulate_many(
  jobs: Sequence[job_lib.Job],
  clocks: Sequence[clocks_lib.Clock],
  *,
  num_workers: int,
  num_batches: int,
  block: int | None = None,
  observe: Callable[[int], None] | None = None,
) -> list[Result]:
  """Trains several simulated clusters in one compiled program.

  It pays where a run alone leaves the device idle: small models on an
  accelerator. `experiments.bench.many_seeds` measures it.

  Args:
    jobs: what is trained, one for each run. They may differ in numbers and in
      arrays: `params`, `model_state`, `seed`, `hparams`, and in the host
      batches of `batches`, whose `resident` arrays they share.
    clocks: how long tasks take, one for each run.
    num_workers: number of workers of every run, at least 1.
    num_batches: batches to apply in every run, a multiple of those per ticket.
    block: arrivals per block; by default the fast executor's choice.
    observe: `observe(batches)` after every block, the batches of each run that
      are applied; what it raises ends the computation.

  Returns:
    A `Result` per run: what `simulate` gives, to rounding.

  Raises:
    ValueError: runs differ in what they have to share, a policy needs losses,
      or a ticket holds fewer batches than the others.

  Examples:
    >>> import ga_jax, jax.numpy as jnp, numpy as np
    >>> loss = lambda p, s, x, key: (jnp.mean((x - p) ** 2), s)
    >>> rule, policy = ga_jax.gap_aware(0.01), ga_jax.policies.asynchronous()
    >>> seeds, batches = range(3), lambda i: np.ones(4, np.float32)
    >>> results = ga_jax.simulate_many(
    ...     [ga_jax.Job(loss, jnp.zeros(()), batches, rule, policy, seed=seed)
    ...      for seed in seeds],
    ...     [ga_jax.clocks.homogeneous(seed) for seed in seeds],
    ...     num_workers=4, num_batches=500)
    >>> [round(float(result.params), 2) for result in results]
    [1.0, 1.0, 1.0]
  """
  if block is not None:
    block = checks.integer('block', block, 1)
  if not jobs or len(jobs) != len(clocks):
    raise ValueError(
      'jobs must hold at least one, and clocks one for each, got '
      f'{len(jobs)} and {len(clocks)}'
    )
  traces = [
    virtual_cluster.schedule(
      job.policy, clock, **simulate.cluster_of(job, num_workers, num_batches)
    )
    for job, clock in zip(jobs, clocks, strict=True)
  ]
  plans = _planned(jobs, traces)
  states, log = _computed(jobs, plans, traces[0].num_workers, block, observe)
  return _results(states, log, traces, plans)


def _planned(jobs, traces) -> list[slots.Plan]:
  """Plans that are alike; as many rows and columns as the largest one needs."""
  plans = [
    blocks.plan_of(job, trace) for job, trace in zip(jobs, traces, strict=True)
  ]
  _check_alike(jobs, plans)
  rows = max(plan.rows for plan in plans)
  most = max(plan.left.shape[1] for plan in plans)
  return [
    plan._replace(rows=rows, left=_wider(plan.left, most)) for plan in plans
  ]


def _computed(jobs, plans, num_workers: int, block: int | None, observe):
  """The states at the end, and the metrics of blocks, [runs, arrivals]."""
  first = jobs[0]
  unrolled = lengths.unrolled_convolutions(first)
  resets = any(plan.reset.any() for plan in plans)
  run_block = blocks.block_of(first, resets, unrolled, mapped=True)
  pairs = list(zip(jobs, plans, strict=True))
  carry = _stacked(
    [blocks.first_carry(job, plan, num_workers) for job, plan in pairs]
  )
  hparams = _stacked([job.hparams for job in jobs])
  keys = _stacked([jax.random.key(job.seed) for job in jobs])
  length = block or lengths.block_length(unrolled, None)
  log, num_batches = [], plans[0].arrivals['num_batches']
  for part in lengths.parts(num_batches, length):
    steps = [blocks.steps_of(job, plan, part) for job, plan in pairs]
    steps = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
    carry, metrics = run_block(
      carry, steps, hparams, first.source.resident, keys
    )
    log.append(metrics)
    if observe:
      if len(log) > 1:  # the device is at most one block behind
        jax.block_until_ready(log[-2])
      observe(int(num_batches[: part.stop].sum()))
  return carry.state, log


def _check_alike(jobs: Sequence[job_lib.Job], plans):
  """Raises a ValueError where runs are not one computation."""
  first, *others = jobs
  for name in (
    *('loss_fn', 'rule_fn', 'program_fn'),
    *('fold', 'accumulates', 'layer_metrics'),
  ):
    if any(getattr(job, name) != getattr(first, name) for job in others):
      raise ValueError(
        f'{name.removesuffix("_fn")} differs between the runs: they must share '
        'what is compiled'
      )
  if not all(_share_data(job.batches, first.batches) for job in others):
    raise ValueError(
      'batches differ between the runs in their resident arrays or their '
      'load_fn: they may differ in their batch_fn alone'
    )
  held = np.concatenate([plan.arrivals['num_batches'] for plan in plans])
  if (held != held[0]).any():
    raise ValueError('num_batches must be a multiple of the batches per ticket')


def _share_data(one: source_lib.Source, other: source_lib.Source) -> bool:
  """Whether two sources differ at most in their `batch_fn`."""

  def same(a, b):
    return a is b or (a.dtype == b.dtype and np.array_equal(a, b))

  trees = one.resident, other.resident
  return (
    one.load_fn == other.load_fn
    and jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
    and all(map(same, *map(jax.tree.leaves, trees)))
  )


def _stacked(trees):
  """Pytrees as one, with a leading axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _wider(left: np.ndarray, most: int) -> np.ndarray:
  """The same, of so many columns."""
  missing = most - left.shape[1]
  return np.pad(left, ((0, 0), (0, missing)), constant_values=-1)


def _results(states, log, traces, plans) -> list[Result]:
  """The results of each run."""
  metrics = {
    name: np.concatenate([np.asarray(part[name]) for part in log], axis=1)
    for name in log[0]
  }  # [runs, arrivals]
  results = []
  for i, (trace, plan) in enumerate(zip(traces, plans, strict=True)):
    state = jax.tree.map(lambda x, i=i: x[i], states)
    state = blocks.left_at_end(state, plan)
    own = {name: values[i] for name, values in metrics.items()}
    own['time'] = trace.applied()['time']
    results.append(Result(state, trace, own))
  return results
