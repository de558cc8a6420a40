"""Real asynchrony: what ran is replayed, and nothing is ever lost."""

import collections
import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ga_jax
from ga_jax import compression, data, models, policies, programs, rules
from ga_jax.executors import exact
from ga_jax.executors.saving import Checkpoints
from ga_jax.live import observer, server, threads
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.record.checkpoints import CheckpointStore
from ga_jax.server import ledger
from ga_jax.workers import worker
from tests import cases

WORKERS = 4


def run(job, observe=None, block=None, **options):
  where = jax.local_devices()[:2]  # programs are compiled for each
  options = {
    'num_workers': WORKERS,
    'num_batches': 120,
    'devices': where,
    **options,
  }
  options = cases.live_arguments(**options)
  before = threading.active_count()
  result = threads.Threads(job, **options).run(observe, block)
  assert threading.active_count() == before  # no thread is left behind
  result.trace.verify()
  assert result.executed == len(result.trace.applied())
  return result


def replays(job, result) -> bool:
  state, metrics, _ = exact.execute(job, result.trace)
  return cases.same_bits(state, result.state) and cases.same_bits(
    metrics, result.metrics
  )


def test_threads_compute_under_the_settings_of_their_caller(x64):
  del x64
  loss_fn, params, stats, batch_fn = cases.tiny_problem(np.float64)
  policy, seen = policies.asynchronous(), []

  def wide_loss(params, model_state, batch, key):
    loss, model_state = loss_fn(params, model_state, batch, key)
    seen.append(loss.dtype)
    return loss, model_state

  def observe(batches, state, metrics):
    del batches, metrics
    seen.extend([state.params['w'].dtype, jnp.ones(()).dtype])

  job = ga_jax.Job(
    wide_loss,
    params,
    batch_fn,
    cases.rule('ga', 0.02),
    policy,
    model_state=stats,
    stats_momentum=0.9,
  )
  result = run(job, observe, num_batches=20)
  assert set(seen) == {np.dtype(np.float64)}
  assert len(seen) >= 3
  assert result.params['w'].dtype == result.metrics['loss'].dtype == np.float64
  assert replays(job, result)


def test_there_is_a_device_for_each_worker():
  assert len(jax.local_devices()) == WORKERS


@pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('asynchronous', 'synchronous', 'abs', 'ringmaster')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in policies.POLICIES
  ],
)
def test_every_policy_replays_to_the_same_bits(name):
  policy = policies.make(name, WORKERS)
  job = cases.tiny_job(cases.rule('ga', 0.02), policy)
  assert replays(job, run(job))


@pytest.mark.parametrize(
  'name',
  [
    'dana_slim',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ('local_sgd', 'easgd')
    ),
  ],
)
def test_every_kind_of_program_replays_to_the_same_bits(name):
  policy = policies.asynchronous()
  arguments = {
    'local_sgd': {'learning_rate': 0.02, 'local_steps': 2},
    'easgd': {
      'learning_rate': 0.02,
      'num_workers': WORKERS,
      'local_steps': 2,
    },
  }.get(name, {})

  def program(loss_fn):
    return programs.PROGRAMS[name](loss_fn, **arguments)

  job = cases.tiny_job(rules.asgd(0.02, 0.0), policy, program=program)
  assert replays(job, run(job, num_batches=61))  # a short last ticket


@pytest.mark.parametrize(
  'name',
  ['bf16', pytest.param('terngrad', marks=pytest.mark.slow), 'topk'],
)
def test_the_server_is_sent_the_compressed_message(name):
  """Not what it stands for: the bytes that are counted are those sent."""
  policy = policies.asynchronous()

  def program(loss_fn):
    return compression.compressed(
      programs.gradient(loss_fn), compression.COMPRESSIONS[name]()
    )

  job = cases.tiny_job(rules.asgd(0.02, 0.0), policy, program=program)
  sizes = []

  def deliver(deliver, message):
    sizes.append(programs.base.nbytes(message.submission.grads))
    deliver(message)

  where = jax.local_devices()[:1]
  result = run(job, num_batches=30, devices=where, deliver_fn=deliver)
  assert replays(job, result)
  wanted = job.worker_program.message_bytes(job.params)
  assert sizes == [wanted] * 30
  assert wanted < programs.base.nbytes(job.params)


EVERY_RULE_SLOWLY = [
  pytest.param(
    *(name.values if hasattr(name, 'values') else (name,)),
    marks=[pytest.mark.slow, *getattr(name, 'marks', ())],
  )
  for name in cases.EVERY_RULE
]


@pytest.mark.parametrize('name', EVERY_RULE_SLOWLY)
def test_every_rule_replays_to_the_same_bits_three_times(name):
  policy = policies.asynchronous()
  rule = rules.lift(cases.RULES[name](0.01))
  workers = rule.num_workers or WORKERS  # as many as it has buffers
  job = cases.tiny_job(rule, policy)
  for _ in range(3):
    result = run(job, num_workers=workers, num_batches=500)
    assert result.trace.updates() == 500
    assert replays(job, result)


@pytest.mark.parametrize('make', [rules.asgd, rules.gap_aware])
def test_one_worker_is_plain_optax_bit_for_bit(make):
  loss_fn, params, stats, batch_fn = cases.tiny_problem()
  plain = optax.sgd(0.05, 0.9)
  gradient = jax.jit(
    lambda p, s, b: jax.value_and_grad(loss_fn, has_aux=True)(p, s, b, None)
  )

  @jax.jit
  def update(grads, opt_state, params):
    updates, opt_state = plain.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  theta = jax.tree.map(jnp.asarray, params)
  state, opt_state = stats, plain.init(theta)
  for i in range(120):
    (_, state), grads = gradient(theta, state, batch_fn(i))
    theta, opt_state = update(grads, opt_state, theta)
  policy = policies.asynchronous()
  result = run(cases.tiny_job(make(0.05, 0.9), policy), num_workers=1)
  assert cases.same_bits(result.params, theta)
  assert cases.same_bits(result.state.model_state, state)


def test_snapshots_read_ahead_are_no_more_than_the_depth():
  policy = policies.softsync(WORKERS, softsync_n=2)
  job = cases.tiny_job(cases.rule('ga', 0.02), policy)
  result = run(job, pipeline_depth=2)
  assert replays(job, result)
  issued = collections.Counter()
  most = 0
  for row in result.trace.events:
    issued[row['worker_id']] += row['event'] == Kind.ISSUE
    issued[row['worker_id']] -= row['event'] == Kind.ARRIVE
    most = max(most, *issued.values())
  assert most == 3
  for refused, message in (
    (policies.synchronous(), 'makes workers wait'),
    (policies.asynchronous(), 'keeps a state'),
  ):
    program = programs.dana_slim if 'state' in message else None
    with pytest.raises(ValueError, match=message):
      threads.Threads(
        cases.tiny_job(cases.rule('ga', 0.02), refused, program=program),
        num_workers=2,
        num_batches=4,
        live=ga_jax.Live(pipeline_depth=1),
      )


def test_observers_see_blocks_and_stop():
  policy = policies.asynchronous()
  seen = []

  def observe(batches, state, metrics):
    assert threading.current_thread() is not threading.main_thread()
    seen.append((batches, int(state.count), len(metrics['loss'])))
    return batches >= 30

  job = cases.tiny_job(cases.rule('ga', 0.02), policy)
  stopped = threads.Threads(job, num_workers=2, num_batches=10**6).run(
    observe, 10
  )
  assert seen[:3] == [(10, 10, 10), (20, 20, 10), (30, 30, 10)]
  assert stopped.stopped
  stopped.trace.verify(complete=False)
  assert replays(job, stopped)

  def broken(batches, state, metrics):
    raise KeyError('mine')

  with pytest.raises(KeyError, match='mine'):
    run(job, broken)


def test_an_observer_goes_on_where_it_was_saved():
  def measured(i):
    return {'loss': jnp.float32(i), 'num_batches': 1}

  def watched(seen):
    def observe(batches, state, metrics):
      seen.append((batches, state, metrics['loss'].tolist()))

    return observer.Observer(observe, 100, 250, lambda: None)

  first, second = [], []
  one, other = watched(first), watched(second)
  for i in range(190):  # more than it is given together wait for their block
    one.take(measured(i), lambda: 'state')
  other.restore(one.save())
  for i in range(190, 250):
    other.take(measured(i), lambda: 'state')
  metrics = other.end('last')
  assert first == [(100, 'state', [*range(100)])]
  assert second == [
    (200, 'state', [*range(100, 200)]),
    (250, 'last', [*range(200, 250)]),
  ]
  assert metrics['loss'].tolist() == [*range(250)]
  assert metrics['loss'].dtype == np.float32
  one.end('last')
  assert first[1:] == [(190, 'last', [*range(100, 190)])]


def test_a_hung_worker_loses_its_lease_and_its_answer():
  policy = policies.synchronous()  # everybody waits for it until then
  job = cases.tiny_job(cases.rule('ga', 0.02), policy)
  hangs, released = iter([True]), threading.Event()

  def delay(worker_id, seconds):
    if worker_id == 1 and next(hangs, False):
      assert released.wait(60)
    return 0.0

  def observe(batches, state, metrics):
    if batches >= 12:  # the others went on without it
      released.set()
    return False

  result = run(
    job, observe, 1, lease_seconds=1.0, delay_fn=delay, num_batches=900
  )
  assert replays(job, result)
  assert result.refused['lease'] >= 1  # a busy machine may lose others
  assert result.refused['late'] >= 1
  expired = result.trace.events[result.trace.events['event'] == Kind.EXPIRE]
  assert 1 in expired['worker_id']
  applied = result.trace.applied()
  assert (applied['attempt'] > 0).any()
  assert (applied['worker_id'] == 1).any()  # it came back


def test_a_run_survives_workers_that_come_and_go_and_die():
  policy = policies.synchronous()
  job = cases.tiny_job(cases.rule('ga', 0.02), policy)

  def delay(worker_id, seconds):
    if worker_id == 2:
      raise RuntimeError('out of memory, say')
    return 0.0

  run_ = threads.Threads(job, num_workers=3, num_batches=200, delay_fn=delay)

  def observe(batches, state, metrics):
    if batches == 60:
      run_.add_worker(7)
    if batches == 120:
      run_.remove_worker(0)
      run_.remove_worker(0)  # nothing happens
    return False

  result = run_.run(observe, 20)
  result.trace.verify()
  assert replays(job, result)
  workers = set(result.trace.applied()['worker_id'].tolist())
  assert workers == {0, 1, 7}
  leave = result.trace.events[result.trace.events['event'] == Kind.LEAVE]
  assert sorted(leave['worker_id']) == [0, 2]


def test_when_all_workers_die_the_last_error_is_shown():
  policy = policies.asynchronous()

  def delay(worker_id, seconds):
    raise RuntimeError(f'worker {worker_id} is gone')

  with pytest.raises(server.WorkersLostError, match=r'worker \d is gone'):
    run(cases.tiny_job(cases.rule('ga', 0.02), policy), delay_fn=delay)


def test_gradients_that_are_never_finite_end_the_run():
  policy = policies.asynchronous()
  loss_fn, params, stats, batch_fn = cases.tiny_problem()

  def bad_batch_fn(batch_id):
    x, y = batch_fn(batch_id)
    return (x * np.float32(np.nan) if batch_id == 17 else x), y

  with pytest.raises(ledger.NotFiniteError, match='batch 17 gave no finite'):
    ga_jax.run_on_threads(
      ga_jax.Job(
        loss_fn,
        params,
        bad_batch_fn,
        rules.asgd(0.01),
        policy,
        model_state=stats,
        stats_momentum=0.9,
      ),
      num_workers=2,
      num_batches=50,
    )


class Chaos:
  """Loses, doubles, delays, breaks and forges answers, by a seed."""

  def __init__(self, seed: int):
    self._rng = np.random.default_rng(seed)
    self._lock = threading.Lock()
    self._held = []
    self.done = collections.Counter()
    self.run = None

  def _chance(self) -> float:
    with self._lock:
      return self._rng.random()

  def delay(self, worker_id, seconds):
    """Hangs for 30 times the normal time, or dies."""
    chance = self._chance()
    if chance < 0.008:
      self.done['hung'] += 1
      return 30 * 0.005
    if chance < 0.016:
      self.done['died'] += 1
      self.run.add_worker(100 + self.done['died'])
      raise RuntimeError('killed')
    return 0.0

  def deliver(self, deliver, message):
    if not isinstance(message, worker.Answer):
      deliver(message)
      return
    submission, ticket = message.submission, message.ticket
    chance, what = self._chance(), 'fine'
    if chance < 0.02:
      what = 'doubled'
      deliver(message)
    elif chance < 0.04:
      what = 'nan' if chance < 0.03 else 'inf'
      bad = jnp.float32(np.nan if what == 'nan' else np.inf)
      grads = jax.tree.map(lambda g: g * bad, submission.grads)
      message = message._replace(
        submission=submission._replace(grads=grads), finite=False
      )
    elif chance < 0.06:
      what = 'shape' if chance < 0.05 else 'dtype'
      grads = jax.tree.map(
        (lambda g: g.astype(jnp.float16))
        if what == 'dtype'
        else (lambda g: g[..., None]),
        submission.grads,
      )
      message = message._replace(submission=submission._replace(grads=grads))
    elif chance < 0.1:
      what = 'forged'
      forged = (
        ticket._replace(version=ticket.version + 1),
        ticket._replace(ticket_id=ticket.ticket_id + 10**6),
        ticket._replace(worker_id=ticket.worker_id + 1),
        ticket._replace(first_batch=ticket.first_batch + 1),
      )
      deliver(message._replace(ticket=forged[int(chance * 1e4) % 4]))
    self.done[what] += 1
    deliver(message)


def digits_job(policy):
  dataset = data.DATASETS['digits'](None)
  model = models.MODELS['mlp'](10)
  source = data.training_source(dataset, 32, 0)
  source = source._replace(resident=(*dataset.train, dataset.mean, dataset.std))
  inputs = jnp.zeros((1, *dataset.train.inputs.shape[1:]))
  params, stats = cases.fast_jit(model.init)(jax.random.key(0), inputs)

  def loss_fn(params, model_state, batch, key):
    del key
    logits, model_state = model.apply(params, model_state, batch[0], True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return losses.mean(), model_state

  def error(params):
    test = data.to_float(
      jnp.asarray(dataset.test.inputs), dataset.mean, dataset.std
    )
    logits, _ = model.apply(params, stats, test, False)
    return float((logits.argmax(-1) != dataset.test.labels).mean())

  job = ga_jax.Job(loss_fn, params, source, rules.gap_aware(0.05), policy)
  return job, error


@pytest.mark.slow
@pytest.mark.optax_promotes
def test_under_chaos_a_run_is_exact_and_learns_as_well():
  policy = policies.asynchronous()
  with jax.numpy_rank_promotion('allow'):
    job, error = digits_job(policy)
    calm = run(job, num_batches=1000)
    chaos = Chaos(0)
    chaos.run = threads.Threads(
      job,
      num_workers=WORKERS,
      num_batches=1000,
      devices=jax.local_devices()[:2],
      delay_fn=chaos.delay,
      deliver_fn=chaos.deliver,
      live=ga_jax.Live(lease_seconds=0.1),
    )
    wild = chaos.run.run()
    wild.trace.verify()  # exactly once
    assert replays(job, wild)
    assert wild.trace.updates() == 1000
    done, refused = chaos.done, wild.refused
    assert min(done[k] for k in ('hung', 'died', 'doubled', 'forged')) > 0
    # Some of them came too late anyhow.
    assert 0 < refused['misshapen'] <= done['shape'] + done['dtype']
    assert 0 < refused['non-finite'] <= done['nan'] + done['inf']
    assert 0 < refused['forged'] <= done['forged']  # or late already
    assert refused['doubled'] <= done['doubled']
    assert refused['lease'] >= 1
    events = wild.trace.events
    assert 0 < (events['event'] == Kind.LEAVE).sum() <= done['died']
    refusals = (events['action'] == Action.REFUSE).sum()
    causes = ('doubled', 'forged', 'late')
    assert refusals == sum(refused.get(cause, 0) for cause in causes)
    # 2 points are about three standard deviations of a seed's test error.
    assert abs(error(wild.params) - error(calm.params)) < 0.02
    assert error(calm.params) < 0.06


def test_workers_compile_nothing(caplog):
  """Who compiles late looks slow, and `delay_fn` multiplies that."""
  job = cases.tiny_job(rules.ga(0.05), policies.asynchronous())
  params = {**job.params, 'new': jnp.zeros(17)}  # nobody compiled for it yet
  job = dataclasses.replace(job, params=params)
  jax.config.update('jax_log_compiles', True)
  try:
    with caplog.at_level('WARNING', logger='jax'):
      ga_jax.run_on_threads(job, num_workers=3, num_batches=12)
  finally:
    jax.config.update('jax_log_compiles', False)
  by_thread = collections.Counter(
    record.threadName
    for record in caplog.records
    if record.getMessage().startswith('Compiling ')
  )
  assert by_thread.keys() == {threading.current_thread().name}


def test_workers_report_their_computing_time():
  """A gradient of 20 ms and no more workers than cores: always at work."""
  policy = policies.asynchronous()
  job = cases.tiny_job(cases.rule('ga', 0.02), policy)
  result = run(
    job,
    num_workers=2,
    num_batches=60,
    delay_fn=lambda worker_id, seconds: 0.02,
  )
  assert set(result.workers) == {0, 1}
  for one in result.workers.values():
    assert 25 <= one.answers <= 35
    assert one.compute >= 0.02 * one.answers
    assert 0.5 < one.utilisation <= 1  # 0.95 is measured by the benchmark


@pytest.mark.slow
def test_memory_is_flat_over_100_000_updates():
  """100,000 updates: memory is flat, no thread is left."""
  policy = policies.asynchronous()
  params = np.zeros(10, np.float32)

  def loss_fn(params, model_state, batch, key):
    del key
    return jnp.mean((batch - params[None]) ** 2), model_state

  batch = np.ones((4, 10), np.float32)
  job = ga_jax.Job(
    loss_fn, params, lambda batch_id: batch, cases.rule('ga', 0.01), policy
  )
  seen = []

  def observe(batches, state, metrics):
    seen.append((batches, resident_kib()))
    return False

  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    result = run(
      job,
      observe,
      1000,
      num_workers=2,
      num_batches=100_000,
      trace_path=f'{folder}/rows',
    )
  assert result.trace.updates() == 100_000
  early = max(kib for batches, kib in seen if batches <= 10_000)
  late = max(kib for batches, kib in seen)
  assert late < 1.02 * early, (early, late)


def resident_kib() -> int:
  with open('/proc/self/status') as file:
    for line in file:
      if line.startswith('VmRSS'):
        return int(line.split()[1])
  raise OSError('no VmRSS')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_workers': 0}, 'num_workers must be an integer of at least 1'),
    ({'lease_seconds': 0.0}, 'lease_seconds must be > 0'),
    ({'pipeline_depth': -1}, 'pipeline_depth must be an integer of at least 0'),
  ],
)
def test_bad_arguments_of_a_live_run_are_refused_by_name(change, message):
  policy = policies.asynchronous()
  job = cases.tiny_job(cases.rule('ga', 0.02), policy)
  given = {'num_workers': 2, 'num_batches': 4, **change}
  with pytest.raises(ValueError, match=message):
    threads.Threads(job, **cases.live_arguments(**given))


def test_batches_are_prepared_while_the_device_computes():
  """A reserved batch is taken from whoever holds it where none is left."""
  from ga_jax.server import ledger

  book = ledger.Ledger(policies.asynchronous(), num_batches=3)
  book.join(0)
  book.join(1)
  first = book.ticket(0)
  assert book.reserve(0) == (1, 1, 0)
  assert book.reserve(0) == (1, 1, 0)
  assert book.reserve(1) == (2, 1, 0)
  book.arrive(first)
  assert book.ticket(0).first_batch == 1
  other = book.ticket(1)
  assert other.first_batch == 2
  assert book.reserve(1) is None
  # Worker 1 leaves; its batch goes to worker 0, who reserves it at once.
  book.leave(1)
  assert book.reserve(0) == (2, 1, 1)
  book.join(2)
  stolen = book.ticket(2)
  assert (stolen.first_batch, stolen.attempt) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize('policy_name', ['asynchronous', 'abs'])
def test_a_stopped_run_goes_on_where_it_was(policy_name, tmp_path):
  policy = policies.make(policy_name, WORKERS)
  job = cases.tiny_job(
    rules.gap_aware(0.01, 0.0), policy, program=programs.dana_slim
  )
  path = str(tmp_path / 'rows')

  def start(stop_at):
    checkpoints = Checkpoints(
      CheckpointStore(str(tmp_path / 'checkpoints')), every_updates=20
    )
    run_ = threads.Threads(
      job,
      num_workers=WORKERS,
      num_batches=300,
      devices=jax.local_devices()[:2],
      live=ga_jax.Live(trace_path=path, checkpoints=checkpoints),
    )
    return run_.run(lambda batches, state, metrics: batches >= stop_at, 10)

  first = start(100)
  assert first.stopped
  assert 100 <= first.executed < 300
  second = start(200)
  last = start(10**6)
  assert not last.stopped
  last.trace.verify()  # no batch lost or doubled
  assert last.executed == 300
  assert replays(job, last)
  for before in (first, second):
    rows = len(before.trace.events)
    assert (last.trace.events[:rows] == before.trace.events).all()
  assert last.refused['restart'] >= 2
