"""Gamma execution times, by the coefficient-of-variation method.

Homogeneous: every task ~ Gamma(shape 1/V², scale mean V²). Heterogeneous: a
machine mean p ~ Gamma(1/V_mach², mean V_mach²) once per worker, then each of
its tasks ~ Gamma(1/V_task², p V_task²). The default coefficients are those of
the Gap-Aware and DANA experiments.

References:
  Ali, Siegel, Maheswaran, Hensgen, Ali, Task Execution Time Modeling for
  Heterogeneous Computing Systems, HCW 2000.
"""

from ga_jax.clocks import base
from ga_jax.guards import checks

_MACHINES = 2**31  # a stream apart from every worker's tasks


def homogeneous(
  seed: int = 0, *, mean: float = 1.0, variation: float = 0.1
) -> base.Clock:
  """Equal machines with some noise.

  Args:
    seed: of the draws.
    mean: time of one batch, in time units, positive.
    variation: V, standard deviation over mean, positive.

  Returns:
    A `Clock`; at V = 0.1 0.94 % of the tasks take over 1.25 times the mean.
  """
  seed = checks.integer('seed', seed, 0)
  mean = checks.number('mean', mean, above=0.0)
  variation = checks.number('variation', variation, above=0.0)
  shape, scale = 1 / variation**2, mean * variation**2

  def draw(worker_id, chunk):
    return base.generator(seed, worker_id, chunk).gamma(
      shape, scale, base.CHUNK
    )

  return base.Clock(draw=draw, mean=mean)


def heterogeneous(
  seed: int = 0,
  *,
  mean: float = 1.0,
  machine_variation: float = 0.6,
  variation: float = 0.1,
) -> base.Clock:
  """Machines of different speed, each with some noise.

  Args:
    seed: of the draws.
    mean: expected time of one batch over machines, in time units, positive.
    machine_variation: V_mach, positive.
    variation: V_task, positive.

  Returns:
    A `Clock`; by default 27.96 % of the machines are over 1.25 times the mean.
  """
  mean = checks.number('mean', mean, above=0.0)
  machine_variation = checks.number(
    'machine_variation', machine_variation, above=0.0
  )
  shape = 1 / machine_variation**2
  scale = mean * machine_variation**2
  task = homogeneous(seed, mean=1.0, variation=variation)

  def draw(worker_id, chunk):
    machine = base.generator(seed, _MACHINES, worker_id).gamma(shape, scale)
    return machine * task.draw(worker_id, chunk)

  return base.Clock(draw=draw, mean=mean)
