"""Runs one setting, simulated or on real devices, and sums it up."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import ga_jax
from experiments import (
  accelerators,
  assembly,
  compilation,
  devices,
  environment,
  schedules,
  tasks,
  watch,
)
from experiments import control as control_lib
from experiments import settings as settings_lib
from ga_jax import checkpoint, clocks, kernel
from ga_jax.policies.base import Kind
from ga_jax.programs import base as programs
from ga_jax.rules import layers
from ga_jax.runtimes import checkpoints, fast, job, threads

ROWS, CHECKPOINTS = 'trace.rows', 'checkpoints'
PENALTY_EDGES = np.concatenate([[0.0], 2.0 ** np.arange(11.0)])
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)  # least, quartiles, largest


class Keeping(NamedTuple):
  """What is written down while a run goes on.

  Attributes:
    folder: of the run; '' for nothing.
    every_updates: server updates between two checkpoints.
    every_seconds: seconds between two checkpoints.
    keep: how many checkpoints are kept.
    resume: whether a live run goes on with its record where there is no
      checkpoint.
    about: what the run is made with, kept with every checkpoint (`began.of`);
      None for nothing.
  """

  folder: str = ''
  every_updates: int | None = None
  every_seconds: float | None = None
  keep: int = 3
  resume: bool = False
  about: dict[str, Any] | None = None

  def rows_path(self) -> str | None:
    """The file of the events as they happen."""
    return os.path.join(self.folder, ROWS) if self.folder else None

  def checkpoints(self) -> checkpoints.Checkpoints | None:
    """Where checkpoints go; None where none are wanted."""
    if not (self.every_updates or self.every_seconds):
      return None
    return checkpoints.Checkpoints(
      checkpoint.CheckpointStore(
        os.path.join(self.folder, CHECKPOINTS), keep=self.keep
      ),
      every_updates=self.every_updates,
      every_seconds=self.every_seconds,
      about=self.about,
    )


def computes_with(settings: settings_lib.Settings) -> object:
  """What a run is computed with, for `accelerators.say`."""
  if settings.runtime != 'ray':
    return accelerators.here()
  from experiments import on_ray  # Ray is an extra

  return on_ray.computes_with(settings)


class NothingDoneError(Exception):
  """A run was ended before there was anything to tell of it."""


class Run(NamedTuple):
  """A finished run."""

  summary: dict[str, Any]
  result: ga_jax.Result


def assembled(
  settings: settings_lib.Settings, total: int, per_epoch: int
) -> assembly.Assembled:
  """The parts of a run of `total` batches."""
  schedule = schedules.Schedule(
    kind=settings.schedule,
    warmup=round(settings.warmup_epochs * per_epoch),
    warmup_start=1.0 / settings.workers,
    boundaries=tuple(round(b * per_epoch) for b in settings.boundaries),
    factor=settings.decay_factor,
    total=total if settings.schedule == 'cosine' else 0,
  )
  if not schedule.warmup:  # do not compile anew for another N
    schedule = schedule._replace(warmup_start=1.0)
  method = assembly.assembled(
    settings.parts(),
    dict(settings.parameters),
    settings.workers,
    settings.learning_rate,
    schedule,
    settings.scale_lr,
  )
  return method._replace(hparams=jax.tree.map(np.float32, method.hparams))


def train(
  settings: settings_lib.Settings,
  *,
  observe: Callable[[watch.Progress], None] | None = None,
  evaluate_epochs: bool = True,
  keeping: Keeping | None = None,
  control: control_lib.Control | None = None,
) -> Run:
  """Trains once.

  Args:
    settings: checked settings.
    observe: told after every block of updates and at the end of every epoch.
    evaluate_epochs: whether to evaluate at every epoch, or at the end only.
    keeping: what to write down while it runs.
    control: ends the run in order where it is told to.

  Returns:
    A `Run`; `summary['diverged']` is True where a loss was not finite,
    `summary['stopped']` where it was ended before its end.

  Raises:
    NothingDoneError: it was ended before its first gradient was applied.
  """
  control, keeping = control or control_lib.Control(), keeping or Keeping()
  started, compiled = time.perf_counter(), compilation.so_far()
  the_task = tasks.task_of(settings)
  total = total_batches(settings)
  method = method_of(settings)
  work = arguments(settings, method)
  messages = message_bytes(
    the_task, method, work['params'], work['model_state']
  )
  rates = [None]  # the last one is the run's

  def seen(progress):
    rates.append(progress.batches_per_second)
    if observe:
      observe(progress)

  follow = following(settings, seen, evaluate_epochs, control)
  if settings.runtime == 'threads':
    result, own = _on_threads(settings, work, total, follow, keeping, control)
  elif settings.runtime == 'ray':
    from experiments import on_ray  # Ray is an extra

    result, own = on_ray.run(settings, seen, evaluate_epochs, keeping, control)
  else:
    result, own = _simulated(settings, work, total, messages, follow, keeping)
  if not result.metrics:
    raise NothingDoneError('stopped before the first gradient was applied')
  if settings.runtime != 'simulate':
    own |= {
      'stopped': result.stopped,
      'refused': result.refused,
      'worker_seconds': {
        str(worker): {**one._asdict(), 'utilisation': one.utilisation}
        for worker, one in sorted(result.workers.items())
      },
    }
  summary = {**_summarise(settings, the_task, result, messages), **own}
  wall = time.perf_counter() - started
  rate = rates[-1]
  summary['wall_seconds'] = wall
  summary['compilation'] = compilation.so_far().since(compiled)._asdict()
  summary['updates_per_second'] = (
    rate and rate * summary['updates'] / summary['batches']
  )
  return Run(summary, result)


def following(settings, observe, evaluate_epochs, control) -> watch.Watch:
  """What follows a run while it goes on; see `train` for the arguments."""
  return watch.Watch(
    tasks.task_of(settings),
    tasks.batches_per_epoch(settings),
    batches_per_row(settings),
    total_batches(settings),
    observe,
    evaluate_epochs,
    control,
  )


def _simulated(settings, work, total, messages, follow, keeping):
  """Runs on the virtual clock: the result, and its own part of the summary."""
  clock = clock_of(settings, messages)
  result = ga_jax.simulate(
    **work,
    clock=clock,
    num_workers=settings.workers,
    num_batches=total,
    executor=settings.executor,
    devices=devices.simulators(settings),
    align=batches_per_row(settings),
    observe=follow,
    take_events=follow.take_events,
    checkpoints=keeping.checkpoints(),
  )
  arrivals = result.trace.applied()
  simulated = float(arrivals['time'][-1])
  batches = int(result.metrics['num_batches'].sum())
  return result, {
    'simulated_time': simulated,
    'simulated_speedup': batches * clock.mean / simulated,
    'stopped': batches < total,
  }


def _on_threads(settings, work, total, follow, keeping, control):
  """Runs on this machine's devices: the result, and its own part."""
  run = threads.Threads(
    job.build(**work),
    work['policy'],
    num_workers=settings.workers,
    num_batches=total,
    devices=jax.local_devices()[: settings.devices or None],
    lease_seconds=settings.lease_seconds,
    pipeline_depth=settings.pipeline_depth,
    devices_per_worker=settings.devices_per_worker,
    delay_fn=Slower(settings.straggler),
    trace_path=keeping.rows_path(),
    checkpoints=keeping.checkpoints(),
    recover=keeping.resume,
  )
  control.on_stop(run.stop)
  follow.telemetry = run.telemetry
  return run.run(follow, block=observed_every(settings)), {}


class Slower(NamedTuple):
  """Stragglers: `(worker_id, seconds) -> seconds` to sleep after them."""

  factors: tuple[tuple[int, float], ...]

  def __call__(self, worker: int, seconds: float) -> float:
    return (dict(self.factors).get(worker, 1.0) - 1.0) * seconds


def observed_every(settings: settings_lib.Settings) -> int:
  """Arrivals between two observations of a live run."""
  return fast.block_length(False, batches_per_row(settings))


def batches_per_row(settings: settings_lib.Settings) -> int:
  """Batches between two evaluations."""
  per_epoch = tasks.batches_per_epoch(settings)
  return max(1, round(settings.evaluate_every * per_epoch))


def total_batches(settings: settings_lib.Settings) -> int:
  """The batches of a run."""
  per_epoch = tasks.batches_per_epoch(settings)
  return max(1, round(settings.epochs * per_epoch))


def method_of(settings: settings_lib.Settings) -> assembly.Assembled:
  """The parts of a run."""
  made = assembled(
    settings, total_batches(settings), tasks.batches_per_epoch(settings)
  )
  memory = tasks.task_of(settings).memory
  if memory is None:
    return made
  return assembly.remembering(made, memory(settings), settings.workers)


def arguments(
  settings: settings_lib.Settings, method: assembly.Assembled
) -> dict[str, Any]:
  """What a run computes, as every runtime and `job.build` take it."""
  the_task = tasks.task_of(settings)
  params, model_state = initial(settings)
  try:  # what cannot be saved, before it takes hours
    checkpoint.check_params(params, model_state)
  except (TypeError, ValueError) as error:
    raise settings_lib.SettingError(
      'model', settings.model, str(error)
    ) from error
  return {
    'loss_fn': the_task.loss_fn,
    'params': params,
    'batches': tasks.source_of(settings),
    'rule': method.rule_fn,
    'policy': method.policy,
    'model_state': model_state,
    'stats_momentum': the_task.model.stats_momentum,
    'seed': settings.seed,
    'hparams': method.hparams,
    'program': method.program_fn,
    'layer_metrics': settings.layer_metrics,
  }


class MessageBytes(NamedTuple):
  """Sizes on the wire, in bytes."""

  pull: int  # what a worker is sent
  push: int  # what it submits


def message_bytes(the_task, method, params, model_state) -> MessageBytes:
  """The sizes of a run's messages, model statistics included."""
  program = method.program(the_task.loss_fn)
  statistics = programs.nbytes(model_state)
  return MessageBytes(
    programs.nbytes(params) + statistics,
    program.message_bytes(params) + statistics,
  )


def clock_of(
  settings: settings_lib.Settings, messages: MessageBytes
) -> clocks.Clock:
  """The clock of a run; one batch takes 1 time unit on average."""
  if settings.clock == 'recorded':
    events = ga_jax.Trace.load(settings.clock_times).events
    clock = clocks.recorded(times=clocks.recorded_times(events))
  else:
    clock = clocks.CLOCKS[settings.clock](settings.seed)
  for worker, time_, duration in settings.stalls:
    clock = clocks.with_fault(
      clock, worker_id=worker, time=time_, duration=duration
    )
  for worker, time_ in settings.deaths:
    clock = clocks.with_fault(clock, worker_id=worker, time=time_)
  return clocks.with_communication(
    clock,
    latency=settings.latency,
    bandwidth=settings.bandwidth,
    pull_bytes=messages.pull,
    push_bytes=messages.push,
  )


def initial(settings: settings_lib.Settings):
  """The parameters and model statistics that a run begins with."""
  return tasks.task_of(settings).init(jax.random.key(settings.seed))


def layers_of(settings: settings_lib.Settings) -> tuple[str, ...]:
  """The names of a model's layers, the leaves of its parameters."""
  params, _ = jax.eval_shape(lambda: initial(settings))
  return layers.names(params)


def finite(state) -> bool:
  """Whether every parameter and model statistic is a number."""
  return bool(kernel.finite((state.params, state.model_state)))


def _summarise(settings, the_task, result, messages) -> dict[str, Any]:
  arrivals = result.trace.applied()
  seen = {k: v[np.isfinite(v)] for k, v in result.metrics.items()}
  losses = result.metrics['loss']
  diverged = not (np.isfinite(losses).all() and finite(result.state))
  name = the_task.metric.name
  judged = {f'test_{name}': None, f'validation_{name}': None}
  if not diverged:
    judged = watch.evaluate(the_task, result.state)
    diverged = not np.isfinite(judged[f'test_{name}'])  # a perplexity may be
  batches = int(result.metrics['num_batches'].sum())
  per_epoch = tasks.batches_per_epoch(settings)
  last_epoch = max(1, per_epoch * result.executed // batches)  # in arrivals
  return {
    **judged,
    'train_loss': None if diverged else _mean(seen['loss'][-last_epoch:]),
    'updates': int(result.state.version),
    'batches': batches,
    'epochs': batches / per_epoch,
    'mean_staleness': float(arrivals['staleness'].mean()),
    'max_staleness': int(arrivals['staleness'].max()),
    'mean_gap': _mean(seen['gap']),
    'mean_penalty': _mean(seen['mean_penalty']),
    'max_penalty': float(seen['max_penalty'].max(initial=1.0)),
    'staleness_histogram': np.bincount(arrivals['staleness']).tolist(),
    'gap_histogram': histogram(seen['gap'], decades(seen['gap'])),
    'penalty_histogram': histogram(seen['mean_penalty'], PENALTY_EDGES),
    **_by_layer(layers.names(result.state.params), result.metrics),
    'wasted_work': result.trace.wasted(),
    'messages': result.trace.number_of(Kind.ISSUE)
    + result.trace.number_of(Kind.ARRIVE),
    'bytes_pulled': messages.pull * result.trace.number_of(Kind.ISSUE),
    'bytes_pushed': messages.push * result.trace.number_of(Kind.ARRIVE),
    'diverged': diverged,
    'method': settings.method,
    'workers': settings.workers,
    'learning_rate': settings.learning_rate,
    'seed': settings.seed,
    'device': environment.device_name(),
  }


def decades(values) -> np.ndarray:
  """Edges for numbers in any unit: 0, and the powers of ten that they span."""
  positive = values[values > 0]
  if not len(positive):
    return np.array([0.0])
  low, high = np.floor(np.log10([positive.min(), positive.max()])).astype(int)
  return np.array([0.0, *(float(f'1e{k}') for k in range(low, high + 1))])


def histogram(values, edges: np.ndarray) -> dict[str, list[float]]:
  """Counts from each edge to the next; the last has no upper one."""
  counts, _ = np.histogram(values, [*edges, np.inf])
  return {'edges': edges.tolist(), 'counts': counts.tolist()}


def _by_layer(names: tuple[str, ...], seen) -> dict[str, Any]:
  """Quantiles of gap and penalty by layer, where they were measured."""
  if 'layer_gap' not in seen:
    return {}

  def quantiles(values):
    finite = values[np.isfinite(values)]
    return np.quantile(finite, QUANTILES).tolist() if len(finite) else None

  return {
    'layers': {
      name: {
        'gap_quantiles': quantiles(seen['layer_gap'][:, i]),
        'penalty_quantiles': quantiles(seen['layer_mean_penalty'][:, i]),
      }
      for i, name in enumerate(names)
    }
  }


def _mean(values) -> float | None:
  return float(values.mean()) if len(values) else None
