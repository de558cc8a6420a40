"""What simulating N workers with Gap-Aware costs beside one with momentum SGD.

  python -m experiments.bench.simulation_overhead

Same model (the small CNN with BatchNorm on Fashion-MNIST's shape), batch 64,
block length and process; the two take turns. The ratio is time per update; the
images are random, which changes nothing about the time.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

import ga_jax
from experiments import cli
from experiments import settings as settings_lib
from experiments.bench import timing
from ga_jax import clocks, data, models, policies, rules

_MODEL = flags.DEFINE_string('model', 'cnn_bn', '|'.join(models.MODELS))
_WORKERS = flags.DEFINE_integer('workers', 16, 'simulated workers of GA')
_BATCH = flags.DEFINE_integer('batch_size', 64, 'examples per gradient')
_UPDATES = flags.DEFINE_integer('updates', 400, 'per run')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'runs of each')
_JSON = flags.DEFINE_string('json', '', 'also write the figures here')

IMAGES = 6400


def prepare():
  """Checks the model before anything is timed."""
  name = _MODEL.value
  if name not in models.MODELS or models.MODELS[name](10).reads == 'tokens':
    raise settings_lib.SettingError('model', name, 'must be one for images')


def main(_):
  where = timing.machine()
  run = runner()
  sgd, ga = rules.asgd(0.01), rules.gap_aware(0.01)
  candidates = {
    'momentum SGD, 1 worker': lambda: run(sgd, 1),
    'GA, 1 worker': lambda: run(ga, 1),
    f'GA, {_WORKERS.value} workers': lambda: run(ga, _WORKERS.value),
  }
  for candidate in candidates.values():
    candidate()  # compiles
  measured = timing.alternate(candidates, _ROUNDS.value)
  base = measured['momentum SGD, 1 worker']
  print(where)
  results = {'machine': where, 'rows': []}
  print(f'{"":28} updates/s            times momentum SGD')
  for name, times in measured.items():
    rate = timing.figure(times).median
    ratio = timing.figure(
      [rate_of / t for rate_of, t in zip(base, times, strict=True)]
    )
    print(f'{name:28} {rate:<20.1f} {ratio}')
    results['rows'].append(
      {'name': name, 'updates_per_second': times, 'ratio': ratio._asdict()}
    )
  timing.write(_JSON.value, results)


def runner():
  """`run(rule, workers)` -> updates per second, compile time left out."""
  rng = np.random.default_rng(0)
  split = data.Split(
    rng.integers(0, 256, (IMAGES, 28, 28, 1), dtype=np.uint8),
    rng.integers(0, 10, IMAGES).astype(np.int32),
  )
  dataset = data.make_dataset('random', split, split, 10)
  source = data.training_source(dataset, _BATCH.value, 0)
  model = models.MODELS[_MODEL.value](10)
  params, stats = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))

  def loss_fn(params, model_state, batch, key):
    del key
    logits, model_state = model.apply(params, model_state, batch[0], True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return losses.mean(), model_state

  def run(rule, workers):
    timer = Timer()
    ga_jax.simulate(
      loss_fn,
      params,
      source,
      rule,
      policy=policies.asynchronous(),
      clock=clocks.homogeneous(0),
      num_workers=workers,
      num_batches=_UPDATES.value,
      model_state=stats,
      observe=timer,
    )
    return timer.rate()

  return run


class Timer:
  """Observes a run; its first block, which may compile, is not counted."""

  def __init__(self):
    self._first = self._last = None

  def __call__(self, arrivals, state, block):
    del block
    if self._first is None or arrivals == _UPDATES.value:
      jax.block_until_ready(state.params)
      self._last = (arrivals, timing.time.perf_counter())
      self._first = self._first or self._last
    return False

  def rate(self):
    """Updates per second."""
    (n0, t0), (n1, t1) = self._first, self._last
    return (n1 - n0) / (t1 - t0)


if __name__ == '__main__':
  cli.launch(main, prepare)
