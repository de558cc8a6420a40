"""What a slow worker costs: asynchronous threads against synchronous ones.

  python -m experiments.bench.straggler --figure=results/straggler/straggler.png

Four workers whose gradient takes 20 ms, one of them 5 times slower. The
gradient sleeps, so that cores are not the limit. The yardstick is the sum of
the workers' own rates, each measured alone; the runs take turns. The last
lines are the utilisation of two workers whose gradient computes for 20 ms and
more, with and without a snapshot read ahead.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import ga_jax
from experiments.bench import timing
from experiments.script import launch, shared_flags
from experiments.settings import path_flags
from ga_jax import plots, policies

_SECONDS = flags.DEFINE_float('gradient_seconds', 0.02, 'of a fast worker')
_FACTOR = flags.DEFINE_float('factor', 5.0, 'by which the straggler is slower')
_WORKERS = flags.DEFINE_integer('workers', 4, 'one of them is the straggler', 2)
_UPDATES = flags.DEFINE_integer('batches', 240, 'per run of all workers', 1)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'runs of each', 1)
_FIGURE = path_flags.output(
  'figure', '', 'also draw them here (.png, .svg, .pdf)'
)

ALL = 'sum of the workers alone'
ASYNCHRONOUS = 'asynchronous'
SYNCHRONOUS = 'SSGD'

LIMITS = """
SSGD falls to the straggler's own rate times the number of workers, as it must.
Workers that compute share the cores with the server: what is missing to full
use is the snapshot and the answer, which `--pipeline_depth=1` hides at the
price of one more step of staleness.
"""


def prepare():
  """Makes a CPU device per worker before JAX starts."""
  shared_flags.check_positive(_SECONDS, _FACTOR)
  jax.config.update('jax_num_cpu_devices', _WORKERS.value)


def main(_):
  where = timing.machine()
  fast, slow = _SECONDS.value, _SECONDS.value * _FACTOR.value
  everybody = (slow,) + (fast,) * (_WORKERS.value - 1)
  measured = timing.alternate(
    {
      'fast worker alone': lambda: sleeping_rate((fast,)),
      'straggler alone': lambda: sleeping_rate((slow,)),
      ASYNCHRONOUS: lambda: sleeping_rate(everybody),
      SYNCHRONOUS: lambda: sleeping_rate(everybody, policies.synchronous),
    },
    _ROUNDS.value,
  )
  measured[ALL] = [
    (_WORKERS.value - 1) * one + other
    for one, other in zip(
      measured['fast worker alone'], measured['straggler alone'], strict=True
    )
  ]
  timing.say(f'{"":26} batches/s                 part of the sum')
  rows = []
  parts = {}
  for name, rates in measured.items():
    parts[name] = timing.ratios(rates, measured[ALL])
    timing.say(f'{name:26} {timing.figure(rates)!s:25} {parts[name]}')
    rows.append({'name': name, 'batches_per_second': rates})
  busy = [computing(0) | computing(1) for _ in range(_ROUNDS.value)]
  for name in busy[0]:
    values = [one[name] for one in busy]
    timing.say(f'{name:52} {timing.figure(values)}')
    rows.append({'name': name, 'values': values})
  target = 'asynchronous, over the sum of the workers alone'
  timing.finish(
    where,
    rows,
    [timing.Target(target, parts[ASYNCHRONOUS], 0.95, at_least=True)],
  )
  if _FIGURE.value:
    shown = (ALL, ASYNCHRONOUS, SYNCHRONOUS)
    figure = plots.bars(
      {name: measured[name] for name in shown},
      title=f'{_WORKERS.value} workers, one {_FACTOR.value:g} times slower',
      label='batches per second',
    )
    plots.save(figure, _FIGURE.value)


def sleeping_rate(sleeps, policy=policies.asynchronous) -> float:
  """Batches per second of workers whose gradients take these seconds."""

  def loss_fn(params, model_state, batch, key):
    del key
    return jnp.mean((batch - params) ** 2), model_state

  batches = max(20, _UPDATES.value * len(sleeps) // _WORKERS.value)
  job = ga_jax.Job(
    loss_fn,
    np.zeros(100, np.float32),
    lambda batch_id: np.ones((4, 100), np.float32),
    ga_jax.gap_aware(0.01),
    policy(),
  )
  result = ga_jax.run_on_threads(
    job,
    num_workers=len(sleeps),
    num_batches=batches,
    delay_fn=lambda worker, spent: sleeps[worker] - spent,
  )
  times = result.trace.applied()['time']
  begin = 2 * len(sleeps)  # the first batches only fill the pipeline
  return (len(times) - 1 - begin) / (times[-1] - times[begin])


@functools.cache
def _matrix(size: int):
  return np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)


def computing(depth: int, workers: int = 2, size: int = 448, products: int = 8):
  """How busy workers are whose gradient really computes; and for how long."""

  def loss_fn(params, model_state, batch, key):
    del key

    def product(x, _):
      return jnp.tanh(x @ params), None

    x, _ = jax.lax.scan(product, batch, None, length=products)
    return jnp.mean(x**2), model_state

  job = ga_jax.Job(
    loss_fn,
    _matrix(size),
    lambda batch_id: _matrix(size),
    ga_jax.gap_aware(1e-6),
    policies.asynchronous(),
  )
  result = ga_jax.run_on_threads(
    job,
    num_workers=workers,
    num_batches=200,
    live=ga_jax.Live(pipeline_depth=depth),
  )
  telemetry = result.workers.values()
  answers = sum(one.answers for one in telemetry)
  return {
    f'utilisation, {workers} that compute, depth {depth}': float(
      np.mean([one.utilisation for one in telemetry])
    ),
    f'seconds of one gradient, depth {depth}': sum(
      one.compute for one in telemetry
    )
    / answers,
  }


if __name__ == '__main__':
  launch.launch(main, prepare)
