"""What simulating N workers with Gap-Aware costs beside training with one.

  python -m experiments.bench.simulation_overhead \\
    --json=results/bench/simulation_overhead.json

Time per update of GA with N simulated workers over that of plain momentum SGD
with the same model, batches and thread pool, in two forms:

* blocks: SGD through the simulator with one worker, compiled like GA;
* a loop: the best that a user of optax would write, one jitted step per batch
  with parameters, optimiser state and statistics donated, nothing waited for.
  It gathers its batches by the same indices from the same resident data set.

All candidates of a model stay alive and take turns, so that compilation is left
out and the buffer of live versions has been gone through once: that is a run's
state but for its first N updates. The gradient's own time is measured among
them, the same loop without an optimiser. Images are random, which changes
nothing about the time.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import flags

from experiments.bench import blocks, random_images, timing, twin_problems
from experiments.running import compilation
from experiments.script import launch, shared_flags
from experiments.tasks import classification
from ga_jax import models, rules

LIMITS = """
What GA adds to a gradient is memory traffic: 8 arrays of the parameters' size
per update where momentum SGD moves 5, one more pass for the gap and penalties
that it reports, and a row of the buffer of live versions read and one written.

XLA's CPU compiler made more of it, which the optimised programs showed. In the
unrolled blocks of convolutional networks it read the row again wherever it was
used, and so copied the whole buffer in every step, the more the larger N; an
optimisation barrier did not help, it is dropped before fusion. The row now
comes out of a conditional. In scans it copied the parameters and the row in
every step, since nothing said that the gap is measured before both are
overwritten; now the new parameters wait for it. A test holds that neither is
copied. What is left are copies of smaller weights of the row that the backward
pass reads and nothing orders before the next one.

Buffers are allocated and cleared when a run starts; the page faults of memory
that is touched first are not in these figures. With N the working set grows by
N times the parameters: once it exceeds the last cache, the row that is read and
the one that is written come from memory.
"""

RATE, CLASSES, EXAMPLES = 0.01, 10, 5120
LONG, LOW, HIGH = 5.0, 1.05, 1.15  # ms; the bound from there on, and below


class Load(NamedTuple):
  """A model and what it is measured on.

  Attributes:
    model: a name in `models.MODELS`, or `TRANSFORMER`.
    batch_size: examples per gradient.
    updates: per turn, a multiple of every block's length.
    workers: numbers of simulated workers.
  """

  model: str
  batch_size: int
  updates: int
  workers: tuple[int, ...] = (4, 16, 64, 256)
  shape: tuple[int, int, int] = (28, 28, 1)


TRANSFORMER = 'byte_transformer'
PROBLEMS = {
  'mlp_bn-2560': Load('mlp_bn', 2560, 64),
  'mlp_bn-320': Load('mlp_bn', 320, 128),
  # Its unrolled blocks take seconds to compile, for each number of workers.
  'cnn_bn-64': Load('cnn_bn', 64, 128, (4, 256)),
}
OF_ACCELERATORS = {  # they take long on a CPU
  'mlp_bn-128': Load('mlp_bn', 128, 256, (16,)),
  'transformer-16': Load(TRANSFORMER, 16, 256, (16,)),
  'resnet20-128': Load('resnet20', 128, 64, (16,), (32, 32, 3)),
}

_PROBLEMS = flags.DEFINE_list('problems', list(PROBLEMS), 'to measure')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'turns of each', lower_bound=1)
compilation.define_flag()


def prepare():
  """Checks which problems were asked for."""
  shared_flags.check_names(
    'problems', _PROBLEMS.value, PROBLEMS | OF_ACCELERATORS
  )


def main(_):
  where = timing.machine()
  rows, targets = [], []
  for name in _PROBLEMS.value:
    one_rows, one_targets = compared(name)
    rows += one_rows
    targets += one_targets
  timing.finish(where, rows, targets)


def compared(name: str) -> tuple[list[dict], list[timing.Target]]:
  """Measures one problem, its candidates in turns."""
  problem = (PROBLEMS | OF_ACCELERATORS)[name]
  task = Measurable(problem)
  turns = {
    'gradient': task.loop(None),
    'SGD, loop': task.loop(optax.sgd(RATE, momentum=0.9)),
    'SGD, blocks': task.blocks(rules.asgd(RATE), 1, _ROUNDS.value),
  }
  simulated = {f'GA, N = {n}': n for n in problem.workers}
  for label, n in simulated.items():
    turns[label] = task.blocks(rules.gap_aware(RATE), n, _ROUNDS.value)
  measured = timing.alternate(turns, _ROUNDS.value)
  timing.say(
    f'\n{name}: {problem.model}, batch {problem.batch_size}, '
    f'{task.parameters:,} parameters\n'
    f'{"":12} ms per update             over SGD in blocks       over its loop'
  )
  rows, targets = [], []
  gradient = timing.figure(measured['gradient']).median
  bound = LOW if gradient >= LONG else HIGH
  for label, ms in measured.items():
    block = timing.ratios(ms, measured['SGD, blocks'])
    loop = timing.ratios(ms, measured['SGD, loop'])
    timing.say(f'{label:12} {timing.figure(ms)!s:25} {block!s:24} {loop}')
    rows.append({
      'problem': name, 'candidate': label, 'ms_per_update': ms,
      'over_blocks': block._asdict(), 'over_loop': loop._asdict(),
      'parameters': task.parameters, 'batch_size': problem.batch_size,
    })  # fmt: skip
    if label in simulated:
      what = f'{name} (gradient {gradient:.3g} ms), {label}: time over SGD'
      targets += [
        timing.Target(f'{what} in blocks', block, bound),
        timing.Target(f'{what} as an optax loop', loop, 1.0),
      ]
  return rows, targets


class Measurable:
  """A problem, ready to be measured."""

  def __init__(self, problem: Load):
    if problem.model == TRANSFORMER:
      twin = twin_problems.PROBLEMS['transformer_1024']
      twin = twin._replace(batch_size=problem.batch_size)
      model, self._source = twin.make(), twin_problems.source(twin)
      self._start = twin_problems.initial(twin)
    else:
      model = models.MODELS[problem.model](CLASSES)
      self._source = random_images.source(
        EXAMPLES, problem.shape, CLASSES, problem.batch_size
      )
      example = jnp.zeros((1, *problem.shape))
      self._start = model.init(jax.random.key(0), example)
    self._loss = classification.cross_entropy(model)
    self._updates = problem.updates
    self.parameters = sum(x.size for x in jax.tree.leaves(self._start[0]))

  def loop(self, optimiser) -> Callable[[], float]:
    """A jitted step per batch; of the gradient alone without an optimiser."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, resident, indices):
      params, model_state, opt_state = state
      batch = self._source.load_fn(resident, indices, None)
      (loss, model_state), grads = jax.value_and_grad(self._loss, has_aux=True)(
        params, model_state, batch, None
      )
      if optimiser is None:
        return (params, model_state, opt_state), (loss, grads)
      updates, opt_state = optimiser.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      return (params, model_state, opt_state), loss

    params, model_state = jax.tree.map(jnp.copy, self._start)
    state = params, model_state, optimiser.init(params) if optimiser else ()
    done = 0

    def run():
      nonlocal state, done
      losses = []
      for batch_id in range(done, done + self._updates):
        indices = self._source.batch_fn(batch_id)
        state, out = step(state, self._source.resident, indices)
        losses.append(out if optimiser else out[0])
      done += self._updates
      jax.block_until_ready((state, losses))

    run()  # compiles
    return lambda: 1e3 * timing.seconds(run) / self._updates

  def blocks(self, rule, workers: int, turns: int) -> Callable[[], float]:
    """The simulator's compiled blocks."""
    source, updates = self._source, self._updates
    return blocks.TimedBlocks(
      self._loss, self._start, source, rule, workers, updates, turns
    )


if __name__ == '__main__':
  launch.launch(main, prepare, device_fn=lambda _: None)  # `timing` says it
