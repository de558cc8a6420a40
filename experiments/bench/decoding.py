"""How fast ImageNet's images are decoded, and how long training waits for them.

python -m experiments.bench.decoding

makes 500 x 375 JPEGs and cuts training views of 224 x 224 out of them: in
threads, in processes, and with the batches made ahead of time or not while a
device computes (here it sleeps).
"""

import functools
import io
import multiprocessing
import time
from concurrent import futures

import numpy as np
from absl import flags

from experiments.bench import timing
from experiments.script import launch, shared_flags
from ga_jax.data import ahead, imagenet, stream

_IMAGES = flags.DEFINE_integer('images', 256, 'JPEGs', 1)
_WORKERS = flags.DEFINE_list('pool', [], 'sizes of pools (default: the cores)')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'runs of each', 1)
_BATCH = flags.DEFINE_integer('batch_size', 32, 'images per batch', 1)
_STEP = flags.DEFINE_float('step_seconds', 0.15, 'what a batch computes')
_SIZE = 224
_PART = 8


@functools.cache
def jpegs(number: int) -> list[bytes]:
  """Noisy waves as JPEGs of about 32 kB, the same in every process."""
  from PIL import Image

  rng = np.random.default_rng(0)
  y, x = np.mgrid[0:1:375j, 0:1:500j][..., None]
  files = []
  for _ in range(number):
    a, b, c = rng.uniform(1, 7, (3, 3))
    waves = 127 + 120 * np.sin(a * x + b * y + c)
    image = waves + rng.normal(0, 12, waves.shape)
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, 'JPEG')
    files.append(file.getvalue())
  return files


def part(number: int, start: int) -> np.ndarray:
  """The training views of a few images."""
  files = jpegs(number)[start : start + _PART]
  return np.stack(
    [
      imagenet.view(file, np.random.default_rng(i), size=_SIZE)
      for i, file in enumerate(files, start)
    ]
  )


LIMITS = """
Decoding releases the interpreter's lock, so that threads do what processes do
and nothing has to be sent between them.
"""


def pools(sizes: list[int], number: int):
  """Pools by name, ready to decode."""
  spawn = multiprocessing.get_context('spawn')
  for size in sizes:
    yield f'threads {size}', futures.ThreadPoolExecutor(size)
    yield (
      f'processes {size}',
      futures.ProcessPoolExecutor(size, spawn, jpegs, (number,)),
    )


def waited(number: int, told: bool) -> list[float]:
  """Milliseconds that each batch but the first was waited for."""
  records = stream.Records(
    'train', lambda i: (jpegs(number)[i], 0), np.arange(number)
  )
  data = stream.Stream(
    name='synthetic',
    train=records,
    validation=records,
    test=records,
    view_fn=functools.partial(imagenet.view, size=_SIZE),
    input_shape=(_SIZE, _SIZE, 3),
    num_classes=1,
    mean=imagenet.MEAN,
    std=imagenet.STD,
  )
  source = data.source(_BATCH.value, 0, augment=True)
  ids = np.random.default_rng(0).permutation(24).tolist()
  if told:
    source.expect_fn(ids)
  times = []
  for batch_id in ids:
    begun = time.perf_counter()
    source.batch_fn(batch_id)
    times.append(1e3 * (time.perf_counter() - begun))
    time.sleep(_STEP.value)
  return times[1:]


def prepare():
  """Checks what was asked for."""
  shared_flags.check_positive(_STEP)
  return shared_flags.counts(_WORKERS) or [ahead.cores()]


def main(sizes):
  where, number = timing.machine(), _IMAGES.value
  jpegs(number)
  starts = range(0, number, _PART)

  def rate(pool):
    begun = time.perf_counter()
    list(pool.map(functools.partial(part, number), starts))
    return number / (time.perf_counter() - begun)

  made = dict(pools(sizes, number))
  for pool in made.values():
    rate(pool)  # processes start here
  measured = timing.alternate(
    {name: (lambda pool=pool: rate(pool)) for name, pool in made.items()},
    _ROUNDS.value,
  )
  for pool in made.values():
    pool.shutdown()
  timing.say(f'{"pool":16} images/s')
  for name, rates in measured.items():
    timing.say(f'{name:16} {timing.figure(rates)}')
  rows = [
    {'pool': name, 'images_per_second': rates}
    for name, rates in measured.items()
  ]
  timing.say(
    f'{"batches":16} ms waited, {_BATCH.value} images, {_STEP.value} s each'
  )
  for name, told in (('on demand', False), ('ahead', True)):
    times = waited(number, told)
    timing.say(f'{name:16} {timing.figure(times)}')
    rows.append({'batches': name, 'waited_ms': times})
  timing.finish(where, rows)


if __name__ == '__main__':
  launch.launch(main, prepare)
