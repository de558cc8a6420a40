"""Heavy-tailed execution times: now and then a task takes very long.

Pareto, :math:`P(t > x) = (x_m / x)^a` from the least time
:math:`x_m = \\mathrm{mean} (a - 1) / a` on. Our reading of the stragglers that
are seen in large clusters; the tail index a is a choice.

References:
  Dean, Barroso, `The Tail at Scale <https://doi.org/10.1145/2408776.2408794>`_,
  Communications of the ACM, 2013.
"""

import math

from ga_jax.clocks import base


def pareto(
  seed: int = 0, *, mean: float = 1.0, tail: float = 2.5
) -> base.Clock:
  """Equal machines with stragglers.

  Args:
    seed: of the draws.
    mean: expected time of one batch, in time units, positive.
    tail: a, above 1; up to 2 the variance is infinite.

  Returns:
    A `Clock`; by default 15.96 % of the tasks take over 1.25 times the mean.

  Raises:
    ValueError: an argument is out of its range.
  """
  base.check_positive(mean=mean)
  if not (tail > 1 and math.isfinite(tail)):
    raise ValueError(f'tail must be finite and above 1, got {tail}')
  least = mean * (tail - 1) / tail

  def draw(worker_id, chunk):
    # NumPy's draws begin at 0: Lomax
    excess = base.generator(seed, worker_id, chunk).pareto(tail, base.CHUNK)
    return least * (1 + excess)

  return base.Clock(draw=draw, mean=mean)
