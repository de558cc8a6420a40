"""Policies: whom the server waits for. One policy, one file, one line here."""

from ga_jax.policies.asynchronous import asynchronous
from ga_jax.policies.base import Action, Decision, Event, Kind, Policy
from ga_jax.policies.synchronous import synchronous

POLICIES = {
  'asynchronous': asynchronous,
  'synchronous': synchronous,
}

__all__ = [
  'POLICIES',
  'Action',
  'Decision',
  'Event',
  'Kind',
  'Policy',
  'asynchronous',
  'synchronous',
]
