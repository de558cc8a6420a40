"""Whether a device computes what it should: kernels, bits, plain optax, replay.

  python -m experiments.bench.device_checks --checks=kernels,bits,optax,replay

* kernels: updates with the kernels beside the formula (`GA_JAX_KERNELS`), of
  odd sizes and random staleness: the greatest difference over what rounding is
  allowed, which has to stay below 1.
* bits: a simulated run twice, to the same bits.
* optax: one simulated worker beside a loop of plain optax: the greatest
  difference of a parameter over the greatest parameter.
* replay: a run on threads of the device, computed again from its trace, to the
  same bits.

Sums have one order where XLA is told so: on a GPU
`XLA_FLAGS=--xla_gpu_deterministic_ops=true`. On a CPU, which has no kernels of
its own, those of a GPU are interpreted.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

import ga_jax
from experiments.bench import named_rules, random_images, timing
from experiments.bench import updates as made
from experiments.script import launch, shared_flags
from experiments.tasks import classification
from ga_jax import clocks, models, policies, rules
from ga_jax.executors import exact
from ga_jax.kernels import fused

RULES = ('asgd', 'ga', 'ga_adam', 'dana_ga', 'dana_zero', 'multi_asgd')
SHAPES = ((), (1,), (127,), (300, 40), (3, 3, 5, 16))
LONG = (128 * 1024 + 1,)
ALLOWED = {  # of the difference: relative, absolute
  'float32': (2e-4, 2e-5),
  'bfloat16': (0.05, 0.05),
}
STEPS, RATE, CLASSES, SHAPE = 4, 0.05, 10, (28, 28, 1)


def prepare():
  """Checks which were asked for; no product is rounded to TF32 or bfloat16."""
  jax.config.update('jax_default_matmul_precision', 'highest')
  shared_flags.check_names('checks', _CHECKS.value, list(CHECKS))


def main(_):
  where = timing.machine() | {'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')}
  rows, targets = [], []
  for name in _CHECKS.value:
    for row, target in CHECKS[name]():
      rows.append({'check': name, **row})
      targets.append(target)
      timing.write(where, rows, targets)
  timing.finish(where, rows, targets)


def kernels():
  """Rules with their kernels beside the formula."""
  on_cpu = jax.default_backend() == 'cpu'
  with_kernels = 'interpret-triton' if on_cpu else 'auto'
  shapes = SHAPES if _TINY.value else (*SHAPES, LONG)
  for dtype, (relative, absolute) in ALLOWED.items():
    for name in RULES[1:2] if _TINY.value else RULES:
      found = trained(with_kernels, name, shapes, dtype)
      expected = trained('reference', name, shapes, dtype)
      worst = max(
        float(np.max(np.abs(a - b) / (absolute + relative * np.abs(b))))
        for a, b in zip(found, expected, strict=True)
      )
      what = f'{name}, {dtype}: kernels from the formula, of the allowed'
      target = timing.Target(what, timing.figure([worst]), 1)
      yield {'rule': name, 'dtype': dtype, 'kernels': with_kernels}, target


def trained(kernels: str, name: str, shapes, dtype) -> list[np.ndarray]:
  """Parameters and state after updates of random staleness, as float64."""
  before = os.environ.get(fused.VARIABLE)
  os.environ[fused.VARIABLE] = kernels
  try:
    return _trained(named_rules.named()[name](), shapes, dtype)
  finally:
    if before is None:
      del os.environ[fused.VARIABLE]
    else:
      os.environ[fused.VARIABLE] = before


def _trained(rule, shapes, dtype) -> list[np.ndarray]:
  rng = np.random.default_rng(0)
  params = [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]
  state, _ = made.of_a_server(rule, params, STEPS, named_rules.WORKERS)
  leaves = jax.tree.leaves((state.params, state.opt_state))
  return [np.asarray(leaf.astype(jnp.float32), np.float64) for leaf in leaves]


def job(rule) -> ga_jax.Job:
  """A small network on random images."""
  model = models.MODELS['mlp_bn' if _TINY.value else 'cnn_bn'](CLASSES)
  params, stats = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
  return ga_jax.Job(
    classification.cross_entropy(model),
    params,
    random_images.source(1024, SHAPE, CLASSES, 32),
    rule,
    policies.asynchronous(),
    model_state=stats,
    stats_momentum=model.stats_momentum,
  )


def updates() -> int:
  return 8 if _TINY.value else 100


def bits():
  """A run twice."""
  one = job(rules.ga(RATE, momentum=0.9))
  first, again = (simulated(one, 4) for _ in range(2))
  same = same_bits(first.state, again.state)
  what = 'a simulated run of GA twice: the same bits'
  yield {'same': same}, _whether(what, same)


def optax_loop():
  """One worker beside a loop of optax."""
  plain = optax.sgd(RATE, 0.9)
  for name, rule in {
    'asgd': rules.asgd(RATE, momentum=0.9),
    'ga': rules.ga(RATE, momentum=0.9),
  }.items():
    one = job(rule)
    found = simulated(one, 1).state.params
    expected = by_optax(one, plain)
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    off = max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)
    top = max(float(jnp.max(jnp.abs(b))) for b in jax.tree.leaves(expected))
    row = {'rule': name, 'same': same_bits(found, expected)}
    what = f'{name}, one worker: difference from optax, of the greatest'
    yield row, timing.Target(what, timing.figure([off / top]), 1e-3)


def by_optax(one: ga_jax.Job, optimiser):
  """The parameters after the same batches."""
  source = one.source

  @jax.jit
  def gradient(params, stats, resident, indices):
    batch = source.load_fn(resident, indices, None)
    return jax.grad(one.loss_fn, has_aux=True)(params, stats, batch, None)

  @jax.jit
  def step(grads, opt_state, params):
    updates, opt_state = optimiser.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  params, stats = one.params, one.model_state
  opt_state = optimiser.init(params)
  for batch_id in range(updates()):
    indices = source.batch_fn(batch_id)
    grads, stats = gradient(params, stats, source.resident, indices)
    params, opt_state = step(grads, opt_state, params)
  return params


def replay():
  """A live run computed again."""
  one = job(rules.ga(RATE, momentum=0.9))
  live = ga_jax.run_on_threads(one, num_workers=4, num_batches=updates())
  state, metrics, _ = exact.execute(one, live.trace)
  same = same_bits((state, metrics), (live.state, live.metrics))
  row = {'same': same, 'updates': updates()}
  yield row, _whether('a run on threads replayed: the same bits', same)


CHECKS: dict[str, Callable[[], Any]] = {
  'kernels': kernels,
  'bits': bits,
  'optax': optax_loop,
  'replay': replay,
}
_CHECKS = flags.DEFINE_list('checks', list(CHECKS), 'to make')
_TINY = flags.DEFINE_bool('tiny', False, 'small sizes, to try the command')


def simulated(one: ga_jax.Job, workers: int) -> ga_jax.Result:
  return ga_jax.simulate(
    one,
    clocks.homogeneous(0),
    num_workers=workers,
    num_batches=updates(),
    executor='exact',
  )


def same_bits(one, other) -> bool:
  """Whether two trees of arrays are."""
  pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
  return all(
    np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
  )


def _whether(what: str, true: bool) -> timing.Target:
  return timing.Target(what, timing.figure([float(true)]), 1, at_least=True)


if __name__ == '__main__':
  launch.launch(main, prepare, device_fn=lambda _: None)  # `timing` says it
