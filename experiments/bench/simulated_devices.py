"""What several devices give one deterministic simulation.

  python -m experiments.bench.simulated_devices

Gap-Aware with 8 simulated workers, a gradient that takes one device about 5 ms:
a recurrence of small matrix products, which XLA computes on one thread, as long
as it takes. The same simulation, gradients computed ahead on every device and
applied in the order of the trace (`simulate(devices=...)`), is compared with
the exact executor on one device, whose bits it has to have, and with the fast
one on that device. On the CPU the devices are virtual ones, two by default;
else all that there are. `cores` is processor time over wall time.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import ga_jax
from experiments.bench import timing
from experiments.script import launch
from experiments.settings import table as settings_lib
from ga_jax import clocks, policies, rules

_DEVICES = flags.DEFINE_integer(
  'devices', 0, 'that compute (0: two on the CPU, else all there are)'
)
_GRADIENT = flags.DEFINE_float('gradient_ms', 5.0, 'milliseconds of a gradient')
_WORKERS = flags.DEFINE_integer('workers', 8, 'simulated')
_UPDATES = flags.DEFINE_integer('updates', 200, 'per run')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'runs of each')

WIDTH, BATCH = 64, 32  # products too small for XLA to share them out
RULE = rules.gap_aware(1e-3)
ONE, FAST = 'one device, exact', 'one device, fast'

LIMITS = """
XLA's CPU client computes what one thread dispatches one after the other, even
on two devices (two computations that wait for each other meet only when two
threads dispatch them), so each device is driven by a thread of its own. What is
left between the devices is the update and Python's part of it: the thread that
applies gradients shares the cores with those that compute them. A gradient that
XLA computes on several threads gains less on the CPU, since the devices share
one thread pool and the same cores.
"""


def prepare():
  """Makes the CPU's devices before JAX starts."""
  low = {'devices': 0, 'workers': 1, 'updates': 1, 'rounds': 1}
  for name, least in low.items():
    if flags.FLAGS[name].value < least:
      raise settings_lib.SettingError(
        name, flags.FLAGS[name].value, f'must be at least {least}'
      )
  if not _GRADIENT.value > 0:
    raise settings_lib.SettingError(
      'gradient_ms', _GRADIENT.value, 'must be positive'
    )
  jax.config.update('jax_num_cpu_devices', _DEVICES.value or 2)
  if _DEVICES.value > len(jax.local_devices()):
    raise settings_lib.SettingError(
      'devices', _DEVICES.value, f'this machine has {len(jax.local_devices())}'
    )


def main(_):
  where = timing.machine()
  devices = jax.local_devices()[: _DEVICES.value or None]
  loss_fn, milliseconds = calibrated(_GRADIENT.value)
  several = f'{len(devices)} devices'
  runs = {
    ONE: lambda: simulated(loss_fn, executor='exact'),
    several: lambda: simulated(loss_fn, devices=devices),
    FAST: lambda: simulated(loss_fn, executor='fast'),
  }
  check_same_bits(runs[ONE](), runs[several]())  # compiles too
  runs[FAST]()
  measured = timing.alternate(
    {name: lambda run=run: cost(run) for name, run in runs.items()},
    _ROUNDS.value,
  )
  timing.say(
    f'gradient {milliseconds:.1f} ms, {_WORKERS.value} workers, '
    f'{_UPDATES.value} updates; same bits on one device and on {len(devices)}'
  )
  timing.say(f'{"":20} updates/s                 times one device     cores')
  rows, base = [], [wall for wall, _ in measured[ONE]]
  for name, costs in measured.items():
    walls = [wall for wall, _ in costs]
    rate = timing.figure([_UPDATES.value / wall for wall in walls])
    speed_up = timing.ratios(base, walls)
    cores = timing.figure([cpu / wall for wall, cpu in costs])
    timing.say(f'{name:20} {rate!s:25} {speed_up!s:20} {cores.median:.2f}')
    rows.append(
      {'name': name, 'seconds': walls, 'cpu_seconds': [c for _, c in costs]}
    )
  rows.append({'name': 'gradient', 'milliseconds': milliseconds})
  ratio = timing.ratios(base, [wall for wall, _ in measured[several]])
  targets = []
  if jax.default_backend() == 'cpu' and len(devices) == 2:
    what = 'speed-up of two CPU devices over one, same bits'
    targets = [timing.Target(what, ratio, 1.5, at_least=True)]
  timing.finish(where, rows, targets)


def calibrated(milliseconds: float) -> tuple[Callable, float]:
  """A loss whose gradient takes so long, and how long it takes here."""
  length = 100
  for _ in range(5):  # closer each time
    loss_fn = recurrence(length)
    taken = gradient_milliseconds(loss_fn)
    if abs(taken / milliseconds - 1) < 0.1:
      break
    length = max(1, round(length * milliseconds / taken))
  return loss_fn, taken


def recurrence(length: int):
  """A loss of `length` small products, one after the other."""

  def loss_fn(params, model_state, batch, key):
    del key

    def product(hidden, _):
      return jnp.tanh(hidden @ params), None

    hidden, _ = jax.lax.scan(product, batch, None, length=length)
    return jnp.mean(hidden**2), model_state

  return loss_fn


def weights() -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.normal(size=(WIDTH, WIDTH), scale=WIDTH**-0.5).astype(np.float32)


def batch_fn(batch_id: int) -> np.ndarray:
  rng = np.random.default_rng(batch_id)
  return rng.normal(size=(BATCH, WIDTH)).astype(np.float32)


def gradient_milliseconds(loss_fn) -> float:
  """The fastest of several, on one device."""
  gradient = jax.jit(jax.grad(lambda p, batch: loss_fn(p, (), batch, None)[0]))
  run = lambda: jax.block_until_ready(gradient(params, batch))  # noqa: E731
  params, batch = jax.device_put((weights(), batch_fn(0)))
  run()
  return 1e3 * min(timing.seconds(run) for _ in range(30))


def simulated(loss_fn, **how) -> ga_jax.Result:
  return ga_jax.simulate(
    ga_jax.Job(loss_fn, weights(), batch_fn, RULE, policies.asynchronous()),
    clocks.homogeneous(0),
    num_workers=_WORKERS.value,
    num_batches=_UPDATES.value,
    **how,
  )


def cost(run: Callable[[], ga_jax.Result]) -> tuple[float, float]:
  """Wall time and processor time of a simulation."""
  start = time.perf_counter(), time.process_time()
  jax.block_until_ready(run().state)
  return time.perf_counter() - start[0], time.process_time() - start[1]


def check_same_bits(one: ga_jax.Result, other: ga_jax.Result):
  """Stops the benchmark where two simulations differ."""
  a, b = (
    [np.asarray(x).tobytes() for x in jax.tree.leaves((r.state, r.metrics))]
    for r in (one, other)
  )
  if a != b:
    raise AssertionError('other bits than on one device: nothing is measured')


if __name__ == '__main__':
  launch.launch(main, prepare)
