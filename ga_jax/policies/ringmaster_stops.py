"""Ringmaster ASGD with stops: a worker is restarted as soon as it is too late.

Like `ringmaster`, but the server does not wait for a gradient that it would
ignore: after every update, workers whose delay has reached R drop what they are
computing and start again at the current version (Algorithm 5 of the paper). Our
reading: the mini-batch is issued again.

References:
  Maranjyan, Tyurin, Richtárik, `Ringmaster ASGD: The First Asynchronous SGD
  with Optimal Time Complexity <https://arxiv.org/abs/2501.16168>`_, ICML 2025.
"""

from ga_jax.policies import base, reads
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
    worker_id = event.worker_id
    if event.kind == base.Kind.ISSUE:
      return reads.begin(state, worker_id), base.Decision()
    state = reads.end(state, worker_id)
    if event.kind == base.Kind.ARRIVE:
      state, late = reads.close(state, max_staleness)
      return state, base.Decision(base.Action.APPLY, 1.0, (worker_id,), late)
    if event.kind == base.Kind.LEAVE:
      return state, base.Decision()
    return state, base.Decision(start=(worker_id,))

  return base.Policy(reads.init, decide, needs_issue=True)
