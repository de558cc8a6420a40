"""The time that messages take, on top of any clock."""

from ga_jax.clocks import base


def with_communication(
  clock: base.Clock,
  *,
  latency: float = 0.0,
  bandwidth: float = float('inf'),
  message_bytes: int = 0,
) -> base.Clock:
  """Adds a pull and a push to every ticket.

  Args:
    clock: the execution times.
    latency: per message, in time units, >= 0.
    bandwidth: in bytes per time unit, positive; infinite by default.
    message_bytes: size of one message, >= 0.

  Returns:
    A `Clock` whose tickets take 2 (latency + message_bytes / bandwidth) more.
  """
  if not latency >= 0:
    raise ValueError(f'latency must be >= 0, got {latency}')
  if not bandwidth > 0:
    raise ValueError(f'bandwidth must be positive, got {bandwidth}')
  if message_bytes < 0:
    raise ValueError(f'message_bytes must be >= 0, got {message_bytes}')
  per_message = latency + message_bytes / bandwidth
  return clock._replace(overhead=clock.overhead + 2 * per_message)
