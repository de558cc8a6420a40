"""How a simulated update grows with the workers and with the parameters.

  python -m experiments.bench.growth --json=results/bench/growth.json

Time per Gap-Aware update outside the gradient. The gradient is one that costs
nothing: an array that is there already, of the parameters' size, read by the
update like any other. What is left is the update itself, its metrics, the
buffer of live versions and, on the host, the schedule: clock, policy, ledger
and the rows of the buffer, which are computed before the first gradient.

With N the parameters stay 10,000, with the parameters N stays 4. Each run stays
alive between its turns (`blocks`), and its buffer has been gone through once.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.bench import blocks, timing
from experiments.script import launch
from experiments.settings import table
from ga_jax import rules
from ga_jax.job import source as source_lib

LIMITS = """
The work per update is the same for every N and linear in the parameters; what
is not is where it finds its data. The buffer of live versions holds N rows, and
in N updates each of them is written and read once: 10,000 parameters make 41 MB
of it at N = 1,024, which no longer fits the caches that hold the 2.6 MB of N =
64. On the host the heap is deeper, and the record of more workers is larger
than a cache too. A million parameters are some 40 MB of arrays at N = 4 and
share the last cache in part; of 10^8, 4 GB, it holds nothing, so that the time
per parameter is the memory's there. Below a million what an update costs
whatever its size, a loop step of some tens of compiled kernels, is most of it;
it is printed as the constant part.
"""

WORKERS, SMALL = (4, 64, 1024), 10_000
SIZES, FEW = (10**4, 10**6, 10**8), 4
SLACK = 1.1

_ROUNDS = flags.DEFINE_integer('rounds', 5, 'turns of each', lower_bound=1)
_LARGEST = flags.DEFINE_integer(
  'largest', SIZES[-1], 'parameters: less where memory is short'
)


def prepare() -> tuple[int, ...]:
  """The numbers of parameters."""
  if _LARGEST.value <= SIZES[1]:
    raise table.SettingError(
      'largest', _LARGEST.value, f'must be above {SIZES[1]}'
    )
  return (*SIZES[:-1], _LARGEST.value)


def main(sizes):
  where = timing.machine()
  rows, targets = [], []
  for part in (over_workers(), over_sizes(sizes)):
    rows += part[0]
    targets += part[1]
  timing.finish(where, rows, targets)


def over_workers() -> tuple[list[dict], list[timing.Target]]:
  """The table of N."""
  turns = {f'block {n}': run(n, SMALL, 1024) for n in WORKERS}
  turns |= {f'host {n}': functools.partial(host, n) for n in WORKERS}
  ms = timing.alternate(turns, _ROUNDS.value)
  whole = {
    n: np.add(ms[f'block {n}'], ms[f'host {n}']).tolist() for n in WORKERS
  }
  rows, targets = [], []
  timing.say(f'\n{SMALL:,} parameters, microseconds per update')
  timing.say(
    f'{"N":>11}  computed               scheduled              over N = 4'
  )
  for n in WORKERS:
    ratio = timing.ratios(whole[n], whole[WORKERS[0]])
    computed, scheduled = ms[f'block {n}'], ms[f'host {n}']
    timing.say(f'{n:11,}  {_us(computed)!s:22} {_us(scheduled)!s:22} {ratio}')
    rows.append({
      'workers': n, 'parameters': SMALL, 'block_ms': computed,
      'host_ms': scheduled, 'ratio': ratio._asdict(),
    })  # fmt: skip
    if n != WORKERS[0]:
      what = (
        f'N = {n:,}: time per update outside the gradient over that of N = 4'
      )
      targets.append(timing.Target(what, ratio, SLACK))
  return rows, targets


def over_sizes(sizes) -> tuple[list[dict], list[timing.Target]]:
  """The table of parameters."""
  updates = dict(zip(sizes, (1024, 64, 4), strict=True))
  turns = {str(p): run(FEW, p, updates[p]) for p in sizes}
  ms = timing.alternate(turns, _ROUNDS.value)
  small, middle, large = (ms[str(p)] for p in sizes)
  rows = []
  timing.say(f'\nN = {FEW}, microseconds per update')
  timing.say(f'{"parameters":>11}  computed               ns per parameter')
  for p in sizes:
    each = timing.figure([1e6 * t / p for t in ms[str(p)]])
    timing.say(f'{p:11,}  {_us(ms[str(p)])!s:22} {each}')
    rows.append({'workers': FEW, 'parameters': p, 'block_ms': ms[str(p)]})
  # Were an update c + k P, the two smaller ones would say c.
  part = sizes[0] / sizes[1]
  constant = [
    1e3 * (a - part * b) / (1 - part)
    for a, b in zip(small, middle, strict=True)
  ]
  timing.say(f'   constant  {timing.figure(constant)}')
  growth = timing.ratios(large, [t * sizes[2] / sizes[1] for t in middle])
  what = f'time per parameter of {sizes[2]:.3g} over that of {sizes[1]:.3g}'
  return rows, [timing.Target(what, growth, SLACK)]


def run(num_workers: int, size: int, updates: int) -> Callable[[], float]:
  """A run whose gradients are there already."""

  @jax.custom_vjp
  def loss(params, grads):
    del params, grads
    return jnp.zeros([])

  loss.defvjp(
    lambda params, grads: (jnp.zeros([]), grads),
    lambda grads, _: (grads, jnp.zeros_like(grads)),
  )
  source = source_lib.Source(
    lambda batch_id: np.zeros([], np.float32),
    lambda resident, host_batch, key: resident,
    jnp.full(size, 1e-6),
  )
  return blocks.TimedBlocks(
    lambda params, model_state, batch, key: (loss(params, batch), model_state),
    (jnp.ones(size), ()),
    source,
    rules.gap_aware(0.01),
    num_workers,
    updates,
    _ROUNDS.value,
  )


def host(num_workers: int) -> float:
  """Milliseconds per update of scheduling."""
  updates = 64 * 1024  # what 1,024 clocks draw at a time
  run = functools.partial(blocks.schedule, num_workers, updates)
  return 1e3 * timing.seconds(run) / updates


def _us(ms) -> timing.Figure:
  return timing.figure([1e3 * t for t in ms])


if __name__ == '__main__':
  launch.launch(main, prepare)
