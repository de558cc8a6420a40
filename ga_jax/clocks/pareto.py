"""Heavy-tailed execution times: now and then a task takes very long.

Pareto, :math:`P(t > x) = (x_m / x)^a` from the least time
:math:`x_m = \\mathrm{mean} (a - 1) / a` on. Our reading of the stragglers that
are seen in large clusters; the tail index a is a choice.

References:
  Dean, Barroso, `The Tail at Scale <https://doi.org/10.1145/2408776.2408794>`_,
  Communications of the ACM, 2013.
"""

from ga_jax.clocks import base
from ga_jax.guards import checks


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
  seed = checks.integer('seed', seed, 0)
  mean = checks.number('mean', mean, above=0.0)
  tail = checks.number('tail', tail, above=1.0)
  least = mean * (tail - 1) / tail

  def draw(worker_id, chunk):
    # NumPy's draws begin at 0: Lomax
    excess = base.generator(seed, worker_id, chunk).pareto(tail, base.CHUNK)
    return least * (1 + excess)

  return base.Clock(draw=draw, mean=mean)
