"""What a method is built of, and which part reads which parameter.

A parameter is named alike on the command line and in the factory that reads it,
so the signatures are the only list. Where a worker program reads a name, it is
the program's (a local momentum, a decay of its own steps), else every other
part's that reads it.
"""

import inspect
from typing import Any, NamedTuple

from experiments.catalogue import methods
from ga_jax import compression, policies, programs, rules

TABLES = {
  'rule': rules.RULES,
  'policy': policies.POLICIES,
  'program': programs.PROGRAMS,
  'compression': compression.COMPRESSIONS,
}


class Parameter(NamedTuple):
  """A parameter that has a flag.

  Attributes:
    kind: float, int, bool or str.
    about: what it is, and its default in the factories that read it.
    usual: whether --help names it; --helpfull names all.
  """

  kind: type
  about: str
  usual: bool = False


# Every parameter that has a flag.
PARAMETERS = {
  'momentum': Parameter(
    float, 'momentum (default 0.9; 0 beside local steps)', usual=True
  ),
  'nesterov': Parameter(bool, 'Nesterov momentum (default no)'),
  'weight_decay': Parameter(
    float, 'L2 coefficient; decoupled with Adam (default 0)', usual=True
  ),
  'dc_lambda': Parameter(
    float, 'λ of dc_asgd (0.04), dc_asgd_a and dana_dc (2)'
  ),
  'dc_decay': Parameter(float, 'm of dc_asgd_a (default 0.95)'),
  'granularity': Parameter(str, 'of ga and dana_ga: parameter|global'),
  'b1': Parameter(float, 'first decay of adam and ga_adam (default 0.9)'),
  'b2': Parameter(float, 'second decay of adam and ga_adam (default 0.999)'),
  'staleness_exponent': Parameter(
    float, 'a of staleness_discounted (default 0.5)'
  ),
  'horizon': Parameter(
    float, 'updates that lwp predicts ahead (default N - 1)'
  ),
  'backups': Parameter(
    int, 'workers that backup_workers does not wait for (1)'
  ),
  'wait_for': Parameter(int, 'K of k_sync and k_async (default N / 2)'),
  'softsync_n': Parameter(
    int, 'n of softsync: rounds hold floor(N / n) (default 1)'
  ),
  'max_staleness': Parameter(int, 's of ssp, the cutoff of gba'),
  'adasync_k0': Parameter(int, 'K_0 of adasync (default 1)'),
  'abs_k0': Parameter(int, 'K_0 of abs (default 1)'),
  'abs_factor': Parameter(
    float, 'f of abs: at most ceil(f N / K) stale (default 2)'
  ),
  'buffer_size': Parameter(int, 'K of fedbuff'),
  'max_delay': Parameter(int, 'R of ringmaster (default N)'),
  'batch_gradients': Parameter(int, 'K of rennala (default N)'),
  'local_steps': Parameter(
    int, 'batches per ticket of local_sgd, easgd, laga (4)'
  ),
  'local_momentum': Parameter(
    float, 'of the steps of local_sgd and easgd (default 0)'
  ),
  'elasticity': Parameter(float, 'α of easgd (default 0.9 / N)'),
  'outer_learning_rate': Parameter(
    float, "the server's, where the program reads --learning_rate (default 1)"
  ),
  'topk_ratio': Parameter(
    float, 'part of the components topk sends (default 0.01)'
  ),
}
# The program comes first: what it reads is not the rule's any more.
_ORDER = ('program', 'policy', 'compression', 'rule')


class ParameterError(ValueError):
  """A parameter that no part reads, or that its part refuses."""

  def __init__(self, name: str, message: str):
    super().__init__(message)
    self.name = name


def reads(part: str, name: str) -> frozenset[str]:
  """Names of the parameters that a factory reads."""
  return frozenset(inspect.signature(TABLES[part][name]).parameters)


def steps_locally(program: str) -> bool:
  """Whether a program takes steps of its own with `learning_rate`."""
  return 'learning_rate' in reads('program', program)


def read_by(method: methods.Method) -> frozenset[str]:
  """Names of the parameters that any part of a method reads."""
  local = steps_locally(method.program)
  return frozenset.union(
    *(reads(part, getattr(method, part)) for part in methods.PARTS),
    {'outer_learning_rate'} if local else set(),
  )


def arguments(
  method: methods.Method, given: dict[str, Any], num_workers: int
) -> dict[str, dict[str, Any]]:
  """The arguments of every part but its learning rate.

  Args:
    method: the parts.
    given: parameters by name, beside those that the method implies.
    num_workers: N, for the parts that read it.

  Returns:
    {part: {name: value}}.

  Raises:
    ParameterError: no part reads a parameter.
  """
  values = {**dict(method.fixed), **given}
  outer_rate = given.get('outer_learning_rate')
  if outer_rate is not None and not 0 < outer_rate < float('inf'):
    raise ParameterError(
      'outer_learning_rate', f'must be positive and finite, got {outer_rate}'
    )
  chosen = {part: reads(part, getattr(method, part)) for part in methods.PARTS}
  known = read_by(method)
  for name in values:
    if name not in known:
      names = ', '.join(sorted(known & set(PARAMETERS))) or 'none'
      raise ParameterError(
        name,
        f'no part of this method reads it (rule {method.rule}, policy '
        f'{method.policy}, program {method.program}, compression '
        f'{method.compression}); they read {names}',
      )
  found, taken = {}, set()
  for part in _ORDER:
    own = {k: v for k, v in values.items() if k in chosen[part] - taken}
    if part == 'program':
      taken |= chosen[part]
    if 'num_workers' in chosen[part]:
      own['num_workers'] = num_workers
    found[part] = own
  local = steps_locally(method.program)
  if 'momentum' in chosen['rule'] and (local or 'momentum' in taken):
    found['rule'].setdefault('momentum', 0.0)  # no momentum on momentum
  return found
