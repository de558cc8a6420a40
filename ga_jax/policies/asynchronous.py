"""Asynchronous: every arrival is applied at once, nobody waits.

References:
  Dean et al., Large Scale Distributed Deep Networks, NIPS 2012.
"""

from ga_jax.policies import base


def asynchronous() -> base.Policy:
  """Applies each gradient as it arrives and sends its worker on.

  Returns:
    A `Policy` whose rounds hold one gradient.
  """
  decisions = {}  # by worker: the answer is the same every time

  def answer(action, worker_id):
    key = action, worker_id
    if key not in decisions:
      decisions[key] = base.Decision(action, 1.0, (worker_id,))
    return decisions[key]

  def decide(state, event):
    if event.kind == base.Kind.ARRIVE:
      return state, answer(base.Action.APPLY, event.worker_id)
    if event.kind == base.Kind.LEAVE:
      return state, base.Decision()
    return state, answer(base.Action.NONE, event.worker_id)

  return base.Policy(init=lambda: None, decide=decide)
