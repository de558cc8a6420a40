"""Data that is decoded as it is needed: the same, whoever asks and when."""

import functools
import io
import math
import subprocess
import sys
import threading
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import ga_jax
from experiments import tasks
from experiments.running import train as train_lib
from experiments.settings import check
from experiments.settings import table as settings_lib
from experiments.tasks import classification
from ga_jax import data
from ga_jax.data import ahead, imagenet, stream
from ga_jax.job import source as source_lib
from tests import tfds_sets


def numbered(n, side=2, read_fn=None):
  """A stream whose images hold their own number; a view adds a draw."""

  def view(image, rng):
    return np.array(image, np.uint8) + (rng.integers(200) if rng else 0)

  def read(i):
    return np.full((side, side, 3), i), i % 5

  train = stream.Records('train', read_fn or read, np.arange(n))
  return stream.Stream(
    name='numbered',
    train=train,
    validation=train._replace(rows=train.rows[:0]),
    test=train._replace(split='test', rows=train.rows[: n // 2]),
    view_fn=view,
    input_shape=(side, side, 3),
    num_classes=5,
    mean=np.full(3, 0.5, np.float32),
    std=np.full(3, 0.25, np.float32),
  )


def numbers_of(host_batch):
  """The examples of a host batch that was not augmented."""
  return host_batch[0][:, 0, 0, 0].tolist()


# Ahead: what is made is the same, and only so much of it.


class Bench:
  """Makes batches on demand, and remembers which and how many wait."""

  def __init__(self):
    self.made, self.cancelled, self.asked = [], [], []

  def begin(self, batch_id):
    self.made.append(batch_id)
    part = futures.Future()
    bench = self

    class Begun(ahead.Begun):
      def cancel(self):
        bench.cancelled.append(batch_id)

    part.set_result(None)
    return Begun([part], batch_id)

  def ask(self, maker, batch_id):
    assert maker(batch_id) == batch_id
    self.asked.append(batch_id)
    waiting = set(self.made) - set(self.asked) - set(self.cancelled)
    return len(waiting)


@settings(max_examples=60, deadline=None)
@given(
  order=st.permutations(range(12)),
  depth=st.integers(1, 5),
  told=st.booleans(),
  asked=st.lists(st.integers(0, 14), max_size=30),
)
def test_batches_in_any_order_are_answered_and_few_held(
  order, depth, told, asked
):
  bench = Bench()
  maker = ahead.Ahead(bench.begin, depth)
  if told:
    maker.expect(order)
    assert bench.made == list(order[:depth])
  for batch_id in asked:
    assert bench.ask(maker, batch_id) <= depth
  assert len(bench.made) <= len(asked) * (depth + 1) + depth


def test_an_order_that_is_kept_makes_each_batch_once():
  bench = Bench()
  maker = ahead.Ahead(bench.begin, 3)
  order = np.random.default_rng(0).permutation(50)
  maker.expect(order)
  for place, batch_id in enumerate(order.tolist()):
    bench.ask(maker, batch_id)
    assert bench.made == order[: place + 4].tolist()
  assert not bench.cancelled


def test_a_batch_that_was_not_foretold_changes_nothing():
  bench = Bench()
  maker = ahead.Ahead(bench.begin, 2)
  maker.expect([5, 6, 7, 8])
  bench.ask(maker, 0)  # compiling asks for some batch
  bench.ask(maker, 5)
  assert bench.made == [5, 6, 0, 7]
  assert not bench.cancelled


def test_a_run_may_begin_in_the_middle():
  bench = Bench()
  maker = ahead.Ahead(bench.begin, 2)
  maker.expect(range(10))
  bench.ask(maker, 6)  # gone on with from a checkpoint
  assert bench.made == [0, 1, 6, 7, 8]
  assert sorted(bench.cancelled) == [0, 1]


def test_reading_ahead_guesses_and_waits_longer_after_a_miss():
  bench = Bench()
  maker = ahead.Ahead(bench.begin, 2)
  for batch_id in range(3):
    bench.ask(maker, batch_id)
  assert bench.made == [0, 1, 2, 3, 4]
  bench.ask(maker, 20)  # a guess that was wrong
  assert sorted(bench.cancelled) == [3, 4]
  for batch_id in (21, 22, 23):
    bench.ask(maker, batch_id)
  assert bench.made[5:] == [20, 21, 22, 23]  # it waits for longer now
  bench.ask(maker, 24)
  assert bench.made[9:] == [24, 25, 26]


def test_batches_of_one_worker_of_many_are_not_guessed():
  bench = Bench()
  maker = ahead.Ahead(bench.begin, 2)
  for batch_id in range(0, 160, 16):  # one of 16 workers
    bench.ask(maker, batch_id)
  assert bench.made == bench.asked


def test_batches_are_made_by_other_threads_meanwhile():
  seen, release = [], threading.Event()

  def read(i):
    release.wait(30)
    seen.append(threading.current_thread())
    return np.full((2, 2, 3), i), i % 5

  source = numbered(40, read_fn=read).source(4, 0)
  source.expect_fn(range(10))  # returns though nothing can be made yet
  release.set()
  source.batch_fn(0)
  assert threading.current_thread() not in seen


# Training batches.


@pytest.mark.parametrize('augment', [False, True])
def test_batches_are_a_function_of_seed_and_id(augment):
  def source():
    return numbered(17).source(5, 3, augment)

  plain = source()
  plain.expect_fn([99])  # never looks ahead
  forward = [plain.batch_fn(i) for i in range(12)]
  orders = [range(12), np.random.default_rng(0).permutation(12).tolist()]
  for order in orders:
    for told in (None, range(12), order):
      other = source()
      if told is not None:
        other.expect_fn(told)
      for i in (*order, *order):
        for ours, theirs in zip(other.batch_fn(i), forward[i], strict=True):
          assert np.array_equal(ours, theirs)


def test_threads_may_ask_at_once():
  source = numbered(60).source(6, 0, True)
  forward = [source.batch_fn(i)[0] for i in range(30)]
  with futures.ThreadPoolExecutor(8) as pool:
    found = pool.map(numbered(60).source(6, 0, True).batch_fn, range(30))
    for ours, (theirs, _) in zip(forward, found, strict=True):
      assert np.array_equal(ours, theirs)


def test_an_epoch_is_a_permutation():
  source = numbered(20).source(5, 0)
  epochs = []
  for epoch in range(3):
    batches = [source.batch_fn(4 * epoch + i) for i in range(4)]
    seen = [i for batch in batches for i in numbers_of(batch)]
    assert sorted(seen) == list(range(20))
    labels = np.concatenate([labels for _, labels in batches])
    assert np.array_equal(labels, np.array(seen) % 5)
    epochs.append(tuple(seen))
  assert len(set(epochs)) == 3


def test_the_order_is_that_of_data_in_memory():
  inputs = np.arange(20, dtype=np.uint8).repeat(12).reshape(20, 2, 2, 3)
  split = data.Split(inputs, np.arange(20) % 5)
  other = data.make_dataset('other', split, split).source(5, 7)
  source = numbered(20).source(5, 7)
  for i in range(8):
    assert numbers_of(source.batch_fn(i)) == other.batch_fn(i).tolist()


def test_views_are_of_seed_epoch_and_example():
  def offsets(seed, epoch, batch_size):
    source = numbered(20).source(batch_size, seed, True)
    plain = numbered(20).source(batch_size, seed)
    found = {}
    for i in range(epoch * 20 // batch_size, (epoch + 1) * 20 // batch_size):
      moved, rows = source.batch_fn(i)[0], numbers_of(plain.batch_fn(i))
      found |= {
        row: (int(image[0, 0, 0]) - row) % 256
        for row, image in zip(rows, moved, strict=True)
      }
    return tuple(found[row] for row in range(20))

  first = offsets(0, 0, 5)
  assert len(set(first)) > 10
  assert offsets(0, 0, 10) == first  # whatever batch it is in
  assert len({first, offsets(1, 0, 5), offsets(0, 1, 5)}) == 3


def test_a_batch_is_no_larger_than_the_split():
  assert len(numbered(10).source(10, 0).batch_fn(7)[1]) == 10
  with pytest.raises(data.DataError, match='batch_size 11'):
    numbered(10).source(11, 0)


def test_batches_are_normalised_on_the_device():
  source = numbered(10).source(4, 0)
  inputs, labels = source.batch_fn(0)
  assert inputs.dtype == np.uint8
  loaded, loaded_labels = jax.jit(source.load_fn)(
    source.resident, (inputs, labels), jax.random.key(0)
  )
  assert loaded.dtype == np.float32
  np.testing.assert_allclose(loaded, (inputs / 255 - 0.5) / 0.25, rtol=1e-5)
  assert np.array_equal(loaded_labels, labels)


def test_an_example_that_cannot_be_read_is_named():
  def read(i):
    if i == 7:
      raise OSError('cut short\nand more')
    return np.full((2, 2, 3), i), i % 5

  broken = numbered(20, read_fn=read)
  source = broken.source(5, 0)
  good, bad = [], []
  for i in (*range(4), *range(4)):  # again, and whichever was made ahead
    try:
      good.append(numbers_of(source.batch_fn(i)))
    except data.DataError as error:
      bad.append(str(error))
  message = 'numbered: train example 7 cannot be read: cut short'
  assert bad == [message] * 2
  assert len(good) == 6
  with pytest.raises(data.DataError, match='test example 7'):
    list(broken.batches('test', 4))


# Evaluation.


@pytest.mark.parametrize(('n', 'size'), [(20, 4), (22, 4), (20, 50), (8, 1)])
def test_evaluation_sees_every_example_once(n, size):
  batches = list(numbered(n).batches('test', size))
  assert {batch.inputs.shape for batch in batches} == {
    (min(size, n // 2), 2, 2, 3)
  }
  seen = [
    (int(image[0, 0, 0]), int(label))
    for batch in batches
    for image, label, valid in zip(*batch, strict=True)
    if valid
  ]
  assert seen == [(i, i % 5) for i in range(n // 2)]


def test_evaluation_holds_a_few_batches():
  held, most, lock = 0, 0, threading.Lock()

  def read(i):
    nonlocal held, most
    with lock:
      held += 1
      most = max(most, held)
    return np.zeros((1024, 1024, 3), np.uint8), 0

  big = numbered(80, side=1024, read_fn=read)
  big = big._replace(view_fn=lambda image, rng: image)
  for batch in big.batches('test', 10):  # 30 MB each
    with lock:
      held -= len(batch.labels)
  assert most <= 10 * (1 + stream.AHEAD_BYTES // (30 * 2**20))


def test_hold_out_is_that_of_data_in_memory():
  inputs = np.arange(30, dtype=np.float32)[:, None]
  split = data.Split(inputs, np.arange(30) % 5)
  memory = data.make_dataset('other', split, split).hold_out(7)
  held = numbered(30).hold_out(7)
  for name in ('train', 'validation'):
    rows = getattr(memory, name).inputs[:, 0]
    assert getattr(held, name).rows.tolist() == rows.tolist()
    assert held.size(name) == len(rows)
  assert held.size('test') == 15
  whole = numbered(30)
  assert whole.hold_out(0) is whole
  with pytest.raises(data.DataError, match='30 of 30'):
    whole.hold_out(30)


def test_a_task_evaluates_a_stream_as_data_in_memory():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (23, 8, 8, 3), np.uint8)
  split = data.Split(images, rng.integers(0, 5, 23))
  memory = data.make_dataset('memory', split, split, 5)
  records = stream.Records(
    'test', lambda i: (images[i], split.labels[i]), np.arange(23)
  )
  disk = numbered(23, side=8)._replace(
    train=records,
    test=records,
    view_fn=lambda image, rng: image,
    mean=memory.mean,
    std=memory.std,
  )
  ours, theirs = (classification.task(d, 'mlp', {}) for d in (disk, memory))
  assert ours.splits == theirs.splits == ('test',)
  params = ours.init(jax.random.key(0))
  assert ours.evaluate(*params, 'test') == theirs.evaluate(*params, 'test')


# The views of ImageNet.


def test_crops_are_of_the_area_and_ratio_that_are_said():
  rng = np.random.default_rng(0)
  areas, ratios, places = [], [], []
  for _ in range(4000):
    left, top, right, bottom = imagenet.crop(rng, 300, 400)
    assert 0 <= left < right <= 400
    assert 0 <= top < bottom <= 300
    areas.append((right - left) * (bottom - top) / 120000)
    ratios.append((right - left) / (bottom - top))
    places.append(left / (401 - (right - left)))
  assert 0.078 < min(areas) < 0.1
  assert max(areas) > 0.95
  assert 0.74 < min(ratios) < 0.77
  assert 1.3 < max(ratios) < 1.35
  assert abs(np.mean(places) - 0.5) < 0.02
  # Those that fit whatever their ratio are uniform.
  small = [area for area in areas if area < 0.4]
  assert np.mean(np.array(small) < 0.24) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(('height', 'width'), [(10, 300), (300, 10), (1, 1)])
def test_an_image_that_no_crop_fits_gets_one_within_it(height, width):
  rng = np.random.default_rng(0)
  for _ in range(50):
    left, top, right, bottom = imagenet.crop(rng, height, width)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(height, width) > 1:
      assert 0.7 < (right - left) / (bottom - top) < 1.4


def test_the_centre_is_what_resizing_and_cutting_gives():
  image = tfds_sets.smooth(np.random.default_rng(2), 300, 512)
  whole = Image.fromarray(image).resize((437, 256), Image.Resampling.BILINEAR)
  cut = np.asarray(whole)[16:240, 106:330].astype(int)
  ours = imagenet.view(image, None, size=224).astype(int)
  assert np.abs(ours - cut).mean() < 0.5
  assert np.abs(ours - cut).max() <= 4


def test_views_are_flipped_half_of_the_time():
  ramp = np.tile(
    np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 1, 3)
  )
  seen = [
    imagenet.view(ramp, np.random.default_rng(i), size=16).astype(int)
    for i in range(400)
  ]
  slopes = [image[8, 12, 0] - image[8, 3, 0] for image in seen]
  assert min(map(abs, slopes)) > 4
  assert 160 < sum(slope < 0 for slope in slopes) < 240
  assert imagenet.view(ramp, None, size=16)[8, 3, 0] < 120


@pytest.mark.parametrize('mode', ['L', 'P', 'RGB', 'CMYK', 'RGBA'])
def test_images_of_any_mode_are_read_in_colour(mode):
  file = io.BytesIO()
  image = Image.fromarray(tfds_sets.smooth(np.random.default_rng(0), 50, 70))
  kind = 'JPEG' if mode in ('L', 'CMYK', 'RGB') else 'PNG'
  image.convert(mode).save(file, kind)
  for rng in (None, np.random.default_rng(0)):
    seen = imagenet.view(file.getvalue(), rng, size=24)
    assert seen.shape == (24, 24, 3)
    assert seen.dtype == np.uint8
    assert seen.std() > 5


def test_imagenet_is_read_from_its_files(tmp_path):
  tfds_sets.write_imagenet(tmp_path, shards=3)
  found = data.imagenet2012(str(tmp_path), image_size=32)
  assert (found.size('train'), found.size('test')) == (20, 6)
  assert found.size('validation') == 0
  assert found.num_classes == 1000
  assert found.input_shape == (32, 32, 3)
  source = found.source(10, 0, True)
  labels = np.concatenate([source.batch_fn(i)[1] for i in range(2)])
  assert sorted(labels) == sorted(np.arange(20) * 7)
  first = source.batch_fn(0)[0]
  assert first.shape == (10, 32, 32, 3)
  assert not np.array_equal(first, found.source(10, 0).batch_fn(0)[0])
  (batch,) = found.batches('test', 50)
  assert batch.labels.tolist() == [0, 7, 14, 21, 28, 35]


def test_a_broken_jpeg_is_named(tmp_path):
  tfds_sets.write_imagenet(tmp_path, broken=(11,))
  source = data.imagenet2012(str(tmp_path), image_size=8).source(20, 0)
  with pytest.raises(
    data.DataError, match='imagenet2012: train example 11 cannot be read: '
  ) as caught:
    source.batch_fn(0)
  assert '\n' not in str(caught.value)


# Training.


def trained(source, executor):
  """A few updates of a linear model."""

  def loss_fn(params, state, batch, key):
    inputs, labels = batch
    flat = inputs.reshape(len(inputs), -1)
    wanted = labels.astype(jnp.float32)
    return (((flat @ params).sum(1) - wanted) ** 2).mean(), state

  return ga_jax.simulate(
    ga_jax.Job(
      loss_fn,
      np.full((12, 1), 0.1, np.float32),
      source,
      ga_jax.gap_aware(1e-3),
      ga_jax.policies.asynchronous(),
    ),
    ga_jax.clocks.CLOCKS['heterogeneous'](0),
    num_workers=4,
    num_batches=11,
    executor=executor,
  )


@pytest.mark.parametrize('executor', ['fast', 'exact'])
def test_a_simulation_has_the_bits_of_one_without_looking_ahead(executor):
  told = []
  source = numbered(30).source(4, 0, True)
  watched = source._replace(
    expect_fn=lambda ids: (told.extend(ids), source.expect_fn(ids))
  )
  without = numbered(30).source(4, 0, True)
  without = without._replace(
    expect_fn=source_lib.Source._field_defaults['expect_fn']
  )
  ours, theirs = trained(watched, executor), trained(without, executor)
  assert np.array_equal(ours.params, theirs.params)
  assert told == ours.trace.applied()['first_batch'].tolist()
  assert sorted(told) == list(range(11)) != told


@pytest.fixture
def small(monkeypatch):
  """ImageNet at a size for two updates on a CPU."""
  monkeypatch.setitem(
    data.DATASETS,
    'imagenet2012',
    functools.partial(data.imagenet2012, image_size=16),
  )
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    yield


def run_of(**fields):
  """Two updates of batches of 4 by two workers."""
  fields = {'model': 'mlp', 'workers': 2, 'batch_size': 4, **fields}
  return check.check(
    settings_lib.Settings(learning_rate=0.01, epochs=1.0, **fields)
  )


@pytest.mark.parametrize(
  ('name', 'executor', 'runtime'),
  [
    pytest.param('cifar10', 'fast', 'simulate', marks=pytest.mark.slow),
    ('imagenet2012', 'exact', 'simulate'),
    pytest.param('imagenet2012', 'fast', 'threads', marks=pytest.mark.slow),
  ],
)
def test_a_run_on_a_stream_makes_two_updates(
  small, tmp_path, name, executor, runtime
):
  with tfds.testing.mock_data(num_examples=10):
    settings = run_of(
      dataset=name,
      data_path=str(tmp_path),
      augment=True,
      holdout=2,
      executor=executor,
      runtime=runtime,
    )
    summary = train_lib.train(settings).summary
  assert summary['updates'] == summary['batches'] == 2
  assert not summary['diverged']
  assert 0 <= summary['test_error'] <= 1
  assert summary['validation_error'] in (0.0, 0.5, 1.0)
  assert math.isfinite(summary['train_loss'])


@pytest.mark.slow
def test_the_script_names_an_unreadable_example_in_one_line(tmp_path):
  tfds_sets.write_imagenet(tmp_path, broken=(11,))
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'experiments.train', '--dataset=imagenet2012'),
      *(f'--data_path={tmp_path}', '--model=mlp', '--batch_size=4'),
      *('--epochs=1', f'--workdir={tmp_path}/run', '--executor=exact'),
      '--quiet',
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert 'Traceback' not in done.stderr
  assert done.stderr.startswith(
    'error: imagenet2012: train example 11 cannot be read: '
  )


def test_settings_that_do_not_fit_a_stream_are_refused(small, tmp_path):
  tfds_sets.write_imagenet(tmp_path)
  fields = {'dataset': 'imagenet2012', 'data_path': str(tmp_path)}
  for wrong, message in (
    ({'batch_size': 21}, 'batch_size 21 exceeds the 20'),
    ({'holdout': 20}, 'cannot hold out 20 of 20'),
  ):
    with pytest.raises(settings_lib.SettingError, match=message):
      tasks.source_of(run_of(**fields | wrong))
  with pytest.raises(settings_lib.SettingError, match='is not prepared in'):
    tasks.source_of(run_of(dataset='cifar100', data_path=str(tmp_path)))
