"""What a run is made of, whoever computes it."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np

import ga_jax
from experiments import tasks
from experiments.catalogue import assembly, schedules
from experiments.running import watch
from experiments.settings import table as settings_lib
from ga_jax import clocks
from ga_jax.executors import lengths, saving
from ga_jax.programs import base as programs
from ga_jax.record import checkpoints as checkpoints_lib
from ga_jax.record import params as params_lib
from ga_jax.rules.parts import layer_penalties

# Of a run that goes on, in its folder.
ROWS, CHECKPOINTS, EVENTS = 'trace.rows', 'checkpoints', 'tensorboard'


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

  def checkpoints(self) -> saving.Checkpoints | None:
    """Where checkpoints go; None where none are wanted."""
    if not (self.every_updates or self.every_seconds):
      return None
    return saving.Checkpoints(
      checkpoints_lib.CheckpointStore(
        os.path.join(self.folder, CHECKPOINTS), keep=self.keep
      ),
      every_updates=self.every_updates,
      every_seconds=self.every_seconds,
      about=self.about,
    )


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


def observed_every(settings: settings_lib.Settings) -> int:
  """Arrivals between two observations of a live run."""
  return lengths.block_length(False, batches_per_row(settings))


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


def job_of(
  settings: settings_lib.Settings, method: assembly.Assembled
) -> ga_jax.Job:
  """What a run trains.

  Raises:
    SettingError: its parameters cannot be saved.
  """
  the_task = tasks.task_of(settings)
  params, model_state = initial(settings)
  try:  # what cannot be saved, before it takes hours
    params_lib.check_params(params, model_state)
  except (TypeError, ValueError) as error:
    raise settings_lib.SettingError(
      'model', settings.model, str(error)
    ) from error
  return ga_jax.Job(
    the_task.loss_fn,
    params,
    tasks.source_of(settings),
    method.rule_fn,
    method.policy,
    model_state=model_state,
    stats_momentum=the_task.model.stats_momentum,
    program=method.program_fn,
    hparams=method.hparams,
    seed=settings.seed,
    layer_metrics=settings.layer_metrics,
  )


def live_of(settings: settings_lib.Settings, keeping: Keeping) -> ga_jax.Live:
  """How a live run is made."""
  return ga_jax.Live(
    lease_seconds=settings.lease_seconds,
    pipeline_depth=settings.pipeline_depth,
    trace_path=keeping.rows_path(),
    checkpoints=keeping.checkpoints(),
    recover=keeping.resume,
  )


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
  return layer_penalties.names(params)


def following(settings, observe, evaluate_epochs, control) -> watch.Watch:
  """What follows a run while it goes on; arguments as of `train.train`."""
  return watch.Watch(
    tasks.task_of(settings),
    tasks.batches_per_epoch(settings),
    batches_per_row(settings),
    total_batches(settings),
    observe,
    evaluate_epochs,
    control,
  )
