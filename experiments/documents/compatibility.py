"""Tries every rule with every policy, worker program and compression.

Question: what goes with what?

  python -m experiments.documents.compatibility > docs/compatibility.md

Each pair trains a quadratic with 4 workers on the homogeneous clock (about two
minutes on 2 CPU cores) and either converges, or is refused with a reason.
"""

import numpy as np

import ga_jax
from experiments.catalogue import assembly, methods, parts
from experiments.reporting import tables
from experiments.script import launch
from ga_jax import clocks

WORKERS = 4
BATCHES = 800
RATES = (0.02, 0.1, 0.005, 0.3)  # tried in turn
OUTER_RATES = (1.0, 1.0, 0.1, 0.02)  # beside a program with steps of its own
CLOSE = 0.02  # of the way that is left, where a pair counts as converged
SCALES = np.linspace(0.5, 1.0, 6)
TARGET = np.array([1.0, -2.0, 0.5, 3.0, -0.3, 1.5])
# A top-k of the default 1 % would send one of six components.
PARAMETERS = {'topk': {'topk_ratio': 0.5}}

TEXT = """# What goes with what

Every rule was tried with every policy, worker program and compression: {n}
pairs, each on a quadratic with {workers} workers (homogeneous clock, {batches}
batches, everything else at its default), at the learning rates {rates} in turn
until one converged. Programs with steps of their own run them at these rates
and the rule at {outer}.

*yes*: what is left of the way to the optimum is below {close:.0%}. A number is
the least that was left where that is more; *diverges*: at all of these rates. A
letter says why a pair is refused, with the message that the program prints.

This page is what `python -m experiments.documents.compatibility` prints; a
test makes it again and compares.
"""


def loss_fn(params, model_state, batch, key):
  """A quadratic whose gradient is noiseless."""
  del batch, key
  return 0.5 * (
    SCALES.astype('f') * (params - TARGET.astype('f')) ** 2
  ).sum(), (model_state)


def try_pair(**pair) -> float | str:
  """Trains a pair.

  Args:
    **pair: parts that are not the default ones.

  Returns:
    The part of the way to the optimum that is left, or why it is refused.
  """
  method, left = methods.Method('', **pair), None
  for rate, outer in zip(RATES, OUTER_RATES, strict=True):
    given = dict(PARAMETERS.get(method.compression, {}))
    if parts.steps_locally(method.program):
      given['outer_learning_rate'] = outer
    try:
      made = assembly.assembled(method, given, WORKERS, rate)
    except parts.ParameterError as error:
      return str(error)
    left = min(train(made), np.inf if left is None else left)
    if left < CLOSE:
      break
  return left


def train(made: assembly.Assembled) -> float:
  """The part of the way to the optimum that is left; infinite for NaN."""
  job = ga_jax.Job(
    loss_fn,
    np.zeros(6, np.float32),
    lambda batch_id: np.zeros(1, np.float32),
    made.rule_fn,
    made.policy,
    program=made.program_fn,
    hparams=made.hparams,
  )
  result = ga_jax.simulate(
    job,
    clocks.homogeneous(0),
    num_workers=WORKERS,
    num_batches=BATCHES,
    executor='exact',
  )
  left = np.linalg.norm(result.params - TARGET) / np.linalg.norm(TARGET)
  return float(left) if np.isfinite(left) else np.inf


def outcomes(part: str, rules=None) -> dict[str, dict[str, float | str]]:
  """{rule: {name of the part: outcome}}."""
  return {
    rule: {
      name: try_pair(rule=rule, **{part: name}) for name in parts.TABLES[part]
    }
    for rule in rules or parts.TABLES['rule']
  }


def cell(outcome: float | str, reasons: dict[str, str]) -> str:
  """What stands in the table; a new reason gets the next letter."""
  if isinstance(outcome, str):
    letter = reasons.setdefault(outcome, chr(ord('a') + len(reasons)))
    return f'no ({letter})'
  if outcome < CLOSE:
    return 'yes'
  return f'{outcome:.2g}' if np.isfinite(outcome) else 'diverges'


def page(found: dict[str, dict[str, dict[str, float | str]]]) -> str:
  """The page, from `outcomes` by part."""
  number = sum(len(row) for table in found.values() for row in table.values())
  text = TEXT.format(
    n=number,
    workers=WORKERS,
    rates=', '.join(f'{r:g}' for r in RATES),
    outer=', '.join(f'{r:g}' for r in OUTER_RATES),
    batches=BATCHES,
    close=CLOSE,
  )
  reasons = {}
  for part, table in found.items():
    names = list(parts.TABLES[part])
    rows = [
      [f'`{rule}`', *(cell(row[name], reasons) for name in names)]
      for rule, row in table.items()
    ]
    head = [f'rule \\ {part}', *(f'`{name}`' for name in names)]
    text += f'\n## By {part}\n\n{tables.markdown(head, rows)}\n'
  text += '\n## Why not\n\n'
  for reason, letter in reasons.items():
    text += f'* ({letter}) {reason}\n'
  return text


def main(_):
  found = {
    part: outcomes(part) for part in ('policy', 'program', 'compression')
  }
  print(page(found), end='')


if __name__ == '__main__':
  launch.launch(main, lambda: None)
