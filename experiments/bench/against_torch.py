"""Gap-Aware with N simulated workers, beside a plain PyTorch simulation.

  pip install ga_jax[torch]
  python -m experiments.bench.against_torch

Ours is `ga_jax.simulate` as it comes; PyTorch's is what a user would write
instead (`torch_simulation`): a heap of events, a clone of the parameters per
worker, the penalty in torch operations, torch.optim.SGD. Same model, data,
batch, workers, threads, device and gradients; the twins are compared in
`tests/against_torch_test.py`. PyTorch's update is written with a loop over the
parameters and with torch._foreach_*; the faster one of a model is the
yardstick. With --torch_compile a third takes turns whose loss is compiled.

Both count updates per second without compilation and set-up, but with the
events. Ours also measures gap and penalties. They take turns in one process:
each waits for its results, and then its threads sleep.
"""

import functools
import importlib.util
import time
from typing import Any

import jax
from absl import flags

import ga_jax
from experiments.bench import timing, twin_problems
from experiments.running import environment
from experiments.script import launch, shared_flags
from experiments.settings import table as settings_lib
from experiments.tasks import classification
from ga_jax import clocks, data, policies, rules
from ga_jax.simulation import virtual_cluster

LIMITS = """
Where a gradient is short, PyTorch pays for dispatching each small operation,
eleven of them per parameter (or as many `_foreach` calls) for the penalty, ours
for one program per block. `transformer_1024` (1,024 tokens a gradient) is bound
by matrix products that both have to compute: there is no target for it, and it
is printed beside `transformer` (128 tokens) so that nobody takes the one for
the other.

Convolutions: XLA's were compared with four other forms, forward and both
gradients, on one thread, for each shape in `cnn_bn` (batch 64) and `resnet20`
(batch 32): `conv_general_dilated_patches` and a product (1.2 to 180 times
slower), nine shifted slices joined and one product, nine products added up,
and three products of three columns. XLA's own form was the fastest or within
20 % of it but for three cases: forward with one input channel (a sum of nine
products), and the gradient with respect to the input of ResNet's strided 3x3
(nine slices joined) and of its first layer, which is never computed. No switch
was built for them.
"""
RATE, BOUND = 0.01, 2.0

_MODELS = flags.DEFINE_list(
  'models', list(twin_problems.PROBLEMS), 'to measure'
)
_WORKERS = flags.DEFINE_integer('workers', 8, 'simulated', lower_bound=1)
_SCALE = flags.DEFINE_float('scale', 1.0, 'times the updates of every turn')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'turns of each', lower_bound=1)
_COMPILE = flags.DEFINE_bool('torch_compile', False, 'also torch.compile')


def prepare():
  """Checks the flags, and that PyTorch is there."""
  shared_flags.check_names('models', _MODELS.value, twin_problems.PROBLEMS)
  shared_flags.check_positive(_SCALE)
  if importlib.util.find_spec('torch') is None:
    raise settings_lib.SettingError(
      'models', ','.join(_MODELS.value), NEEDS_TORCH
    )


NEEDS_TORCH = 'needs PyTorch: pip install torch==2.13.0'


def main(_):
  where = timing.machine()
  threads = environment.thread_pool()
  torch, device = started(threads)
  where |= {'torch': torch.__version__, 'threads': threads, 'on': str(device)}
  rows, targets = [], []
  for name in _MODELS.value:
    rows.append(compared(name, device))
    accelerated = device.type != 'cpu'
    if twin_problems.PROBLEMS[name].on_cpu or accelerated:
      ratio = timing.Figure(**rows[-1]['ratio'])
      what = f'{name}: updates/s over those of PyTorch'
      targets.append(timing.Target(what, ratio, BOUND, at_least=True))
  timing.say(f'{"":12} parameters   ours/s   torch/s   ours over torch')
  for row in rows:
    ours, theirs = (row['rates'][k] for k in ('ga_jax', row['yardstick']))
    timing.say(
      f'{row["model"]:12} {row["parameters"]:10,} '
      f'{timing.figure(ours).median:8.4g}  {timing.figure(theirs).median:8.4g}'
      f'   {timing.Figure(**row["ratio"])}  ({row["yardstick"]})'
    )
  timing.finish(where, rows, targets)


def started(threads: int):
  """(torch, device): as many threads as XLA, and the device that JAX uses."""
  import torch  # takes seconds, and is not always there

  torch.set_num_threads(threads)
  if jax.default_backend() != 'gpu':
    return torch, torch.device('cpu')
  torch.set_float32_matmul_precision('high')  # TF32, as XLA does
  return torch, torch.device('cuda')


def compared(name: str, device) -> dict[str, Any]:
  """One model, all candidates in turns."""
  problem, count = twin_problems.PROBLEMS[name], _WORKERS.value
  updates = max(1, round(problem.updates * _SCALE.value))
  sides = {'ga_jax': Ours(problem, count).rate}
  size = None
  for kind in ('loop', 'foreach', 'compiled')[: 3 if _COMPILE.value else 2]:
    simulation = theirs(problem, count, kind, device)
    size = sum(p.numel() for p in simulation.model.parameters())
    sides[f'torch {kind}'] = functools.partial(timed, simulation)
  for rate in sides.values():
    rate(updates)  # compiles, and warms up
  turns = {
    side: functools.partial(rate, updates) for side, rate in sides.items()
  }
  rates = timing.alternate(turns, _ROUNDS.value)
  medians = {side: timing.figure(rate).median for side, rate in rates.items()}
  for side, rate in rates.items():
    print(f'{name:12} {side:16} updates/s {timing.figure(rate)}', flush=True)
  yardstick = max(('torch loop', 'torch foreach'), key=medians.get)
  return {
    'model': name, 'parameters': size, 'batch_size': problem.batch_size,
    'workers': count, 'updates': updates, 'rates': rates,
    'yardstick': yardstick,
    'ratio': timing.ratios(rates['ga_jax'], rates[yardstick])._asdict(),
  }  # fmt: skip


class Ours:
  """`ga_jax.simulate`; compiled once, so that turns only compute."""

  def __init__(self, problem: twin_problems.TwinProblem, num_workers: int):
    params, state = twin_problems.initial(problem)
    self.source = twin_problems.source(problem)
    self.loss_fn = classification.cross_entropy(problem.make())
    self._job = ga_jax.Job(
      self.loss_fn,
      params,
      self.source,
      rules.gap_aware(RATE, momentum=0.9),
      policies.asynchronous(),
      model_state=state,
      stats_momentum=0.9,
    )
    self._clock = clocks.homogeneous(twin_problems.SEED)
    self._num_workers = num_workers

  def run(self, num_updates: int, observe=None) -> ga_jax.Result:
    """The whole simulation."""
    return ga_jax.simulate(
      self._job,
      self._clock,
      num_workers=self._num_workers,
      num_batches=num_updates,
      observe=observe,
    )

  def rate(self, num_updates: int) -> float:
    """Updates per second."""
    ends = []

    def observe(done, state, metrics):
      del metrics
      if not ends or done >= num_updates:
        jax.block_until_ready(state.params)
        ends.append((done, time.perf_counter()))
      return False

    # The events are played before anything is computed: a share is added.
    start = time.perf_counter()
    virtual_cluster.schedule(
      self._job.policy,
      self._clock,
      num_workers=self._num_workers,
      num_batches=num_updates,
    )
    events = (time.perf_counter() - start) / num_updates
    self.run(num_updates, observe)
    (n0, t0), (n1, t1) = ends[0], ends[-1]
    if n0 == n1:
      raise settings_lib.SettingError(
        'scale', _SCALE.value, f'{n0} updates are one block: take more'
      )
    return 1 / ((t1 - t0) / (n1 - n0) + events)


def theirs(
  problem: twin_problems.TwinProblem,
  num_workers: int,
  kind: str,
  device,
  trace=None,
):
  """The simulation in PyTorch.

  Args:
    problem: what is computed.
    num_workers: simulated.
    kind: 'loop', 'foreach' or 'compiled', of the update or the whole loss.
    device: to compute on.
    trace: iterator of `torch_simulation.Arrival`s; a heap of events by default.

  Returns:
    A `torch_simulation.Simulation`.
  """
  import torch

  from experiments.bench import torch_simulation, torch_twins

  twin, *arguments = problem.twin
  model = getattr(torch_twins, twin)(*arguments)
  torch_twins.load(model, twin_problems.initial(problem)[0])
  model.to(device)
  rule = {
    'loop': torch_simulation.GapAware,
    'foreach': torch_simulation.ForeachGapAware,
    'compiled': torch_simulation.ForeachGapAware,
  }[kind](model.parameters(), RATE)
  inputs, labels = twin_problems.examples(problem)
  inputs = torch.tensor(torch_twins.images_of(model, inputs), device=device)
  labels = torch.tensor(labels, device=device, dtype=torch.int64)
  rows = data.base.shuffled(
    twin_problems.EXAMPLES, problem.batch_size, twin_problems.SEED
  )

  def batch_fn(batch_id):
    indices = torch.from_numpy(rows(batch_id)).to(device)
    return inputs[indices], labels[indices]

  loss_fn = torch_simulation.loss_of
  return torch_simulation.Simulation(
    model,
    rule,
    batch_fn,
    trace or torch_simulation.event_heap(num_workers, twin_problems.SEED),
    num_workers,
    loss_fn=torch.compile(loss_fn) if kind == 'compiled' else loss_fn,
  )


def timed(simulation, num_updates: int) -> float:
  """Updates per second."""
  return num_updates / timing.seconds(lambda: simulation.run(num_updates))


if __name__ == '__main__':
  launch.launch(main, prepare)
