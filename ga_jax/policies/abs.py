"""Adaptive bounded staleness (ABS).

K-async rounds in which the server waits for more and more workers, and stops
those that are too stale: they start again at the current version.

Our reading:

* :math:`K_t` is AdaSync's (see `adaptive.py`), but never falls:
  :math:`\\max(K_{t-1}, \\min(N, \\lceil K_0 \\sqrt{\\bar F_0 / \\bar F_t}
  \\rceil))`;
* :math:`\\tau_{\\max}^t = \\lceil f N / K_t \\rceil`;
* both are evaluated when a round closes, and then every worker whose staleness,
  server version minus version read, exceeds the new bound is restarted. The
  mini-batch that it dropped is issued again.

References:
  Tan, Zhu, Zhang, `ABS: Adaptive Bounded Staleness Converges Faster and
  Communicates Less <https://arxiv.org/abs/2301.08895>`_, 2023.
"""

import math
from typing import NamedTuple

from ga_jax.guards import checks
from ga_jax.policies.parts import adaptive, barrier, base


class ABSState(NamedTuple):
  """The barrier, how many it waits for, and how stale they may be."""

  rounds: barrier.BarrierState
  progress: adaptive.Progress
  wait_for: int  # K_t
  max_staleness: int  # τ_max^t


def abs(
  num_workers: int, abs_k0: int = 1, abs_factor: float = 2.0
) -> base.Policy:
  """Averages K_t gradients per update, none staler than τ_max^t.

  Args:
    num_workers: N.
    abs_k0: K_0, from 1 to N.
    abs_factor: f, positive and finite.

  Returns:
    A `Policy` that needs losses.

  Raises:
    ValueError: an argument is out of its range.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  abs_k0 = checks.integer('abs_k0', abs_k0, 1, num_workers, 'num_workers')
  abs_factor = checks.number('abs_factor', abs_factor, above=0.0)

  def bound(wait_for):
    # τ_max^t = ⌈f N / K_t⌉
    return math.ceil(abs_factor * num_workers / wait_for)

  def init():
    return ABSState(
      barrier.BarrierState(), adaptive.Progress(), abs_k0, bound(abs_k0)
    )

  def decide(state, event):
    rounds, progress, wait_for, max_staleness = state
    if event.kind == base.Kind.ARRIVE:
      progress = adaptive.observe(progress, event.loss)
    rounds, decision = barrier.step(rounds, event, wait_for)
    if decision.action == base.Action.APPLY:
      wait_for = max(wait_for, adaptive.wait_for(progress, abs_k0, num_workers))
      max_staleness = bound(wait_for)
      decision = base.Decision(
        decision.action, 1.0, decision.start, (), max_staleness
      )
    return ABSState(rounds, progress, wait_for, max_staleness), decision

  return base.Policy(
    init,
    decide,
    accumulates=num_workers > 1,
    needs_loss=True,
    round_size=None if num_workers > 1 else 1,
  )
