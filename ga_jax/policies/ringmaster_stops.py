"""Ringmaster ASGD with stops: a worker is restarted as soon as it is too late.

Like `ringmaster`, but the server does not wait for a gradient that it would
ignore: after every update, workers whose delay has reached R drop what they are
computing and start again at the current version (Algorithm 5 of the paper). Our
reading: the mini-batch is issued again.

References:
  Maranjyan, Tyurin, Richtárik, `Ringmaster ASGD: The First Asynchronous SGD
  with Optimal Time Complexity <https://arxiv.org/abs/2501.16168>`_, ICML 2025.
"""

from ga_jax.policies.parts import base
from ga_jax.policies.ringmaster import delay


def ringmaster_stops(
  num_workers: int, max_delay: int | None = None
) -> base.Policy:
  """Applies each gradient as it arrives and restarts workers at delay R.

  Args:
    num_workers: N, for the default only.
    max_delay: R, in updates, at least 1; by default N, which is our choice.

  Returns:
    A `Policy` whose rounds hold one gradient.

  Raises:
    ValueError: an argument is out of its range.
  """
  max_staleness = delay(num_workers, max_delay) - 1

  def decide(state, event):
    start = (event.worker_id,)
    if event.kind == base.Kind.ARRIVE:
      action = base.Action.APPLY
      return state, base.Decision(action, 1.0, start, (), max_staleness)
    if event.kind == base.Kind.LEAVE:
      return state, base.Decision()
    return state, base.Decision(start=start)

  return base.Policy(lambda: None, decide)
