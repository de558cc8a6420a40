"""Policies: whom the server waits for. One policy, one file, one line here."""

import inspect

from ga_jax.policies.abs import abs
from ga_jax.policies.adasync import adasync
from ga_jax.policies.asynchronous import asynchronous
from ga_jax.policies.backup_workers import backup_workers
from ga_jax.policies.fedbuff import fedbuff
from ga_jax.policies.gba import gba
from ga_jax.policies.k_async import k_async
from ga_jax.policies.k_sync import k_sync
from ga_jax.policies.parts.base import Action, Decision, Event, Kind, Policy
from ga_jax.policies.rennala import rennala
from ga_jax.policies.ringmaster import ringmaster
from ga_jax.policies.ringmaster_stops import ringmaster_stops
from ga_jax.policies.softsync import softsync
from ga_jax.policies.ssp import ssp
from ga_jax.policies.synchronous import synchronous

POLICIES = {
  'asynchronous': asynchronous,
  'synchronous': synchronous,
  'backup_workers': backup_workers,
  'k_sync': k_sync,
  'k_async': k_async,
  'softsync': softsync,
  'ssp': ssp,
  'adasync': adasync,
  'abs': abs,
  'gba': gba,
  'fedbuff': fedbuff,
  'ringmaster': ringmaster,
  'ringmaster_stops': ringmaster_stops,
  'rennala': rennala,
}
# Other names of them, in Python and on the command line.
OTHER_NAMES = {'adaptive_bounded_staleness': 'abs'}

__all__ = [
  'OTHER_NAMES',
  'POLICIES',
  'Action',
  'Decision',
  'Event',
  'Kind',
  'Policy',
  'abs',
  'adasync',
  'asynchronous',
  'backup_workers',
  'fedbuff',
  'gba',
  'k_async',
  'k_sync',
  'make',
  'rennala',
  'ringmaster',
  'ringmaster_stops',
  'softsync',
  'ssp',
  'synchronous',
]


def make(name: str, num_workers: int, **parameters) -> Policy:
  """Builds a policy by its name.

  Args:
    name: in `POLICIES`, or in `OTHER_NAMES`.
    num_workers: workers of the run, where the policy reads it.
    **parameters: of that policy.

  Returns:
    A `Policy`.

  Raises:
    ValueError: there is no such policy, it reads no such parameter, or one is
      out of its range.
  """
  name = OTHER_NAMES.get(name, name)
  if name not in POLICIES:
    raise ValueError(f'policy must be one of {sorted(POLICIES)}, got {name!r}')
  reads = set(inspect.signature(POLICIES[name]).parameters)
  for parameter in parameters:
    if parameter not in reads:
      raise ValueError(
        f'{parameter} is no parameter of policy {name}, which reads '
        f'{", ".join(sorted(reads - {"num_workers"})) or "none"}'
      )
  if 'num_workers' in reads:
    parameters['num_workers'] = num_workers
  return POLICIES[name](**parameters)


def __getattr__(name: str):
  if name in OTHER_NAMES:
    return POLICIES[OTHER_NAMES[name]]
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
