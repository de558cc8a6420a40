"""Runs one setting on the simulated cluster and sums it up."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ga_jax
from experiments import assembly, schedules, task
from experiments import settings as settings_lib
from ga_jax import checkpoint, clocks, metrics
from ga_jax.policies.base import Kind
from ga_jax.programs import base as programs


class Progress(NamedTuple):
  """Where a run stands."""

  epoch: float
  batches: int
  total_batches: int
  batches_per_second: float | None
  row: dict[str, Any] | None  # the metrics of an epoch that just ended


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
  )
  return method._replace(hparams=jax.tree.map(np.float32, method.hparams))


def train(
  settings: settings_lib.Settings,
  *,
  observe: Callable[[Progress], None] | None = None,
  evaluate_epochs: bool = True,
) -> Run:
  """Trains once.

  Args:
    settings: checked settings.
    observe: told after every block of updates and at the end of every epoch.
    evaluate_epochs: whether to evaluate at every epoch, or at the end only.

  Returns:
    A `Run`; `summary['diverged']` is True where a loss was not finite.
  """
  started = time.perf_counter()
  the_task, source = task.task_of(settings), task.source_of(settings)
  per_epoch = task.batches_per_epoch(settings)
  total = max(1, round(settings.epochs * per_epoch))
  params, model_state = _initial(settings)
  method = assembled(settings, total, per_epoch)
  messages = message_bytes(the_task, method, params, model_state)
  clock = clock_of(settings, messages)
  watch = _Watch(the_task, per_epoch, total, observe, evaluate_epochs)
  result = ga_jax.simulate(
    the_task.loss_fn,
    params,
    source,
    method.rule_fn,
    hparams=method.hparams,
    policy=method.policy,
    clock=clock,
    num_workers=settings.workers,
    num_batches=total,
    model_state=model_state,
    stats_momentum=the_task.model.stats_momentum,
    seed=settings.seed,
    program=method.program_fn,
    executor=settings.executor,
    align=per_epoch,
    observe=watch,
  )
  summary = _summarise(settings, the_task, result, clock, messages)
  wall = time.perf_counter() - started
  rate = watch.rate()
  summary['wall_seconds'] = wall
  summary['updates_per_second'] = (
    rate and rate * summary['updates'] / summary['batches']
  )
  return Run(summary, result)


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


def _initial(settings: settings_lib.Settings):
  the_task = task.task_of(settings)
  inputs = jnp.zeros((1, *the_task.dataset.train.inputs.shape[1:]))
  return _compiled_init(the_task.model)(jax.random.key(settings.seed), inputs)


@functools.lru_cache(maxsize=8)
def _compiled_init(model):
  return jax.jit(model.init)


class _Watch:
  """Follows a run: epochs, speed, losses that are not finite."""

  def __init__(self, the_task, per_epoch, total, observe, evaluate_epochs):
    self._task = the_task
    self._per_epoch = per_epoch
    self._total = total
    self._observe = observe
    self._evaluate_epochs = evaluate_epochs
    self._epochs_done = 0
    self._blocks = []  # metrics of this epoch's blocks, device arrays
    self._unread = None  # the last block's losses: read one block later
    self._timed = 0  # batches of which the time was taken
    self._spent = 0.0  # seconds for them, evaluations left out
    self._began = None  # (batches, seconds) where the timer last started

  def __call__(self, batches, state, block) -> bool:
    bad = self._unread is not None and not np.isfinite(self._unread).all()
    self._unread = block['loss']
    self._blocks.append(block)
    next_epoch = (self._epochs_done + 1) * self._per_epoch
    ends = batches >= min(next_epoch, self._total)
    if ends:
      jax.block_until_ready(state.params)
    now = time.perf_counter()
    if self._began:  # from the second block on: the first one compiles
      self._timed += batches - self._began[0]
      self._spent += now - self._began[1]
    if bad:
      return True
    row = None
    if ends:
      self._epochs_done = batches // self._per_epoch
      row = self._epoch_row(batches, state)
    if self._observe:
      epoch = batches / self._per_epoch
      self._observe(Progress(epoch, batches, self._total, self.rate(), row))
    self._began = (batches, time.perf_counter())
    return False

  def rate(self) -> float | None:
    """Applied batches per second; None before the second block."""
    return self._timed / self._spent if self._timed else None

  def _epoch_row(self, batches, state):
    seen = {
      name: np.concatenate([np.asarray(block[name]) for block in self._blocks])
      for name in self._blocks[0]
    }
    self._blocks = []
    row = {
      'epoch': batches / self._per_epoch,
      'batches': batches,
      'updates': int(state.version),
      'train_loss': float(seen['loss'].mean()),
      'mean_staleness': float(seen['staleness'].mean()),
      'max_staleness': int(seen['staleness'].max()),
      'mean_gap': float(seen['gap'].mean()),
      'mean_penalty': float(seen['mean_penalty'].mean()),
      'max_penalty': float(seen['max_penalty'].max()),
    }
    if self._evaluate_epochs:
      row |= evaluate(self._task, state)
    row['batches_per_second'] = self.rate()
    return row


def evaluate(the_task: task.Task, state) -> dict[str, float | None]:
  """Test and validation error (fractions) of the server's parameters."""
  test, _ = the_task.evaluate(
    state.params, state.model_state, the_task.dataset.test
  )
  validation = None
  if len(the_task.dataset.validation.labels):
    validation, _ = the_task.evaluate(
      state.params, state.model_state, the_task.dataset.validation
    )
  return {'test_error': test, 'validation_error': validation}


def _summarise(settings, the_task, result, clock, messages) -> dict[str, Any]:
  arrivals = result.trace.applied()[: result.executed]
  seen = {k: v[np.isfinite(v)] for k, v in result.metrics.items()}
  finite = np.isfinite(result.metrics['loss']).all() and all(
    bool(jnp.isfinite(leaf).all())
    for leaf in jax.tree.leaves((result.state.params, result.state.model_state))
  )
  errors = {'test_error': None, 'validation_error': None}
  if finite:
    errors = evaluate(the_task, result.state)
  simulated = float(arrivals['time'][-1])
  batches = int(result.metrics['num_batches'].sum())
  per_epoch = task.batches_per_epoch(settings)
  last_epoch = max(1, per_epoch * result.executed // batches)  # in arrivals
  return {
    **errors,
    'train_loss': _mean(seen['loss'][-last_epoch:]) if finite else None,
    'updates': int(result.state.version),
    'batches': batches,
    'epochs': batches / per_epoch,
    'mean_staleness': float(arrivals['staleness'].mean()),
    'max_staleness': int(arrivals['staleness'].max()),
    'mean_gap': _mean(seen['gap']),
    'mean_penalty': _mean(seen['mean_penalty']),
    'max_penalty': float(seen['max_penalty'].max(initial=1.0)),
    'simulated_time': simulated,
    'simulated_speedup': batches * clock.mean / simulated,
    'wasted_work': result.trace.wasted(),
    'bytes_pulled': messages.pull * result.trace.number_of(Kind.ISSUE),
    'bytes_pushed': messages.push * result.trace.number_of(Kind.ARRIVE),
    'diverged': not finite,
    'method': settings.method,
    'workers': settings.workers,
    'learning_rate': settings.learning_rate,
    'seed': settings.seed,
    'device': device_name(),
  }


def _mean(values) -> float | None:
  return float(values.mean()) if len(values) else None


def device_name() -> str:
  """What computes: the accelerator's kind, or the CPU's model and cores."""
  kind = jax.devices()[0].device_kind
  if jax.default_backend() != 'cpu':
    return kind
  with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
    for line in file:
      if line.startswith('model name'):
        kind = line.split(':', 1)[1].strip()
        break
  return f'{kind} ({os.cpu_count()} cores)'


@functools.cache
def versions() -> dict[str, str]:
  """Versions of everything the numbers depend on."""
  names = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'orbax-checkpoint')
  found = {name: importlib.metadata.version(name) for name in names}
  return {
    'ga_jax': ga_jax.__version__,
    'python': platform.python_version(),
    **found,
    'device': device_name(),
    'cpu_count': str(os.cpu_count()),
  }


def save(workdir: str, run: Run):
  """Writes a run's record; summary.json comes last and says it is whole."""
  result = run.result
  result.trace.save(os.path.join(workdir, 'trace.npz'))
  checkpoint.save_params(
    os.path.join(workdir, 'params'),
    result.state.params,
    result.state.model_state,
  )
  metrics.write_json(os.path.join(workdir, 'summary.json'), run.summary)


def save_config(workdir: str, settings: settings_lib.Settings):
  """Writes config.json and versions.json."""
  config = dataclasses.asdict(settings)
  if math.isinf(config['bandwidth']):
    del config['bandwidth']  # JSON knows no infinity; it is the default
  metrics.write_json(os.path.join(workdir, 'config.json'), config)
  metrics.write_json(os.path.join(workdir, 'versions.json'), versions())


def load_settings(workdir: str) -> settings_lib.Settings:
  """The settings that `save_config` wrote."""
  with open(os.path.join(workdir, 'config.json')) as file:
    config = json.load(file)
  config['boundaries'] = tuple(config['boundaries'])
  for name in ('parameters', 'stalls', 'deaths'):
    config[name] = tuple(tuple(item) for item in config[name])
  return settings_lib.Settings(**config)


def load(workdir: str) -> Callable[[Any], np.ndarray]:
  """Loads a trained model for inference.

  Args:
    workdir: of a finished run.

  Returns:
    `predict(inputs) -> classes [n]`, for inputs as the data set stores them.
  """
  settings = load_settings(workdir)
  the_task = task.task_of(settings)
  like = jax.eval_shape(lambda: _initial(settings))
  params, model_state = checkpoint.load_params(
    os.path.join(workdir, 'params'), like
  )

  def predict(inputs):
    return np.asarray(the_task.predict(params, model_state, inputs).argmax(-1))

  return predict
