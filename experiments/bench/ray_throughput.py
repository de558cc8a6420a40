"""What the Ray runtime costs: push, apply and pull, against plain Ray.

  python -m experiments.bench.ray_throughput --json=results/ray/throughput.json

Three questions, each answered side by side in one run, in turns:

* round trips per second (a gradient is pushed, applied, and new parameters are
  pulled) of 1, 2 and 4 workers with the parameters of a ResNet-50 (25.6 M in
  161 leaves) and of a ResNet-20 (0.27 M in 65), for SGD and GA with momentum;
  the gradient costs nothing but its memory. The yardstick is as many workers
  that only `ray.put` and `ray.get` the same bytes. Beside it the rule's update
  alone, compiled, in this process: with one worker, what the two together take
  cannot be undercut by more than they overlap.
* batches per second of two workers with a small CNN, batch 128: GA with
  versions, leases and a record, against the asynchronous parameter server of
  Ray's documentation, typed again for JAX, with momentum SGD.
"""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import ray
from absl import flags

import ga_jax
from experiments.bench import timing
from experiments.script import launch, shared_flags
from experiments.tasks import classification
from ga_jax import models, policies
from ga_jax.live.ray import actors as runtime

_SECONDS = flags.DEFINE_float('seconds', 4.0, 'of each measurement, about')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'measurements of each', 1)
_WORKERS = flags.DEFINE_list('workers', ['1', '2', '4'], 'numbers of workers')
_ONLY = flags.DEFINE_string('only', '', 'a part of the names to be measured')


class Size(NamedTuple):
  """Parameters of a network, as far as they matter here."""

  name: str
  leaves: int
  parameters: int


SIZES = (Size('ResNet-50', 161, 25_600_000), Size('ResNet-20', 65, 270_000))
RULES = {
  'SGD': lambda: ga_jax.rules.asgd(1e-3, momentum=0.9),
  'GA': lambda: ga_jax.gap_aware(1e-3, momentum=0.9),
}
LIMITS = """
The yardstick copies the parameters and nothing else; an update moves three
(SGD) or four (GA) times as much beside that. Alone, compiled, in one process it
is printed above. Waiting in shared-memory channels instead of actor calls was
tried: Ray waits there by spinning, a core per worker. Small parameters are
bound by the actor calls (about 1.2 ms of processor time each); plain `ray.put`
and `ray.get` do not reach 400 round trips per second here either.
"""
BATCH, PIXELS, CLASSES = 128, (28, 28, 1), 10


def prepare():
  """Starts Ray before JAX."""
  shared_flags.check_positive(_SECONDS)
  most = max(shared_flags.counts(_WORKERS), default=1)
  runtime.connect('local', num_cpus=most)


def main(_):
  where = timing.machine()
  rows = []
  for size in SIZES:
    for workers in shared_flags.counts(_WORKERS):
      candidates = {
        'ray.put, ray.get': functools.partial(plain_rate, size, workers),
        **{
          rule: functools.partial(our_rate, size, workers, rule)
          for rule in RULES
        },
      }
      if workers == 1:
        candidates |= {
          f'{rule}, update alone': functools.partial(update_rate, size, rule)
          for rule in RULES
        }
      rows += compared(f'{size.name}, {workers} workers', candidates)
  candidates = {
    "Ray's documentation": documented_rate,
    'GA': functools.partial(network_rate, 2),
  }
  rows += compared('CNN, 2 workers', candidates)
  timing.finish(where, rows, list(targets(rows)))


def targets(rows):
  """What was aimed at, of what was measured."""
  for row in rows:
    what = f'{row["title"]}, {row["name"]}'
    ratio = timing.Figure(**row['ratio'])
    if row['name'] in RULES and 'ResNet-50' in what:
      yield timing.Target(f'{what}: times plain Ray', ratio, 0.7, at_least=True)
    if row['name'] in RULES and 'ResNet-20, 2' in what:
      rate = timing.figure(row['rates'])
      yield timing.Target(f'{what}: per second', rate, 400, at_least=True)
    if row['name'] == 'GA' and 'CNN' in what:
      ours = f"{what}: times Ray's documentation"
      yield timing.Target(ours, ratio, 1, at_least=True)


def compared(title: str, candidates) -> list[dict[str, object]]:
  """Measures candidates in turns; the first is the yardstick."""
  if _ONLY.value not in title:
    return []
  measured = timing.alternate(candidates, _ROUNDS.value)
  yardstick, rows = next(iter(measured.values())), []
  for name, rates in measured.items():
    ratio = timing.ratios(rates, yardstick)
    timing.say(
      f'{title:22} {name:22} {timing.figure(rates)!s:26}/s  times {ratio}'
    )
    rows.append(
      {'title': title, 'name': name, 'rates': rates, 'ratio': ratio._asdict()}
    )
  return rows


def parameters(size: Size) -> list[np.ndarray]:
  """Leaves of one size."""
  each = size.parameters // size.leaves
  return [np.ones(each, np.float32) for _ in range(size.leaves)]


def cheapest(params, model_state, batch, key):
  """A loss whose gradient costs nothing but its memory."""
  del key
  return sum(leaf[0] for leaf in params) * batch[0], model_state


def our_rate(size: Size, workers: int, rule: str) -> float:
  """Round trips per second through server, record and versions."""

  def make():
    return ga_jax.Job(
      cheapest,
      parameters(size),
      small_batch,
      RULES[rule](),
      policies.asynchronous(),
    )

  return rate_of(make, workers)


def small_batch(batch_id: int):
  """Almost nothing."""
  return np.full(1, 1e-6 * (1 + batch_id % 2), np.float32)


def rate_of(make_fn, workers: int) -> float:
  """Applied gradients per second, the first second left out."""
  setup = runtime.Setup(make_fn, workers, 10**8)
  actors = runtime.start(setup, env={'JAX_NUM_CPU_DEVICES': '1'})
  try:
    running = actors.server.run.remote()
    while ray.get(actors.server.version.remote()) < 2 * workers:
      time.sleep(0.05)
    time.sleep(1.0)
    rate = counted(lambda: ray.get(actors.server.version.remote()))
    ray.get(actors.server.stop.remote())
    ray.get(running)
    return rate
  finally:
    actors.end()


def counted(count) -> float:
  """How fast a count grows."""
  begun, first = time.perf_counter(), count()
  time.sleep(_SECONDS.value)
  return (count() - first) / (time.perf_counter() - begun)


def update_rate(size: Size, rule: str) -> float:
  """Updates per second of the compiled rule on arrays that are there."""
  made = RULES[rule]()
  params = jax.tree.map(jnp.asarray, parameters(size))
  grads = jax.tree.map(lambda leaf: 1e-6 * leaf, params)
  stale, state = jax.tree.map(jnp.zeros_like, params), made.init(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params, state, grads, stale):
    updates, state = made.update(grads, state, params, stale_params=stale)
    return optax.apply_updates(params, updates), state

  begun, count = None, 0
  while begun is None or time.perf_counter() - begun < _SECONDS.value:
    params, state = jax.block_until_ready(update(params, state, grads, stale))
    count += 1
    if begun is None and count == 3:
      begun, count = time.perf_counter(), 0
  return count / (time.perf_counter() - begun)


@ray.remote
class Plain:
  """A worker that only moves bytes."""

  def __init__(self, size: Size):
    self._gradient = np.ones(size.parameters, np.float32)

  def exchange(self, params):
    """Reads parameters, puts a gradient."""
    ray.get(params[0])
    return [ray.put(self._gradient)]


def plain_rate(size: Size, workers: int) -> float:
  """Round trips per second of the same bytes, and nothing else."""
  actors = [Plain.remote(size) for _ in range(workers)]
  params = np.ones(size.parameters, np.float32)

  def sent(actor):
    return actor.exchange.remote([ray.put(params)])

  running = {sent(actor): actor for actor in actors}
  begun, count = None, 0
  while begun is None or time.perf_counter() - begun < _SECONDS.value:
    (ready, *_), _ = ray.wait(list(running))
    ray.get(ray.get(ready)[0])
    actor = running.pop(ready)
    running[sent(actor)] = actor
    count += 1
    if begun is None and count == 10 * workers:
      begun, count = time.perf_counter(), 0
  rate = count / (time.perf_counter() - begun)
  for actor in actors:
    ray.kill(actor)
  return rate


def network():
  """The CNN: (loss function, its parameters)."""
  model = models.cnn(num_classes=CLASSES)
  images = jnp.zeros((1, *PIXELS))
  params, model_state = model.init(jax.random.key(0), images)

  return classification.cross_entropy(model), params, model_state


def image_batch(batch_id: int):
  """Random images and labels."""
  rng = np.random.default_rng(batch_id)
  images = rng.normal(size=(BATCH, *PIXELS)).astype(np.float32)
  return images, rng.integers(0, CLASSES, BATCH).astype(np.int32)


def network_rate(workers: int) -> float:
  """Batches per second of ours: GA, versions, leases, a record."""

  def make():
    loss_fn, params, model_state = network()
    return ga_jax.Job(
      loss_fn,
      params,
      image_batch,
      RULES['GA'](),
      policies.asynchronous(),
      model_state=model_state,
      stats_momentum=0.9,
    )

  return rate_of(make, workers)


@ray.remote
class ParameterServer:
  """As in Ray's documentation: applies what comes and returns the weights."""

  def __init__(self):
    _, self._params, _ = network()
    self._optimizer = optax.sgd(1e-3, momentum=0.9)
    self._state = self._optimizer.init(self._params)
    self._update = jax.jit(self._updated)

  def get_weights(self):
    """The weights now."""
    return jax.tree.map(np.asarray, self._params)

  def apply_gradients(self, grads):
    """Takes a step; the weights after it."""
    self._params, self._state = self._update(self._params, self._state, grads)
    return self.get_weights()

  def _updated(self, params, state, grads):
    updates, state = self._optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@ray.remote
class DataWorker:
  """As in Ray's documentation: gradients of its own batches."""

  def __init__(self):
    loss_fn, _, self._model_state = network()
    self._gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    self._batch_id = 0

  def compute_gradients(self, weights):
    """The gradient of the next batch."""
    batch, self._batch_id = image_batch(self._batch_id), self._batch_id + 1
    (_, self._model_state), grads = self._gradient(
      weights, self._model_state, batch, None
    )
    return jax.tree.map(np.asarray, grads)


def documented_rate() -> float:
  """Batches per second of the asynchronous loop in Ray's documentation."""
  server = ParameterServer.remote()
  workers = [DataWorker.remote() for _ in range(2)]
  weights = server.get_weights.remote()
  gradients = {w.compute_gradients.remote(weights): w for w in workers}
  begun, count = None, 0
  while begun is None or time.perf_counter() - begun < _SECONDS.value:
    (ready, *_), _ = ray.wait(list(gradients))
    worker = gradients.pop(ready)
    weights = server.apply_gradients.remote(ready)
    gradients[worker.compute_gradients.remote(weights)] = worker
    count += 1
    if begun is None and count == 10:
      ray.get(weights)
      begun, count = time.perf_counter(), 0
  rate = count / (time.perf_counter() - begun)
  for actor in (server, *workers):
    ray.kill(actor)
  return rate


if __name__ == '__main__':
  launch.launch(main, prepare)
