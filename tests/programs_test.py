"""Worker programs and compression: what they submit, and what they keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ga_jax
from ga_jax import clocks, compression, policies, programs, rules
from ga_jax.executors import reference
from ga_jax.job import program as program_lib
from ga_jax.job import source as source_lib
from ga_jax.policies.parts.base import Action, Kind
from ga_jax.server import update
from tests import cases, method_cases

pytestmark = pytest.mark.usefixtures('quick_compiler')

RATE = method_cases.RATE


def make(name, **own):
  """A program factory `program(loss_fn)` with the suite's settings."""
  return functools.partial(method_cases.PROGRAMS[name].make, **own)


def run(program, rule, executor='exact', dtype=np.float64, **own):
  """Trains the tiny problem."""
  policy = own.pop('policy', policies.asynchronous())
  clock = own.pop('clock', clocks.heterogeneous(0))
  return ga_jax.simulate(
    cases.tiny_job(rule, policy, dtype, program=program),
    clock,
    **{'num_workers': 3, 'num_batches': 60, 'executor': executor, **own},
  )


def outer(program):
  """The rule that goes with a program: its own rate, or 1 for local steps."""
  return rules.asgd(method_cases.PROGRAMS[program].rate, momentum=0.0)


EVERY_STAGE = [  # a plain gradient is executors_test.py's
  ('gradient', 'topk'),
  *(
    pytest.param(*pair, marks=pytest.mark.slow)
    for pair in (
      ('dana_slim', 'none'),
      ('local_sgd', 'none'),
      ('easgd', 'none'),
      ('laga', 'none'),
      ('gradient', 'bf16'),
      ('gradient', 'terngrad'),
      ('local_sgd', 'topk'),
    )
  ),
]


@pytest.mark.parametrize(('name', 'stage'), EVERY_STAGE)
def test_executors_agree(name, stage, x64):
  """With short last tickets, a death and a policy that discards."""
  del x64
  own = {} if name in ('gradient', 'dana_slim') else {'local_steps': 2}
  program = make(name, **own)
  if stage != 'none':
    program = method_cases.compressed(
      program, compression.COMPRESSIONS[stage]()
    )
  clock = clocks.with_fault(clocks.homogeneous(1), worker_id=1, time=6.0)
  policy = policies.ringmaster(3, max_delay=2)
  fast = run(
    program,
    outer(name),
    'fast',
    num_batches=27,
    clock=clock,
    policy=policy,
    block=4,
  )
  exact = run(program, outer(name), num_batches=27, clock=clock, policy=policy)
  trace = exact.trace
  trace.verify()
  assert trace.number_of(Kind.LEAVE) == 1
  assert (trace.events['action'] == Action.DISCARD).any()

  def compiled(loss_fn):  # once; in plain Python a ticket takes a second
    made = program(loss_fn)
    return made._replace(run=jax.jit(made.run))

  job = cases.tiny_job(outer(name), policy, np.float64, program=compiled)
  plain = reference.execute(job, trace)
  tolerance = 1e-6 if stage == 'bf16' else 1e-9  # a rounding may go either way
  for state in (fast.state, exact.state):
    assert cases.distance(state.params, plain.params) < tolerance
    assert cases.distance(state.model_state, plain.model_state) < tolerance
    assert int(state.count) == 27
  assert fast.metrics['num_batches'].tolist() == (
    exact.metrics['num_batches'].tolist()
  )


def test_a_lost_workers_state_begins_again(x64):
  """DANA-Slim's momentum is gone after a leave, in every executor."""
  del x64
  clock = clocks.with_fault(
    clocks.constant(), worker_id=0, time=10.5, noticed_after=1.0
  )
  result = run(make('dana_slim'), rules.asgd(RATE, 0.0), clock=clock)
  leave = result.trace.events[result.trace.events['event'] == Kind.LEAVE][0]
  assert (leave['worker_id'], leave['time']) == (0, 11.5)
  arrivals = result.trace.applied()
  assert not ((arrivals['worker_id'] == 0) & (arrivals['time'] > 10.5)).any()


def test_one_local_step_is_asgd(x64):
  del x64
  local = run(make('local_sgd', local_steps=1), outer('local_sgd'))
  plain = run(make('gradient'), rules.asgd(RATE, momentum=0.0))
  assert (local.trace.events == plain.trace.events).all()
  assert cases.distance(local.params, plain.params) < 1e-12


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_local_steps_of_one_worker_are_sgd(momentum, x64):
  """θ ← x: with one worker the outer step leaves the inner trajectory."""
  del x64
  result = run(
    make('local_sgd', local_momentum=momentum, weight_decay=1e-2),
    outer('local_sgd'),
    num_workers=1,
  )
  plain = run(
    make('gradient'),
    rules.asgd(RATE, momentum, weight_decay=1e-2),
    num_workers=1,
  )
  assert result.trace.updates() == 20
  assert cases.distance(result.params, plain.params) < 1e-12


def test_dana_slims_program_is_its_rule(x64):
  del x64
  program = run(
    make('dana_slim', momentum=0.8, weight_decay=1e-2),
    rules.asgd(RATE, momentum=0.0),
    clock=clocks.constant(),
  )
  rule = run(make('gradient'), rules.dana_slim(RATE, 3, 0.8))
  without = run(make('dana_slim', momentum=0.8), rules.asgd(RATE, momentum=0.0))
  assert cases.distance(without.params, rule.params) < 1e-9
  assert cases.distance(program.params, rule.params) > 1e-4


def test_elastic_averaging_by_hand(x64):
  """Two workers, EAMSGD, against the paper's algorithm in NumPy."""
  del x64
  target, alpha, delta, rate = np.array([1.0, -2.0]), 0.3, 0.9, 0.1

  def loss_fn(params, model_state, batch, key):
    del key
    return 0.5 * jnp.sum((params - target - batch) ** 2), model_state

  def batch_fn(batch_id):
    return np.random.default_rng(batch_id).normal(size=2)

  program = make(
    'easgd',
    learning_rate=rate,
    num_workers=2,
    local_steps=2,
    local_momentum=delta,
    elasticity=alpha,
  )
  result = ga_jax.simulate(
    ga_jax.Job(
      loss_fn,
      np.zeros(2),
      batch_fn,
      rules.asgd(1.0, momentum=0.0),
      policies.asynchronous(),
      program=program,
    ),
    clocks.homogeneous(0),
    num_workers=2,
    num_batches=40,
    executor='exact',
  )
  centre, own, velocity = np.zeros(2), {}, {}
  for row in result.trace.applied():
    w = int(row['worker_id'])
    x, v = own.get(w), velocity.get(w, np.zeros(2))
    if x is None:
      x = np.zeros(2)  # both were sent version 0 first
    for batch_id in range(row['first_batch'], row['first_batch'] + 2):
      v = delta * v - rate * (x + delta * v - target - batch_fn(batch_id))
      x = x + v
    elastic = alpha * (x - centre)
    own[w], velocity[w], centre = x - elastic, v, centre + elastic
  np.testing.assert_allclose(result.params, centre, rtol=1e-9)


def test_laga_sums_gradients_and_hides_messages():
  clock = clocks.with_communication(clocks.constant(), latency=1.0)
  slow = run(make('gradient'), rules.asgd(0.0), clock=clock, num_workers=1)
  laga = run(make('laga'), rules.asgd(0.0), clock=clock, num_workers=1)
  assert slow.trace.events['time'][-1] == 60 * 3  # 1 and two messages each
  assert laga.trace.events['time'][-1] == 60  # hidden behind 3 batches
  loss_fn, params, stats, batch_fn = cases.tiny_problem(np.float32)
  program = make('laga')(loss_fn)
  sent = update.Snapshot(params, stats)
  host = jax.tree.map(lambda *x: np.stack(x), *[batch_fn(i) for i in range(3)])
  work = program_lib.work(jax.random.key(0), host, 0, 0)
  submission, _ = program.run((), sent, work)
  total = jax.tree.map(
    lambda *g: sum(g),
    *[
      jax.grad(lambda p, b: loss_fn(p, stats, b, None)[0])(params, batch_fn(i))
      for i in range(3)
    ],
  )
  assert cases.distance(submission.grads, total) < 1e-5


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: make('local_sgd', local_steps=0), 'local_steps must be an'),
    (lambda: make('laga', local_steps=1.5), 'local_steps must be an'),
    (lambda: make('easgd', elasticity=1.0), 'elasticity must be finite'),
    (lambda: make('easgd', local_momentum=1.0), 'local_momentum must be'),
    (lambda: make('dana_slim', momentum=-0.1), 'momentum must be finite'),
    (lambda: make('local_sgd', learning_rate=-1.0), 'learning_rate must'),
    (lambda: lambda _: compression.topk(0.0), 'topk_ratio must be finite'),
    (
      lambda: lambda _: compression.topk(1.5),
      'topk_ratio must be finite and > 0.0 and <= 1',
    ),
  ],
)
def test_bad_program_arguments_are_refused_by_name(build, message):
  with pytest.raises(ValueError, match=message):
    build()(cases.tiny_problem()[0])


def test_inner_schedules_are_functions_of_the_batch_id(x64):
  """Inner schedules are functions of the batch's id."""
  del x64

  def schedule(batch_id):
    return jnp.where(batch_id < 30, RATE, 0.0)

  half = run(make('local_sgd', learning_rate=schedule), outer('local_sgd'))
  whole = run(make('local_sgd'), outer('local_sgd'), num_batches=30)
  assert cases.distance(half.params, whole.params) < 1e-12


TARGET = 1 + 2j


def complex_problem():
  """|p − (1 + 2j)|², and the same of its real and imaginary part."""

  def of_complex(params, model_state, batch, key):
    del batch, key
    return jnp.abs(params['p'] - TARGET) ** 2, model_state

  def of_parts(params, model_state, batch, key):
    del batch, key
    apart = params['re'] - TARGET.real, params['im'] - TARGET.imag
    return apart[0] ** 2 + apart[1] ** 2, model_state

  return of_complex, of_parts


def remembering(loss_fn):
  """The recurrent program for a loss that remembers nothing."""

  def with_memory(params, both, batch, key):
    model_state, memory = both
    loss, model_state = loss_fn(params, model_state, batch, key)
    return loss, (model_state, memory)

  return programs.recurrent(with_memory, lambda: jnp.zeros(()), streams=1)


@pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('gradient', 'easgd', 'recurrent')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in (*programs.PROGRAMS, 'recurrent')
  ],
)
def test_complex_parameters_go_downhill(name):
  """As their real and imaginary parts do, simulated and on threads."""
  own = {'dana_slim': {'momentum': 0.5}, 'easgd': {'elasticity': 0.9}}
  program = (
    remembering if name == 'recurrent' else make(name, **own.get(name, {}))
  )
  rule = outer('gradient' if name == 'recurrent' else name)
  of_complex, of_parts = complex_problem()
  source = source_lib.Source(lambda i: np.zeros(1, np.float32), streams=1)
  policy = policies.asynchronous()

  def trained(loss_fn, params, run, **own):
    batches = source if name == 'recurrent' else source.batch_fn
    job = ga_jax.Job(loss_fn, params, batches, rule, policy, program=program)
    return run(job, num_batches=120, **own).params

  start = {'p': jnp.zeros((), jnp.complex64)}
  zero = jnp.zeros((), jnp.float32)
  simulated = {'clock': clocks.homogeneous(0), 'executor': 'exact'}
  workers = 1 if name == 'recurrent' else 3
  found = trained(
    of_complex, start, ga_jax.simulate, num_workers=workers, **simulated
  )['p']
  parts = trained(
    of_parts,
    {'re': zero, 'im': zero},
    ga_jax.simulate,
    num_workers=workers,
    **simulated,
  )
  assert abs(complex(found) - TARGET) < 0.2
  np.testing.assert_allclose(
    complex(found), complex(parts['re'], parts['im']), rtol=1e-5
  )
  live = trained(of_complex, start, ga_jax.run_on_threads, num_workers=1)
  assert abs(complex(live['p']) - TARGET) < 0.2
