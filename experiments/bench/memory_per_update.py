"""What a run keeps for every update, however small the model is.

  python -m experiments.bench.memory_per_update

A model of one parameter is trained for few and for many updates, each time in a
process of its own that has made a shorter run before. What the peak of its
memory (`VmHWM`, of Linux) grows by from few to many is the record of the
updates: rows of the trace, metrics, and whatever else is not let go of.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import ga_jax
from experiments.bench import timing
from experiments.script import launch, shared_flags
from ga_jax import clocks, policies
from ga_jax.executors import exact
from ga_jax.simulation import virtual_cluster

LIMITS = """
An update takes two rows of the trace, its issue and its arrival: as Python
values, which the ledger keeps until a run is scheduled, some 200 bytes each,
packed 51. The metrics of an arrival are 44 bytes. Where nothing is scheduled
ahead, by hand and with a policy that needs losses, the ledger is there to the
end; a live run packs its rows as they are written.
"""

BOUND = 1000  # bytes per update
WORKERS = 4
WARM_UP = 2000  # updates: code, compiler and blocks of metrics are in memory
IMAGE = np.ones(4, np.float32)

_UPDATES = flags.DEFINE_integer(
  'updates', 100_000, 'of the longer run', lower_bound=5
)
_WAYS = flags.DEFINE_list('ways', [], 'to run, all by default')
_ONE = flags.DEFINE_bool('one', False, 'measure here, print JSON (internal)')


def prepare():
  """Checks what was asked for."""
  if _WAYS.value:
    shared_flags.check_names('ways', _WAYS.value, WAYS)


def main(_):
  if _ONE.value:
    print(json.dumps(measured(_WAYS.value[0], _UPDATES.value)))
    return
  where, rows, targets = timing.machine(), [], []
  many = _UPDATES.value
  few = many // 5
  timing.say(f'{few:,} and {many:,} updates\n{"way":10} bytes per update')
  for way in _WAYS.value or WAYS:
    peaks = [in_a_process(way, updates) for updates in (few, many)]
    each = timing.figure([(peaks[1] - peaks[0]) / (many - few)])
    timing.say(f'{way:10} {each.median:.0f}')
    rows.append({'way': way, 'peaks': peaks})
    what = f'{way}: bytes that an update adds to the peak'
    targets.append(timing.Target(what, each, BOUND))
  timing.finish(where, rows, targets)


def in_a_process(way: str, updates: int) -> int:
  """What `measured` says in a fresh process, of two CPU devices."""
  command = [sys.executable, '-m', 'experiments.bench.memory_per_update']
  command += ['--one', f'--ways={way}', f'--updates={updates}']
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'MALLOC_ARENA_MAX': '1',  # one for each thread takes megabytes, or not
  }
  done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=env)
  return json.loads(done.stdout)


def measured(way: str, updates: int) -> int:
  """Bytes at this process's peak above what it holds after a shorter run."""
  WAYS[way](WARM_UP)
  gc.collect()
  with open('/proc/self/clear_refs', 'w', encoding='utf-8') as file:
    file.write('5')  # the peak begins anew
  before = status('VmRSS')
  result = WAYS[way](updates)
  peak = status('VmHWM')
  del result  # it is part of what is counted
  return peak - before


def status(name: str) -> int:
  """A line of this process's status, in bytes."""
  with open('/proc/self/status', encoding='utf-8') as file:
    lines = dict(line.split(':', 1) for line in file)
  return 1024 * int(lines[name].split()[0])


def simulated(updates: int, policy=None, **how):
  """On the simulated cluster."""
  return ga_jax.simulate(
    job(policy), clocks.homogeneous(0), **length(updates), **how
  )


def threads(updates: int):
  """A live run."""
  return ga_jax.run_on_threads(job(), **length(updates))


def replayed(updates: int):
  """A trace out of its file, with a live run's bits."""
  trained = job()
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'trace.npz')
    trace = virtual_cluster.schedule(
      trained.policy, clocks.homogeneous(0), **length(updates)
    )
    trace.save(path)
    del trace
    trace = ga_jax.Trace.load(path)
  return trace, exact.execute(trained, trace)


def by_hand(updates: int) -> ga_jax.Server:
  """A loop of one's own around a server."""
  server = ga_jax.Server(
    np.zeros((), np.float32),
    ga_jax.gap_aware(0.02),
    policies.asynchronous(),
    **length(updates),
  )
  for update in range(updates):
    given = server.ticket(update % WORKERS)
    server.submit(given.ticket, np.ones((), np.float32))
  return server


def job(policy=None) -> ga_jax.Job:
  """One parameter."""
  return ga_jax.Job(
    loss_fn,
    jnp.zeros(()),
    lambda _: IMAGE,
    ga_jax.gap_aware(0.02),
    policy or policies.asynchronous(),
  )


def loss_fn(params, model_state, batch, key):
  """As cheap as can be."""
  del key
  return jnp.mean((batch - params) ** 2), model_state


def length(updates: int) -> dict[str, int]:
  """How long a run is, and of how many workers."""
  return {'num_workers': WORKERS, 'num_batches': updates}


WAYS = {
  'fast': simulated,
  'exact': lambda updates: simulated(updates, executor='exact'),
  'losses': lambda updates: simulated(updates, policies.adasync(WORKERS)),
  'devices': lambda updates: simulated(updates, devices=jax.devices()),
  'threads': threads,
  'replay': replayed,
  'server': by_hand,
}

if __name__ == '__main__':
  launch.launch(main, prepare)
