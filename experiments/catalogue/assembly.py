"""From a named method to what `ga_jax.Job` takes.

Parts become functions of numbers, so that runs which differ in a learning rate
or a momentum alone share their compiled code.
"""

from typing import Any, NamedTuple

from experiments.catalogue import methods, parts, schedules
from ga_jax import compression, policies, programs, rules
from ga_jax.compression import base as compression_base
from ga_jax.server import update

# Numbers that are given to the compiled code as arguments, so that another
# learning rate or momentum compiles nothing again.
TRACED = ('momentum', 'weight_decay', 'dc_lambda', 'local_momentum')


class ProgramSpec(NamedTuple):
  """A worker program behind a compression, as a function of numbers.

  Equal specs share their compiled code.
  """

  program: str
  schedule: Any  # of the learning rate, where the program takes steps
  static: tuple[tuple[str, object], ...]
  compression: str
  stage: tuple[tuple[str, object], ...]

  def __call__(self, hparams):
    numbers = dict(hparams['program'])
    if self.schedule is not None:
      peak = numbers['learning_rate']
      numbers['learning_rate'] = self.schedule.at(peak)
    stage = compression.COMPRESSIONS[self.compression](**dict(self.stage))

    def program(loss_fn):
      known = {**programs.PROGRAMS, 'recurrent': programs.recurrent}
      made = known[self.program](loss_fn, **dict(self.static), **numbers)
      if self.compression == 'none':
        return made
      return compression_base.compressed(made, stage)

    return program


class RuleSpec(NamedTuple):
  """A rule as a function of numbers; equal specs share their compiled code."""

  rule: str
  schedule: Any
  static: tuple[tuple[str, object], ...]

  def __call__(self, hparams) -> rules.AsyncOptimizer:
    numbers = dict(hparams['rule'])
    rate = self.schedule.at(numbers.pop('learning_rate'))
    return rules.RULES[self.rule](rate, **dict(self.static), **numbers)


class Assembled(NamedTuple):
  """A method ready for a `ga_jax.Job`.

  Attributes:
    rule_fn: `rule_fn(hparams) -> rule`.
    program_fn: `program_fn(hparams)(loss_fn) -> Program`.
    hparams: {'rule': {name: number}, 'program': {name: number}}.
    policy: the policy.
  """

  rule_fn: RuleSpec
  program_fn: ProgramSpec
  hparams: dict[str, dict[str, float]]
  policy: policies.Policy

  def rule(self) -> rules.AsyncOptimizer:
    """The rule at its own numbers."""
    return self.rule_fn(self.hparams)

  def program(self, loss_fn) -> programs.Program:
    """The program at its own numbers."""
    return self.program_fn(self.hparams)(loss_fn)


def assembled(
  method: methods.Method,
  given: dict[str, Any],
  num_workers: int,
  learning_rate: float = 0.1,
  schedule: schedules.Schedule = schedules.CONSTANT,
  scale_lr: bool = False,
) -> Assembled:
  """Builds every part, and checks that they fit.

  Args:
    method: the parts.
    given: parameters by name, beside those that the method implies.
    num_workers: N.
    learning_rate: the peak rate of the gradients.
    schedule: its course.
    scale_lr: whether the rate is multiplied by the gradients of a round.

  Returns:
    The method.

  Raises:
    parts.ParameterError: naming the parameter, or the part that does not fit.
  """
  found = parts.arguments(method, given, num_workers)
  local = parts.steps_locally(method.program)
  hparams = {part: _numbers(found[part], True) for part in ('rule', 'program')}
  hparams['rule']['learning_rate'] = learning_rate
  if local:
    hparams['program']['learning_rate'] = learning_rate
    hparams['rule']['learning_rate'] = given.get('outer_learning_rate', 1.0)
  made = Assembled(
    RuleSpec(
      method.rule,
      schedules.CONSTANT if local else schedule,
      _numbers(found['rule'], False),
    ),
    ProgramSpec(
      method.program,
      schedule if local else None,
      _numbers(found['program'], False),
      method.compression,
      tuple(sorted(found['compression'].items())),
    ),
    hparams,
    _checked(policies.POLICIES[method.policy], **found['policy']),
  )
  if scale_lr:
    hparams['rule']['learning_rate'] *= _round_size(made, num_workers, local)
  rule = _checked(made.rule)
  try:
    update.check_rule(rule, made.policy.accumulates, num_workers)
  except ValueError as error:
    raise parts.ParameterError('policy', str(error)) from error
  _checked(made.program, no_loss)
  return made


def remembering(made: Assembled, memory, streams: int) -> Assembled:
  """A method for a model with a memory.

  Args:
    made: whose worker program is `gradient`.
    memory: see `programs.recurrent`.
    streams: likewise.

  Returns:
    The method with `recurrent` in the place of `gradient`.
  """
  spec = made.program_fn._replace(
    program='recurrent', static=(('memory', memory), ('streams', streams))
  )
  return made._replace(program_fn=spec)


def _round_size(made: Assembled, num_workers: int, local: bool) -> int:
  """What linear scaling multiplies by: the gradients of a round."""
  size = made.policy.round_size
  if local:
    raise parts.ParameterError(
      'scale_lr', 'the worker program takes steps of its own: must be off'
    )
  if size is None:
    raise parts.ParameterError(
      'scale_lr', "this policy's rounds change in size: must be off"
    )
  return size or num_workers


def no_loss(params, model_state, batch, key):
  """The loss of a program that is looked at and never run."""
  raise NotImplementedError('built to be looked at, never run')


def _numbers(arguments, traced: bool):
  """The arguments that are traced as a dict, or the others as pairs."""
  some = {k: v for k, v in arguments.items() if (k in TRACED) == traced}
  return some if traced else tuple(sorted(some.items()))


def _checked(make, *args, **kwargs):
  try:
    return make(*args, **kwargs)
  except ValueError as error:  # begins with the parameter's name
    raise parts.ParameterError(
      str(error).split(' ', 1)[0], str(error)
    ) from error
