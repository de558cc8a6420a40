"""AdaSync: K-async SGD that waits for more workers as the loss falls.

.. math::
  K_t = \\min(N, \\lceil K_0 \\sqrt{F(\\theta_0) / F(\\theta_t)} \\rceil)

Few at first, where staleness hurts least, and all of them at the end; where the
loss rises, K falls. It is evaluated when a round closes. What stands for F is
our reading, see `adaptive.py`.

References:
  Dutta, Wang, Joshi, `Slow and Stale Gradients Can Win the Race
  <https://arxiv.org/abs/2003.10579>`_, 2020.
"""

from typing import NamedTuple

from ga_jax.guards import checks
from ga_jax.policies.parts import adaptive, barrier, base


class AdaSyncState(NamedTuple):
  """The barrier, and how many it waits for."""

  rounds: barrier.BarrierState
  progress: adaptive.Progress
  wait_for: int  # K_t


def adasync(num_workers: int, adasync_k0: int = 1) -> base.Policy:
  """Averages K_t gradients per update, stale ones too.

  Args:
    num_workers: N.
    adasync_k0: K_0, from 1 to N.

  Returns:
    A `Policy` that needs losses.

  Raises:
    ValueError: an argument is out of its range.
  """
  num_workers = checks.integer('num_workers', num_workers, 1)
  adasync_k0 = checks.integer(
    'adasync_k0', adasync_k0, 1, num_workers, 'num_workers'
  )

  def init():
    return AdaSyncState(barrier.BarrierState(), adaptive.Progress(), adasync_k0)

  def decide(state, event):
    rounds, progress, wait_for = state
    if event.kind == base.Kind.ARRIVE:
      progress = adaptive.observe(progress, event.loss)
    rounds, decision = barrier.step(rounds, event, wait_for)
    if decision.action == base.Action.APPLY:
      wait_for = adaptive.wait_for(progress, adasync_k0, num_workers)
    return AdaSyncState(rounds, progress, wait_for), decision

  return base.Policy(
    init,
    decide,
    accumulates=num_workers > 1,
    needs_loss=True,
    round_size=None if num_workers > 1 else 1,
  )
