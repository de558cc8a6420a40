"""The simulated cluster: a virtual clock, and every run the same twice.

The schedule is played on the host first (who finishes when, what the policy
decides); it needs no gradient. Its trace is then executed. Ties in time go to
the lower worker id, and at one time answers come before new tickets.
"""

import heapq
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ga_jax import clocks, kernel, ledger, programs, server
from ga_jax import trace as trace_lib
from ga_jax.policies.base import Policy
from ga_jax.runtimes import exact, fast
from ga_jax.runtimes import job as job_lib

EXECUTORS = {'fast': fast.execute, 'exact': exact.execute}


class Result(NamedTuple):
  """What a run leaves behind.

  Attributes:
    state: the server's state, a `kernel.ServerState`.
    trace: what happened; of a run that was stopped, all that was scheduled.
    metrics: host arrays with an entry per executed arrival: loss, staleness,
      gap, mean_penalty, max_penalty.
    executed: how many of the trace's applied arrivals were computed.
  """

  state: kernel.ServerState
  trace: trace_lib.Trace
  metrics: dict[str, np.ndarray]
  executed: int

  @property
  def params(self):
    return self.state.params


def schedule(
  policy: Policy,
  clock: clocks.Clock,
  *,
  num_workers: int,
  num_batches: int,
  batches_per_ticket: int = 1,
) -> trace_lib.Trace:
  """Plays a cluster without computing anything.

  Args:
    policy: whom the server waits for; it must not need losses.
    clock: how long tasks take.
    num_workers: workers, all there from time 0.
    num_batches: batches to apply.
    batches_per_ticket: consecutive batches per ticket.

  Returns:
    The complete `Trace`; times are in the clock's units.
  """
  if num_workers < 1:
    raise ValueError(f'num_workers must be at least 1, got {num_workers}')
  if policy.needs_loss:
    raise ValueError('this policy needs losses and cannot be scheduled alone')
  book = ledger.Ledger(
    policy, num_batches=num_batches, batches_per_ticket=batches_per_ticket
  )
  next_time = clocks.task_times(clock)
  finishes, now = [], 0.0
  for worker_id in range(num_workers):
    book.join(worker_id, now)
  while True:
    while book.ready and book.has_batches:
      worker_id = book.ready[0]
      ticket = book.ticket(worker_id, now)
      duration = clock.overhead
      for _ in range(ticket.num_batches):
        duration += next_time(worker_id)
      heapq.heappush(finishes, (now + duration, worker_id, ticket))
    if not finishes:
      break
    now, _, ticket = heapq.heappop(finishes)
    if ticket.ticket_id in book.outstanding:  # not revoked meanwhile
      book.arrive(ticket, now)
  book.finish(now)
  return book.trace(num_workers)


def simulate(
  loss_fn: Callable[..., Any],
  params,
  batches: job_lib.Source | Callable[[int], Any],
  rule,
  *,
  policy: Policy,
  clock: clocks.Clock,
  num_workers: int,
  num_batches: int,
  model_state=(),
  stats_momentum: float = 0.9,
  seed: int = 0,
  hparams: Any = None,
  program: Callable[..., programs.Program] = programs.gradient,
  executor: str = 'fast',
  block: int | None = None,
  align: int | None = None,
  observe: Callable[[int, kernel.ServerState, Any], bool] | None = None,
) -> Result:
  """Trains with N simulated workers.

  Args:
    loss_fn: `loss_fn(params, model_state, batch, key) -> (loss, model_state)`.
    params: initial parameters, a pytree of arrays; copied.
    batches: `batch_fn(batch_id) -> batch` of NumPy arrays, or a `Source`.
    rule: a rule, a plain optax transformation, or, with `hparams`, a function
      `rule(hparams) -> rule`.
    policy: whom the server waits for.
    clock: how long tasks take.
    num_workers: number of workers, at least 1.
    num_batches: batches to apply, at least 1.
    model_state: initial running statistics, () without.
    stats_momentum: their momentum m.
    seed: of the keys that batches and losses are given.
    hparams: numbers for `rule`; other numbers compile nothing again.
    program: what a worker does, `program(loss_fn) -> Program`.
    executor: 'fast' (compiled blocks) or 'exact' (a live run's bits).
    block: arrivals per block, and between two calls of `observe`.
    align: arrivals between points of interest (an epoch); blocks are chosen to
      end there where that is possible.
    observe: `observe(arrivals, state, metrics) -> stop`.

  Returns:
    A `Result`.

  Raises:
    ValueError: an argument is out of range, or rule and policy do not go
      together.

  Examples:
    >>> import ga_jax, jax.numpy as jnp, numpy as np
    >>> loss = lambda p, s, x, key: (jnp.mean((x - p) ** 2), s)
    >>> result = ga_jax.simulate(
    ...     loss, jnp.zeros(()), lambda i: np.ones(4, np.float32),
    ...     ga_jax.gap_aware(0.01), policy=ga_jax.policies.asynchronous(),
    ...     clock=ga_jax.clocks.homogeneous(0), num_workers=4, num_batches=500)
    >>> print(round(float(result.params), 2))
    1.0
  """
  if executor not in EXECUTORS:
    raise ValueError(
      f'executor must be one of {sorted(EXECUTORS)}, got {executor!r}'
    )
  if not isinstance(batches, job_lib.Source):
    batches = job_lib.Source(batches)
  resident = jax.tree.map(jnp.asarray, batches.resident)  # moved only once
  batches = batches._replace(resident=resident)
  job = job_lib.Job(
    loss_fn=loss_fn,
    source=batches,
    rule_fn=server.fixed(rule) if hparams is None else rule,
    hparams=() if hparams is None else hparams,
    params=params,
    model_state=model_state,
    stats_momentum=float(stats_momentum),
    program=program,
    accumulates=policy.accumulates,
    seed=seed,
  )
  per_ticket = program(loss_fn).num_batches
  if num_batches % per_ticket:
    raise ValueError(
      f'num_batches={num_batches} must be a multiple of the {per_ticket} '
      'batches that the program takes per ticket'
    )
  kernel.check_rule(job.rule_fn(job.hparams), job.accumulates, num_workers)
  trace = schedule(
    policy,
    clock,
    num_workers=num_workers,
    num_batches=num_batches,
    batches_per_ticket=per_ticket,
  )
  state, metrics, executed = EXECUTORS[executor](
    job, trace, observe=observe, block=block, align=align
  )
  return Result(state, trace, metrics, executed)
