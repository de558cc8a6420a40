"""What `python -m experiments.methods` prints; measured from the parts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from experiments import assembly, cli, methods, tables
from ga_jax import kernel
from ga_jax.programs import base as programs

_MARKDOWN = flags.DEFINE_bool(
  'markdown', False, 'print the table of the documentation instead'
)

COMPONENTS = 1_000_000  # of the model that bytes are counted for
_EXTRA = ('stale_params', 'staleness', 'worker_id')


class Facts(NamedTuple):
  """What a method costs and needs.

  Attributes:
    server: copies of the parameters at the server beside the model, as text.
    worker: copies that each worker keeps from ticket to ticket.
    message: bytes of one submission of `COMPONENTS` float32 parameters.
    needs: what it must be told.
  """

  server: str
  worker: str
  message: int
  needs: tuple[str, ...]


def facts(method: methods.Method) -> Facts:
  """Measures a method."""
  params = jax.ShapeDtypeStruct((COMPONENTS,), jnp.float32)
  size = programs.nbytes(params)

  def copies(workers):
    rule, policy, program = _parts(method, workers)
    state = jax.eval_shape(
      lambda p: kernel.init(rule, p, accumulates=policy.accumulates), params
    )
    server = programs.nbytes((state.opt_state, state.round))
    worker = programs.nbytes(jax.eval_shape(program.init, params))
    return server / size, worker / size

  few, many = 8, 16
  (server, worker), (server_more, _) = copies(few), copies(many)
  slope = (server_more - server) / (many - few)
  rule, policy, program = _parts(method, few)
  return Facts(
    _linear(server - few * slope, slope),
    f'{worker:.3g}' if worker > 1e-3 else '0',
    program.message_bytes(params),
    needs(rule, policy, program),
  )


def _parts(method: methods.Method, workers: int):
  made = assembly.assembled(method, {}, workers)
  return made.rule(), made.policy, made.program(lambda *_: None)


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


def rows() -> list[list[str]]:
  """A row per method, in the order of `HEAD`."""
  table = []
  for name, method in methods.METHODS.items():
    found = facts(method)
    table.append(
      [
        name,
        ' · '.join(
          part
          for part in (
            method.rule,
            method.policy,
            method.program,
            method.compression,
          )
          if part not in ('asynchronous', 'gradient', 'none')
        ),
        method.about,
        method.paper or '-',
        found.server,
        found.worker,
        f'{found.message:,}',
        ', '.join(found.needs) or '-',
      ]
    )
  return table


HEAD = [
  'method',
  'parts',
  'an arriving gradient / a round',
  'paper',
  'server copies',
  'worker copies',
  'bytes per 1 M',
  'needs',
]


def markdown() -> str:
  """The table of docs/methods.md."""
  table = [[f'`{name}`', *rest] for name, *rest in rows()]
  return tables.markdown(HEAD, table)


def main(_):
  if _MARKDOWN.value:
    print(markdown())
    return
  for name, built, about, paper, server, worker, message, needed in rows():
    print(f'{name:21} {about}')
    print(f'{"":21} {paper}; {built}')
    print(
      f'{"":21} copies: server {server}, worker {worker}; '
      f'{message} bytes per million; needs {needed}'
    )


def launch():
  """Runs the script."""
  cli.launch(main, lambda: None)
