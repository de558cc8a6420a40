"""How many arrivals per second clock and policy schedule, nothing computed.

  python -m experiments.bench.scheduling --json=results/bench/scheduling.json

What the simulator does on the host for every gradient: the clock's draw, the
heap of the virtual cluster, the policy's decision, the ledger's record, and the
trace made of it at the end. Policies that decide by losses are told a scripted
one, which falls so far that they go from rounds of one gradient to rounds of
many. Every policy has its turn in every round.
"""

import collections

from absl import flags

from experiments.bench import timing
from experiments.script import launch, name_flags, shared_flags
from ga_jax import clocks, policies
from ga_jax.simulation import virtual_cluster

AIM = 100_000  # arrivals per second
AIMED = ('asynchronous', 'softsync', 'ssp', 'abs')

LIMITS = """
The engine is Python on one core: per arrival one heap operation, a ticket, an
event, a decision and two rows of the record. No policy's state is changed in
place, so what it copies per decision counts. SSP copied the steps of all
workers and now copies those of 32. ABS and Ringmaster with stops kept, and
copied for every ticket and every answer, who computes at which version; the
ledger knows that, so they now answer with a bound on the staleness and the
ledger finds who is beyond it. ABS is at its slowest where a round holds one
gradient, since every arrival then evaluates K and the bound. K-sync is slower
than the others by its nature: each round revokes half of the tickets, and their
batches are issued, and scheduled, again; arrivals that are revoked are not
counted. Building the trace's columns with `numpy.fromiter` was tried and gained
about a fifth of a step that is itself under a tenth of the whole.
"""

_ARRIVALS = flags.DEFINE_integer('arrivals', 60_000, 'per run', lower_bound=1)
_WORKERS = flags.DEFINE_integer('workers', 1024, 'simulated', lower_bound=1)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'runs of each', lower_bound=1)
_POLICIES = name_flags.several('policies', [], 'to schedule, all by default')


def prepare():
  """Checks which policies were asked for."""
  if _POLICIES.value:
    shared_flags.check_names('policies', _POLICIES.value, policies.POLICIES)


def main(_):
  where = timing.machine()
  chosen = _POLICIES.value or list(policies.POLICIES)
  measured = timing.alternate(
    {name: (lambda name=name: rate(name)) for name in chosen}, _ROUNDS.value
  )
  timing.say(f'{_ARRIVALS.value:,} arrivals of {_WORKERS.value:,} workers')
  timing.say(f'{"policy":18} thousand arrivals/s')
  rows, targets = [], []
  for name, rates in measured.items():
    timing.say(f'{name:18} {timing.figure([r / 1e3 for r in rates])}')
    rows.append({'policy': name, 'arrivals_per_second': rates})
    if name in AIMED:
      what = f'{name}: arrivals per second of {_WORKERS.value:,} workers'
      targets.append(timing.Target(what, timing.figure(rates), AIM, True))
  timing.finish(where, rows, targets)


def rate(policy: str) -> float:
  """Arrivals per second of one run, its trace included."""

  def run():
    played = virtual_cluster.play(
      policies.make(policy, _WORKERS.value),
      clocks.homogeneous(0),
      num_workers=_WORKERS.value,
      num_batches=_ARRIVALS.value,
      loss_fn=falling,
    )
    collections.deque(played, maxlen=1).pop().trace(_WORKERS.value)

  return _ARRIVALS.value / timing.seconds(run)


def falling(ticket) -> float:
  """A loss for the policies that decide by it, of 1 at first."""
  return (1 + ticket.first_batch / 30) ** -2


if __name__ == '__main__':
  launch.launch(main, prepare)
