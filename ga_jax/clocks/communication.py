"""The time that messages take, on top of any clock."""

from ga_jax.clocks import base
from ga_jax.guards import checks


def with_communication(
  clock: base.Clock,
  *,
  latency: float = 0.0,
  bandwidth: float = float('inf'),
  pull_bytes: int = 0,
  push_bytes: int = 0,
) -> base.Clock:
  """Adds a pull and a push to every ticket.

  Args:
    clock: the execution times.
    latency: per message, in time units, >= 0.
    bandwidth: in bytes per time unit, positive; infinite by default.
    pull_bytes: size of what a worker is sent, >= 0.
    push_bytes: size of what a worker submits, >= 0.

  Returns:
    A `Clock` whose tickets take 2 latency + (pull_bytes + push_bytes) /
    bandwidth more.
  """
  latency = checks.number('latency', latency, low=0.0)
  bandwidth = checks.number('bandwidth', bandwidth, above=0.0, finite=False)
  pull_bytes = checks.integer('pull_bytes', pull_bytes, 0)
  push_bytes = checks.integer('push_bytes', push_bytes, 0)
  messages = 2 * latency + (pull_bytes + push_bytes) / bandwidth
  return clock._replace(overhead=clock.overhead + messages)
