"""One case for every method, and what is right for it, worked out apart.

Whatever stands in a registry of ga_jax has its case here, and the common suites
run over the cases; `method_cases_test.py` says by name where one is missing,
and where a case has no oracle.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

from ga_jax import clocks, compression, programs, rules
from ga_jax.compression import base as compression_base
from tests.oracles import compression as compression_oracles
from tests.oracles import programs as program_oracles
from tests.oracles import rules as oracles

WORKERS = 3
RATE = 0.05
SGD = optax.sgd(RATE, 0.9)
NESTEROV = optax.sgd(RATE, 0.9, nesterov=True)
_ADAMW = optax.adamw(RATE, weight_decay=1e-2)


class RuleCase(NamedTuple):
  """A rule as the suites run it.

  Attributes:
    make: `make(learning_rate) -> rule`, momentum 0.9, of `WORKERS` workers.
    oracle: a class of `tests/oracles/rules.py` for it: `oracle(theta, rate,
      momentum)` in float64, written from the formula and not from our code.
    alone: (a rule of one worker at `RATE`, the plain optimiser whose parameters
      that worker is sent).
    scaled: `scaled(c) -> rule` that makes the same path of gradients c times as
      large; None where a constant of the paper has their unit.
    needs: what `update` must be told of stale_params, staleness, worker_id.
    averages: whether a round can be averaged before its step.
  """

  make: Callable[[Any], rules.AsyncOptimizer]
  oracle: Callable[..., oracles.ASGD]
  alone: tuple[Any, Any]
  scaled: Callable[[Any], Any] | None
  needs: tuple[str, ...] = ()
  averages: bool = True


_part = functools.partial
# By name; the registered ones, and others that have a formula of their own.
RULES = {
  'asgd': RuleCase(
    lambda rate: rules.asgd(rate, weight_decay=1e-3),
    _part(oracles.ASGD, wd=1e-3),
    (rules.asgd(RATE), SGD),
    lambda c: rules.asgd(0.25 / c, weight_decay=0.125 * c),
  ),
  'nag_asgd': RuleCase(
    lambda rate: rules.asgd(rate, nesterov=True),
    _part(oracles.ASGD, nesterov=True),
    (rules.asgd(RATE, nesterov=True), NESTEROV),
    lambda c: rules.asgd(0.25 / c, nesterov=True),
  ),
  'adam': RuleCase(
    lambda rate: rules.adam(rate, weight_decay=1e-2),
    _part(oracles.Adam, wd=1e-2),
    (rules.adam(RATE, weight_decay=1e-2), _ADAMW),
    lambda c: rules.adam(0.25, adam_eps=1e-3 * c),
  ),
  'sa': RuleCase(
    lambda rate: rules.sa(rate, weight_decay=1e-3),
    _part(oracles.SA, wd=1e-3),
    (rules.sa(RATE), SGD),
    lambda c: rules.sa(0.25 / c),
    ('staleness',),
  ),
  'dynsgd': RuleCase(
    lambda rate: rules.dynsgd(rate, weight_decay=1e-3),
    _part(oracles.DynSGD, wd=1e-3),
    (rules.dynsgd(RATE), SGD),
    lambda c: rules.dynsgd(0.25 / c),
    ('staleness',),
  ),
  'staleness_discounted': RuleCase(
    lambda rate: rules.staleness_discounted(rate),
    oracles.StalenessDiscounted,
    (rules.staleness_discounted(RATE), SGD),
    lambda c: rules.staleness_discounted(0.25 / c),
    ('staleness',),
  ),
  'delay_adaptive': RuleCase(
    lambda rate: rules.delay_adaptive(rate, WORKERS),
    oracles.DelayAdaptive,
    (rules.delay_adaptive(RATE, 1), SGD),
    lambda c: rules.delay_adaptive(0.25 / c, 3),
    ('staleness',),
  ),
  'ga': RuleCase(
    lambda rate: rules.ga(rate, weight_decay=1e-3),
    _part(oracles.GA, wd=1e-3),
    (rules.ga(RATE), SGD),
    lambda c: rules.ga(0.25 / c, eps=1e-3 * c),
    ('stale_params',),
  ),
  'ga_nesterov': RuleCase(
    lambda rate: rules.ga(rate, nesterov=True),
    _part(oracles.GA, nesterov=True),
    (rules.ga(RATE, nesterov=True), NESTEROV),
    lambda c: rules.ga(0.25 / c, nesterov=True, eps=1e-3 * c),
    ('stale_params',),
  ),
  'ga_global': RuleCase(
    lambda rate: rules.ga_global(rate),
    oracles.GAGlobal,
    (rules.ga_global(RATE), SGD),
    lambda c: rules.ga_global(0.25 / c, eps=1e-3 * c),
    ('stale_params',),
  ),
  'ga_adam': RuleCase(
    lambda rate: rules.ga_adam(rate, weight_decay=1e-2),
    _part(oracles.GAAdam, wd=1e-2),
    (rules.ga_adam(RATE, weight_decay=1e-2), _ADAMW),
    lambda c: rules.ga_adam(0.25, adam_eps=1e-3 * c, eps=1e-3),
    ('stale_params',),
  ),
  'multi_asgd': RuleCase(
    lambda rate: rules.multi_asgd(rate, WORKERS),
    oracles.MultiASGD,
    (rules.multi_asgd(RATE, 1), SGD),
    lambda c: rules.multi_asgd(0.25 / c, 3),
    ('worker_id',),
    averages=False,
  ),
  'dana_zero': RuleCase(
    lambda rate: rules.dana_zero(rate, WORKERS, weight_decay=1e-3),
    _part(oracles.DANAZero, wd=1e-3),
    (rules.dana_zero(RATE, 1), NESTEROV),
    lambda c: rules.dana_zero(0.25 / c, 3),
    ('worker_id',),
    averages=False,
  ),
  'dana_slim': RuleCase(
    lambda rate: rules.dana_slim(rate, WORKERS, weight_decay=1e-3),
    _part(oracles.DANASlim, wd=1e-3),
    (rules.dana_slim(RATE, 1), NESTEROV),
    lambda c: rules.dana_slim(0.25 / c, 3),
    ('worker_id',),
  ),
  'dana_dc': RuleCase(
    lambda rate: rules.dana_dc(rate, WORKERS, weight_decay=1e-3),
    _part(oracles.DANADC, wd=1e-3),
    # It compensates a fresh gradient for the look-ahead too.
    (rules.dana_dc(RATE, 1, dc_lambda=0.0), NESTEROV),
    lambda c: rules.dana_dc(0.25 / c, 3, dc_lambda=2.0 / c),
    ('stale_params', 'worker_id'),
    averages=False,
  ),
  'dana_ga': RuleCase(
    lambda rate: rules.dana_ga(rate, WORKERS, weight_decay=1e-3),
    _part(oracles.DANAGA, wd=1e-3),
    (rules.dana_ga(RATE, 1), NESTEROV),
    lambda c: rules.dana_ga(0.25 / c, 3, eps=1e-3 * c),
    ('stale_params', 'staleness', 'worker_id'),
    averages=False,
  ),
  'dc_asgd': RuleCase(
    lambda rate: rules.dc_asgd(rate, weight_decay=1e-3),
    _part(oracles.DCASGD, wd=1e-3),
    (rules.dc_asgd(RATE), SGD),
    lambda c: rules.dc_asgd(0.25 / c, dc_lambda=0.04 / c),
    ('stale_params',),
  ),
  'dc_asgd_a': RuleCase(
    lambda rate: rules.dc_asgd_a(rate, weight_decay=1e-3),
    _part(oracles.DCASGDAdaptive, wd=1e-3),
    (rules.dc_asgd_a(RATE), SGD),
    None,  # the paper's 1e-7
    ('stale_params',),
  ),
  'lwp': RuleCase(
    lambda rate: rules.lwp(rate, WORKERS, weight_decay=1e-3),
    _part(oracles.LWP, wd=1e-3),
    (rules.lwp(RATE, 1), SGD),
    lambda c: rules.lwp(0.25 / c, 3),
  ),
  'smega2': RuleCase(
    lambda rate: rules.smega2(rate, WORKERS, weight_decay=1e-3),
    _part(oracles.SMEGA2, wd=1e-3),
    (rules.smega2(RATE, 1), NESTEROV),
    lambda c: rules.smega2(0.25 / c, 3),
  ),
  'ormo': RuleCase(
    lambda rate: rules.ormo(rate, WORKERS, weight_decay=1e-3),
    _part(oracles.OrMo, wd=1e-3),
    (rules.ormo(RATE, 1), SGD),
    lambda c: rules.ormo(0.25 / c, 3),
    ('staleness',),
  ),
  'delayed_nesterov': RuleCase(
    lambda rate: rules.delayed_nesterov(rate, WORKERS),
    oracles.DelayedNesterov,
    (rules.delayed_nesterov(RATE, 1), NESTEROV),
    lambda c: rules.delayed_nesterov(0.25 / c, 3),
  ),
  'penalize_gap': RuleCase(
    lambda rate: rules.chain(rules.penalize_gap(), rules.asgd(rate)),
    oracles.PenalizeGap,
    (rules.chain(rules.penalize_gap(), SGD), SGD),
    lambda c: rules.chain(rules.penalize_gap(), rules.asgd(0.25 / c)),
    ('stale_params',),
  ),
}


class PolicyCase(NamedTuple):
  """A policy, and what it promises with N workers.

  Attributes:
    oracle: `oracle(num_workers, **parameters) -> (gradients of a round, None
      where that changes; the greatest staleness that is applied)`.
    ranges: {parameter: `range(num_workers) -> (least, greatest)`}, integers,
      or floats.
  """

  oracle: Callable[..., tuple[int | None, float]]
  ranges: dict[str, Callable[[int], tuple[float, float]]]


def _up_to_all(n):
  return 1, n


POLICIES = {
  'asynchronous': PolicyCase(lambda n: (1, math.inf), {}),
  'synchronous': PolicyCase(lambda n: (n, 0), {}),
  'backup_workers': PolicyCase(
    lambda n, backups: (n - backups, 0), {'backups': lambda n: (0, n - 1)}
  ),
  'k_sync': PolicyCase(
    lambda n, wait_for: (wait_for, 0), {'wait_for': _up_to_all}
  ),
  'k_async': PolicyCase(
    lambda n, wait_for: (wait_for, math.inf), {'wait_for': _up_to_all}
  ),
  'softsync': PolicyCase(
    lambda n, softsync_n: (n // softsync_n, math.inf),
    {'softsync_n': _up_to_all},
  ),
  'ssp': PolicyCase(
    # A worker is at most s steps behind, each of the others s ahead of it.
    lambda n, max_staleness: (1, (n - 1) * (2 * max_staleness + 1)),
    {'max_staleness': lambda n: (0, 3)},
  ),
  'adasync': PolicyCase(
    lambda n, adasync_k0: (None, math.inf), {'adasync_k0': _up_to_all}
  ),
  'abs': PolicyCase(
    lambda n, abs_k0, abs_factor: (None, math.ceil(abs_factor * n / abs_k0)),
    {'abs_k0': _up_to_all, 'abs_factor': lambda n: (0.1, 3.0)},
  ),
  'gba': PolicyCase(
    lambda n, max_staleness: (n, max_staleness),
    {'max_staleness': lambda n: (0, 3)},
  ),
  'fedbuff': PolicyCase(
    lambda n, buffer_size: (buffer_size, math.inf),
    {'buffer_size': lambda n: (1, 2 * n)},
  ),
  'ringmaster': PolicyCase(
    lambda n, max_delay: (1, max_delay - 1),
    {'max_delay': lambda n: (1, n + 2)},
  ),
  'ringmaster_stops': PolicyCase(
    lambda n, max_delay: (1, max_delay - 1),
    {'max_delay': lambda n: (1, n + 2)},
  ),
  'rennala': PolicyCase(
    lambda n, batch_gradients: (batch_gradients, 0),
    {'batch_gradients': lambda n: (1, 2 * n)},
  ),
}


def drawn(name: str, num_workers: int, rng) -> dict[str, float]:
  """Random parameters of a policy within their ranges."""
  found = {}
  for parameter, range_ in POLICIES[name].ranges.items():
    low, high = range_(num_workers)
    if isinstance(low, float):
      found[parameter] = float(rng.uniform(low, high))
    else:
      found[parameter] = int(rng.integers(low, high, endpoint=True))
  return found


class ProgramCase(NamedTuple):
  """A worker program.

  Attributes:
    make: `make(loss_fn, **other arguments) -> Program`.
    oracle: a class of `tests/oracles/programs.py` with the same arguments.
    rate: of the server's rule: the program's own where it takes steps.
  """

  make: Callable[..., programs.Program]
  oracle: Callable[[], Any]
  rate: float = RATE


PROGRAMS = {
  'gradient': ProgramCase(programs.gradient, program_oracles.Gradient),
  'local_sgd': ProgramCase(
    _part(programs.local_sgd, learning_rate=RATE, local_steps=3),
    _part(program_oracles.LocalSGD, RATE),
    rate=1.0,
  ),
  'easgd': ProgramCase(
    _part(programs.easgd, learning_rate=RATE, num_workers=3, local_steps=3),
    _part(program_oracles.EASGD, RATE, 0.9 / 3),
    rate=1.0,
  ),
  'laga': ProgramCase(
    _part(programs.laga, local_steps=3), program_oracles.LAGA
  ),
  'dana_slim': ProgramCase(
    programs.dana_slim, _part(program_oracles.DANASlim, 0.9)
  ),
}


def compressed(program, stage: compression.Compression):
  """The factory of a program whose submissions are sent through a stage."""
  return lambda loss_fn: compression_base.compressed(program(loss_fn), stage)


class CompressionCase(NamedTuple):
  """A compression of submissions.

  Attributes:
    make: `make() -> Compression`.
    oracle: a class of `tests/oracles/compression.py`: what arrives, or where it
      is drawn, what arrives on average.
    message_bytes: `message_bytes(sizes of the leaves) -> bytes`.
  """

  make: Callable[[], compression.Compression]
  oracle: Callable[[], Any]
  message_bytes: Callable[[list[int]], int]


COMPRESSIONS = {
  'none': CompressionCase(
    compression.none,
    compression_oracles.Unchanged,
    lambda sizes: 4 * sum(sizes),
  ),
  'bf16': CompressionCase(
    compression.bf16,
    compression_oracles.BF16,
    lambda sizes: 2 * sum(sizes),
  ),
  'terngrad': CompressionCase(  # a scale, and four numbers a byte, per leaf
    compression.terngrad,
    compression_oracles.Unchanged,
    lambda sizes: sum(4 + math.ceil(size / 4) for size in sizes),
  ),
  'topk': CompressionCase(  # values and their indices
    _part(compression.topk, 0.1),
    _part(compression_oracles.TopK, 0.1),
    lambda sizes: (4 + 4) * math.ceil(0.1 * sum(sizes)),
  ),
}


class ClockCase(NamedTuple):
  """A clock of mean 1.

  Attributes:
    make: `make(seed) -> Clock`.
    oracle: {t: chance that a batch of some worker takes longer than t}.
  """

  make: Callable[[int], clocks.Clock]
  oracle: dict[float, float]


CLOCKS = {
  # Gamma distributions, integrated numerically.
  'homogeneous': ClockCase(clocks.homogeneous, {1.1: 0.1583, 1.25: 0.0094}),
  'heterogeneous': ClockCase(clocks.heterogeneous, {0.5: 0.7908, 1.25: 0.2788}),
  'constant': ClockCase(clocks.constant, {0.999: 1.0, 1.0: 0.0}),
  'exponential': ClockCase(
    clocks.exponential, {0.5: math.exp(-0.5), 2.0: math.exp(-2.0)}
  ),
  'pareto': ClockCase(  # from 0.6 with tail 2.5
    clocks.pareto, {0.599: 1.0, 1.25: (0.6 / 1.25) ** 2.5, 6.0: 0.1**2.5}
  ),
}


def chances(clock: clocks.Clock, times) -> np.ndarray:
  """How many of the batches of 4000 workers take longer than some times."""
  took = np.concatenate([clock.draw(worker, 0) for worker in range(4000)])
  return np.array([np.mean(took > t) for t in times])
