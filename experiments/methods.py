"""Named methods: which rule, policy, worker program and compression."""

import inspect
from typing import NamedTuple

from ga_jax import policies, programs, rules


class Method(NamedTuple):
  """A named composition of parts.

  Attributes:
    rule: a name in `rules.RULES`.
    policy: a name in `policies.POLICIES`.
    program: a name in `programs.PROGRAMS`.
    compression: 'none'; no other stage exists yet.
    fixed: parameters of the rule that the name implies.
  """

  rule: str
  policy: str = 'asynchronous'
  program: str = 'gradient'
  compression: str = 'none'
  fixed: tuple[tuple[str, object], ...] = ()


METHODS = {
  'asgd': Method('asgd'),
  'nag_asgd': Method('asgd', fixed=(('nesterov', True),)),
  'sa': Method('sa'),
  'ga': Method('ga'),
  'ga_global': Method('ga', fixed=(('granularity', 'global'),)),
  'ga_adam': Method('ga_adam'),
  'multi_asgd': Method('multi_asgd'),
  'dana_zero': Method('dana_zero'),
  'dana_ga': Method('dana_ga'),
  'dc_asgd': Method('dc_asgd'),
  'ssgd': Method('asgd', 'synchronous'),
}

COMPRESSIONS = ('none',)


def rule_parameters(rule: str) -> frozenset[str]:
  """Names of the parameters that a rule reads."""
  return frozenset(inspect.signature(rules.RULES[rule]).parameters)


def check(method: Method):
  """Raises a ValueError where the parts do not go together."""
  per_worker = 'num_workers' in rule_parameters(method.rule)
  if per_worker and policies.POLICIES[method.policy]().accumulates:
    raise ValueError(
      f'rule {method.rule} keeps a momentum buffer per worker and cannot '
      f'average the rounds of policy {method.policy}'
    )
  if method.program not in programs.PROGRAMS:
    raise ValueError(f'program {method.program} is unknown')
