"""The time that messages take, on top of any clock."""

from ga_jax.clocks import base


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
  if not latency >= 0:
    raise ValueError(f'latency must be >= 0, got {latency}')
  if not bandwidth > 0:
    raise ValueError(f'bandwidth must be positive, got {bandwidth}')
  for name, size in (('pull_bytes', pull_bytes), ('push_bytes', push_bytes)):
    if size < 0:
      raise ValueError(f'{name} must be >= 0, got {size}')
  messages = 2 * latency + (pull_bytes + push_bytes) / bandwidth
  return clock._replace(overhead=clock.overhead + messages)
