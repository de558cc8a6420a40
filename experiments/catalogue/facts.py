"""What a method costs and needs, measured from its parts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.catalogue import assembly, methods
from ga_jax import clocks
from ga_jax.executors import slots
from ga_jax.job import memory
from ga_jax.programs import base as programs
from ga_jax.simulation import virtual_cluster

COMPONENTS = 1_000_000  # of the model that bytes are counted for
FEW, MANY = 8, 16  # workers, between which copies are compared
ROUNDS = 12  # gradients per worker of a schedule
_EXTRA = ('stale_params', 'staleness', 'worker_id')


class Facts(NamedTuple):
  """What a method costs and needs.

  Attributes:
    state: copies of the parameters in the optimiser's state and an open round,
      as text.
    snapshots: versions that workers hold at once, likewise.
    worker: copies that each worker keeps from ticket to ticket.
    message: bytes of one submission of `COMPONENTS` float32 parameters.
    needs: what it must be told.
  """

  state: str
  snapshots: str
  worker: str
  message: int
  needs: tuple[str, ...]


def facts(method: methods.Method) -> Facts:
  """Measures a method."""
  params = jax.ShapeDtypeStruct((COMPONENTS,), jnp.float32)
  size = programs.nbytes(params)

  def kept(workers):
    found = resident(method, params, workers)
    return memory.Resident(*(part / size for part in found))

  few, many = kept(FEW), kept(MANY)
  slope = (many.state - few.state) / (MANY - FEW)
  worker = few.workers / FEW
  rule, policy, program = _parts(method, FEW)
  return Facts(
    _linear(few.state - FEW * slope, slope),
    _versions(round(few.snapshots), round(many.snapshots)),
    f'{worker:.3g}' if worker > 1e-3 else '0',
    program.message_bytes(params),
    needs(rule, policy, program),
  )


def resident(method: methods.Method, params, workers: int) -> memory.Resident:
  """Bytes that a simulated run of a method keeps, on a homogeneous clock.

  Args:
    method: a method with its default parameters.
    params: parameters, or their shapes.
    workers: N.

  Returns:
    See `memory.resident`.
  """
  rule, policy, program = _parts(method, workers)
  return memory.resident(
    rule,
    params,
    num_workers=workers,
    versions=slots.plan(schedule(policy, program, workers)).rows,
    accumulates=policy.accumulates,
    program=program,
  )


def schedule(policy, program, workers: int):
  """The trace of a few rounds; where losses decide, they do not fall."""
  *_, book = virtual_cluster.play(
    policy,
    clocks.homogeneous(0),
    num_workers=workers,
    num_batches=ROUNDS * workers * program.num_batches,
    batches_per_ticket=program.num_batches,
    overlaps=program.overlaps,
    loss_fn=lambda _: 1.0,
  )
  return book.trace(workers)


def _parts(method: methods.Method, workers: int):
  made = assembly.assembled(method, {}, workers)
  # Arrays, as a run gives them: a momentum of 0 has its buffer then.
  made = made._replace(hparams=jax.tree.map(jnp.float32, made.hparams))
  return made.rule(), made.policy, made.program(lambda *_: None)


def _versions(few: int, many: int) -> str:
  """How snapshots grow from `FEW` to `MANY` workers."""
  if few == many:
    return str(few)
  if (few, many) == (FEW, MANY):
    return 'N'
  return f'{many} of N = {MANY}'


def needs(rule, policy, program) -> tuple[str, ...]:
  """What a method must be told: found by leaving it out."""
  params = jnp.zeros(3)
  state = rule.init(params)
  given = {
    'stale_params': params,
    'staleness': jnp.int32(0),
    'worker_id': jnp.int32(0),
  }
  found = [name for name in _EXTRA if not _works(rule, state, given, name)]
  if rule.looks_ahead:
    found.append('lookahead sent')
  if policy.needs_loss:
    found.append('losses')
  if program.exchange is not None:
    found.append('exchange at arrival')
  return tuple(found)


def _works(rule, state, given: dict[str, Any], without: str) -> bool:
  some = {k: v for k, v in given.items() if k != without}
  try:
    jax.eval_shape(lambda g: rule.update(g, state, g, **some), jnp.zeros(3))
  except TypeError:
    return False
  return True


def _linear(constant: float, slope: float) -> str:
  """'2 + N' from 2 and 1; what is below a thousandth does not count."""
  terms = []
  if constant > 1e-3 or slope <= 1e-3:
    terms.append(f'{max(constant, 0):.3g}' if constant > 1e-3 else '0')
  if slope > 1e-3:
    terms.append('N' if abs(slope - 1) < 1e-3 else f'{slope:.3g} N')
  return ' + '.join(terms)
