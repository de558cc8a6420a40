"""Public objects that several threads call at once."""

import copy
import pickle
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import policies, rules
from ga_jax.executors import exact
from ga_jax.guards import locks
from ga_jax.job import compiled, source
from ga_jax.live import threads
from ga_jax.policies.parts.base import Action
from ga_jax.record import checkpoints
from ga_jax.record import trace as trace_lib
from ga_jax.server import snapshots
from tests import cases

THREADS = 8


@pytest.fixture(autouse=True)
def impatient():
  """Threads are interrupted as often as Python can."""
  before = sys.getswitchinterval()
  sys.setswitchinterval(1e-6)
  yield
  sys.setswitchinterval(before)


def at_once(work, number=THREADS):
  """Runs `work(i)` in so many threads; raises what one of them raised."""
  begin, errors = threading.Barrier(number), []

  def run(i):
    begin.wait()
    try:
      work(i)
    except BaseException as error:
      errors.append(error)

  all_of_them = [threading.Thread(target=run, args=(i,)) for i in range(number)]
  for one in all_of_them:
    one.start()
  for one in all_of_them:
    one.join()
  if errors:
    raise errors[0]


def loss_fn(params, model_state, batch, key):
  del key
  return jnp.sum((params - batch) ** 2), model_state


def batch_fn(batch_id):
  return np.random.default_rng(batch_id).normal(size=3).astype(np.float32)


@pytest.mark.parametrize(
  ('policy', 'of_updates'),
  [
    (policies.softsync(THREADS, 2), 50),
    (policies.asynchronous(), 200),
    (policies.k_sync(THREADS, 3), 67),
  ],
  ids=['softsync', 'asynchronous', 'k_sync'],
)
def test_a_server_called_by_eight_threads_replays_to_the_same_bits(
  policy, of_updates
):
  """What the trace says was done, and it computes the same bits again."""
  params, rule = jnp.zeros(3), rules.dana_slim(0.01, THREADS)
  server = ga_jax.Server(
    params, rule, policy, num_workers=THREADS, num_batches=200
  )
  job = ga_jax.Job(loss_fn, params, batch_fn, rule, policy)
  program = compiled.compiled_program(
    job.program_fn, job.loss_fn, job.source.load_fn
  )

  def work(worker_id):
    while not server.finished:
      work = server.ticket(worker_id)
      if work is None:
        continue
      ticket = work.ticket
      sent = ga_jax.Snapshot(work.params, ())
      batches = source.host_batches(job.source, ticket.first_batch, 1)
      (grads, _, loss), _ = program.answer(
        (), (), sent, batches, (), jax.random.key(0), ticket
      )
      server.submit(ticket, grads, loss=float(loss))

  at_once(work)
  trace = server.trace()
  trace.verify()
  updates = trace.updates()
  assert updates == server.version == int(server.state.version)
  assert updates == of_updates
  assert int(server.state.count) == 200
  again, _, _ = exact.execute(job, trace)
  assert cases.same_bits(again, server.state)


def test_times_out_of_order_make_a_valid_trace():
  server = ga_jax.Server(
    jnp.zeros(3),
    rules.asgd(0.1),
    policies.asynchronous(),
    num_workers=2,
    num_batches=2,
  )
  late, early = server.ticket(0, time=5.0), server.ticket(1, time=3.0)
  for work in (early, late):
    server.submit(work.ticket, jnp.ones(3), time=4.0)
  server.trace().verify()
  assert set(server.trace().events['time'].tolist()) == {0.0, 5.0}
  for time in (float('nan'), float('inf'), 'now'):
    with pytest.raises(ValueError, match=r'time must be .*finite'):
      server.ticket(0, time=time)


def test_a_ledger_called_by_eight_threads_issues_each_batch_once():
  """Every batch once, and the rows of one event stay together."""
  book = ga_jax.Ledger(policies.softsync(THREADS, 2), num_batches=4000)
  for worker_id in range(THREADS):
    book.join(worker_id)

  def work(worker_id):
    while not book.done:
      ticket = book.ticket(worker_id)
      if ticket is not None:
        book.arrive(ticket)

  at_once(work)
  book.finish()
  trace = book.trace()
  trace.verify()
  assert trace.updates() == book.version == 1000


def test_a_snapshot_store_called_by_eight_threads_ends_empty():
  store, made = snapshots.SnapshotStore(), []

  def work(i):
    for step in range(2000):
      version = step // 50
      snapshot = store.hold(version, lambda: made.append(0) or object())
      assert store.read(version) is snapshot
      store.release(version)

  at_once(work)
  assert len(store) == 0
  assert len(made) >= 40


def test_rows_of_an_event_stay_together_when_eight_threads_write(tmp_path):
  path = str(tmp_path / 'trace.rows')
  writer = trace_lib.TraceWriter(path)

  def work(i):
    for step in range(200):
      row = (0.0, 1, i, step, 0, 0, 1, 0, int(Action.NONE), 1.0, 0)
      writer.write([row, row])

  at_once(work)
  assert writer.num_rows == THREADS * 400
  events = writer.trace(THREADS, 1).events
  assert len(events) == THREADS * 400
  pairs = events.reshape(-1, 2)
  assert (pairs[:, 0] == pairs[:, 1]).all()
  writer.close()


def test_the_trace_that_a_writer_returns_is_a_copy():
  writer = trace_lib.TraceWriter()
  writer.write([(0.0, 1, 0, 0, 0, 0, 1, 0, int(Action.NONE), 1.0, 0)])
  writer.trace(1, 1).events['worker_id'] = 7
  assert writer.trace(1, 1).events['worker_id'].tolist() == [0]


def test_checkpoints_that_threads_save_are_whole(tmp_path):
  store = checkpoints.CheckpointStore(str(tmp_path), keep=3)

  def work(i):
    for step in range(3):
      store.save(10 * i + step, {'x': np.full(4, i)}, host=i)
      newest = store.newest()
      assert newest.step // 10 == newest.host

  at_once(work, 3)
  assert len(store.steps()) == 3


@pytest.mark.parametrize(
  ('one', 'copied'),
  [
    (ga_jax.Ledger(policies.asynchronous(), num_batches=3), copy.deepcopy),
    (snapshots.SnapshotStore(), copy.deepcopy),
    # Ray sends them to other processes.
    (
      checkpoints.CheckpointStore('/somewhere', keep=2),
      lambda store: pickle.loads(pickle.dumps(store)),
    ),
  ],
)
def test_a_copy_has_a_lock_of_its_own(one, copied):
  other = copied(one)
  assert vars(other).keys() == vars(one).keys()
  got = []
  with one._lock:
    at_once(lambda i: got.append(other._lock.acquire(timeout=10)), 1)
  assert got == [True]


def test_a_store_is_owned_by_one_thread(tmp_path):
  """Another one is refused, and lets nobody in when it goes."""
  store = checkpoints.CheckpointStore(str(tmp_path), keep=3)

  def another(i):
    with pytest.raises(locks.OccupiedError, match='at work in'), store.owned():
      pass

  with store.owned() as lock:
    at_once(another, 1)
    with store.owned() as again:
      assert again is lock
    at_once(lambda i: store.save(1, {'x': np.zeros(2)}), 1)  # but it may save
    at_once(another, 1)
    assert lock.held
  at_once(lambda i: store.save(2, {'x': np.zeros(2)}), 1)
  assert store.steps() == [1, 2]


def test_a_run_cannot_be_started_twice():
  job = ga_jax.Job(
    loss_fn, jnp.zeros(3), batch_fn, rules.asgd(0.1), policies.asynchronous()
  )
  run = threads.Threads(job, num_workers=1, num_batches=3)
  assert run.run().executed == 3
  with pytest.raises(RuntimeError, match='begun already'):
    run.run()
