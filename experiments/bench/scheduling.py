"""How fast clock and policy schedule arrivals, nothing computed.

python -m experiments.bench.scheduling
"""

from absl import flags

import ga_jax
from experiments import cli
from experiments.bench import timing
from ga_jax import clocks, policies

_ARRIVALS = flags.DEFINE_integer('arrivals', 200_000, 'per run')
_WORKERS = flags.DEFINE_integer('workers', 1024, 'simulated workers')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'runs of each')
_JSON = flags.DEFINE_string('json', '', 'also write the figures here')


def main(_):
  where = timing.machine()

  def schedule(policy):
    return timing.seconds(
      lambda: ga_jax.schedule(
        policies.make(policy, _WORKERS.value),
        clocks.homogeneous(0),
        num_workers=_WORKERS.value,
        num_batches=_ARRIVALS.value,
      )
    )

  alone = [  # the others need losses, and so gradients
    name
    for name in policies.POLICIES
    if not policies.make(name, _WORKERS.value).needs_loss
  ]
  measured = timing.alternate(
    {name: (lambda name=name: schedule(name)) for name in alone}, _ROUNDS.value
  )
  print(where)
  print(f'{_ARRIVALS.value:,} arrivals of {_WORKERS.value:,} workers')
  print(f'{"policy":16} seconds                   arrivals/s')
  results = {'machine': where, 'rows': []}
  for name, times in measured.items():
    took = timing.figure(times)
    print(f'{name:16} {took!s:25} {_ARRIVALS.value / took.median:,.0f}')
    results['rows'].append({'policy': name, 'seconds': times})
  timing.write(_JSON.value, results)


if __name__ == '__main__':
  cli.launch(main, lambda: None)
